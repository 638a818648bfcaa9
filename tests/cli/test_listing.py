import json

import pytest

from plugin_files import forgotten, write_examples
from shiftproof.algorithms import ALGORITHMS
from shiftproof.annealing import ANNEALERS
from shiftproof.cli import main
from shiftproof.data import AUGMENTATIONS, DATASETS
from shiftproof.models import MODELS
from shiftproof.optim import OPTIMIZERS
from shiftproof.protocol import MEASURES, RULES
from shiftproof.studies import named_studies
from shiftproof.training.tracking import TRACKERS

REGISTERED = {
    "algorithms": ALGORITHMS,
    "optimizers": OPTIMIZERS,
    "annealers": ANNEALERS,
    "datasets": DATASETS,
    "models": MODELS,
    "augmentations": AUGMENTATIONS,
    "measures": MEASURES,
    "rules": RULES,
    "trackers": TRACKERS,
    "studies": named_studies(),
}


def _listed(capsys, *arguments):
    assert main(["list", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_everything_with_a_name_has_one_line(capsys):
    found = _listed(capsys)
    assert {kind: [one["name"] for one in listed] for kind, listed in found.items()} == {
        kind: list(names) for kind, names in REGISTERED.items()
    }
    for listed in found.values():
        assert any(one["origin"] == "shiftproof" for one in listed)
        for one in listed:
            assert "\n" not in one["summary"]
            if one["origin"] == "shiftproof":  # other tests of this process may have registered more
                assert one["summary"].endswith(".")
    assert main(["list"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len([line for line in printed if line.startswith("  ")]) == sum(map(len, REGISTERED.values()))


def test_hyperparameters_have_defaults_and_ranges(capsys):
    [genie] = [one for one in _listed(capsys, "optimizers")["optimizers"] if one["name"] == "genie"]
    assert genie["hyperparameters"]["lr"] == {"default": 10.0, "range": "1 to 100, log-uniform"}
    assert genie["hyperparameters"]["weight_decay"] == {"default": 0.0, "range": None}
    [mldg] = _listed(capsys, "algorithms", "mldg")["algorithms"]
    assert mldg["hyperparameters"]["beta"] == {"default": 1.0, "range": "0.1 to 10, log-uniform"}
    assert mldg["hyperparameters"]["n_meta_test"] == {"default": 2, "range": "one of 1, 2"}
    assert main(["list", "optimizers", "sam"]) == 0
    printed = capsys.readouterr().out
    assert "    relative_rho: 0.003; searched one of 0.001, 0.003, 0.01\n" in printed


def test_hyperparameters_say_of_which_search_they_are(capsys):
    found = _listed(capsys)
    for kind, listed in found.items():
        for one in listed:
            assert one.get("search") == ("short" if one["hyperparameters"] else None)
            assert one.get("start") == ("random" if kind == "optimizers" else None)
    for kind, line in (
        ("optimizers", "optimizers (with the defaults and ranges of the short search, from a random start)"),
        ("annealers", "annealers (with the defaults and ranges of the short search)"),
        ("rules", "rules"),
    ):
        assert main(["list", kind]) == 0
        assert capsys.readouterr().out.splitlines()[0] == line
    assert main(["list"]) == 0
    assert "short search" not in capsys.readouterr().out


def test_options_of_the_dialects_are_told(capsys):
    [mldg] = _listed(capsys, "algorithms", "mldg")["algorithms"]
    everywhere = {"domainbed": "ring", "domainbed-head": "split", "swad": "ring"}
    assert mldg["hyperparameters"]["pairing"] == {"default": "groups", "range": None, "in_dialects": everywhere}
    main(["list", "annealers", "gga"])
    assert "start: 100; 101 in swad" in capsys.readouterr().out


def test_ranges_of_whole_numbers_end_with_the_last_one_drawn(capsys):
    found = {one["name"]: one["hyperparameters"] for one in _listed(capsys, "algorithms")["algorithms"]}
    assert found["dann"]["d_steps"]["range"] == "1 to 7, whole, log-uniform"
    assert found["dann"]["mlp_width"]["range"] == "64 to 1023, whole, log-uniform"
    assert found["fishr"]["anneal_steps"]["range"] == "0 to 299, whole, uniform"
    assert found["irm"]["anneal_steps"]["range"] == "1 to 316, whole, log-uniform"


def test_every_built_in_range_is_in_words(capsys):
    for listed in _listed(capsys).values():
        for one in listed:
            assert "a distribution of its own" not in [hparam["range"] for hparam in one["hyperparameters"].values()]


def test_a_pattern_in_the_place_of_the_kind_is_for_all_kinds(capsys):
    found = _listed(capsys, "gg?*")
    assert [one["name"] for one in found["annealers"]] == ["gga", "gga_l"]
    found = _listed(capsys, "*domain*")
    names = {kind: [one["name"] for one in listed] for kind, listed in found.items()}
    rules = ["training_domain", "leave_one_domain_out"]
    assert names == {"algorithms": ["mixstyle_domains"], "datasets": ["DomainNet"], "rules": rules}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("genie*", ["genie", "genie_released", "genie_adamw"]), ("SGD", ["sgd"]), ("?am", ["sam", "gam"]), ("ada", None)],
)
def test_a_pattern_matches_or_is_contained(capsys, pattern, expected):
    names = [one["name"] for one in _listed(capsys, "optimizers", pattern)["optimizers"]]
    assert names == (expected or ["adam", "adamw", "adabelief", "adahessian", "genie_adamw"])


def test_models_that_match_include_timms(capsys):
    found = {one["name"]: one["origin"] for one in _listed(capsys, "models", "resnet18*")["models"]}
    assert found["resnet18"] == "shiftproof"
    assert found["resnet18d"] == "timm"


def test_a_plugins_entries_say_where_they_come_from(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_examples(tmp_path)
    with forgotten():
        found = _listed(capsys, "algorithms", "tilt", "--import", "tilted.py")
    summary = 'Tilted ERM over the domains (Li et al., "Tilted Empirical Risk Minimization", ICLR 2021, equation 2).'
    hparams = {"tilt": {"default": 1.0, "range": "0.1 to 10, log-uniform"}}
    tilted = {
        "name": "tilted",
        "summary": summary,
        "origin": "tilted.py",
        "search": "short",
        "hyperparameters": hparams,
    }
    assert found == {"algorithms": [tilted]}
    with forgotten():
        assert main(["list", "algorithms", "tilted", "--import", "tilted.py"]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("[tilted.py]")


def test_an_entry_of_a_script_has_the_scripts_module(capsys):
    with forgotten():
        ALGORITHMS.register("guest", ALGORITHMS["erm"], summary="A guest.")
        [guest] = _listed(capsys, "algorithms", "guest")["algorithms"]
    assert guest["summary"] == "A guest."
    assert guest["origin"] == __name__


def test_an_entry_has_one_line_whatever_its_summary(capsys):
    class Undescribed(ALGORITHMS["erm"]):
        pass

    with forgotten():
        ALGORITHMS.register("guest", ALGORITHMS["erm"], summary="One line.\nAnother.")
        ALGORITHMS.register("guest2", Undescribed)
        assert main(["list", "algorithms", "guest"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1) for line in lines[-2:]] == [
        ["guest", f"One line.  [{__name__}]"],
        ["guest2", f"(no description)  [{__name__}]"],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["algos"], "unknown kind 'algos'. Did you mean algorithms?"),
        (["algos*"], "no names match 'algos*'"),
        (["al*", "erm"], "unknown kind 'al*'"),
        (["optimizers", "geenie"], "no optimizers match 'geenie'. Did you mean genie"),
        (["rules", "x*"], "no rules match 'x*'"),
    ],
)
def test_what_is_not_there_is_said_with_near_names(capsys, arguments, message):
    assert main(["list", *arguments]) == 1
    assert message in capsys.readouterr().err
