"""The hyperparameters of the algorithms, as a study draws them."""

import re
from pathlib import Path

import pytest

from algorithms.made_up_runs import small
from shiftproof.algorithms import ALGORITHMS
from shiftproof.protocol import PROTOCOLS
from shiftproof.protocol.settings import search_space, setting


def _setting(algorithm, hparam_seed, photographs=True, search="protocol", protocol="shiftproof"):
    kind = "photographs" if photographs else "small_images"
    space = search_space("PACS", kind, photographs, algorithm, "adam", "none", search)
    return setting(space, {}, hparam_seed, 0, protocol)


@pytest.mark.parametrize("protocol", ["shiftproof", "domainbed-head"])
def test_the_draws_are_those_of_domainbed(protocol):
    """Obtained by running DomainBed at commit b93c22a: PACS, trial 0."""
    first, second = (_setting("irm", hparam_seed, protocol=protocol) for hparam_seed in (1, 2))
    assert first["algorithm.penalty_weight"] == 65030.52212762795
    assert first["algorithm.anneal_steps"] == 2
    assert second["algorithm.penalty_weight"] == 15.27125896858225
    assert (first["optimizer.lr"], first["optimizer.weight_decay"]) == (2.7028930742148706e-05, 0.00044832883881609976)
    assert (first["data.batch_size"], second["data.batch_size"]) == (39, 25)


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_defaults_and_draws_are_accepted_by_the_algorithm(algorithm):
    for hparam_seed in range(20):
        for search in ("protocol", "short"):
            hparams = _setting(algorithm, hparam_seed, search=search)
            own = {n.removeprefix("algorithm."): v for n, v in hparams.items() if n.startswith("algorithm.")}
            assert own.keys() == {name for name, hparam in ALGORITHMS[algorithm].hparams.items() if not hparam.later}
            small(ALGORITHMS[algorithm], **own)


@pytest.mark.parametrize("search", ["protocol", "short"])
def test_arm_has_eight_photographs_of_a_domain(search):
    assert {_setting("arm", hparam_seed, search=search)["data.batch_size"] for hparam_seed in range(10)} == {8}
    small_images = [_setting("arm", hparam_seed, photographs=False, search=search) for hparam_seed in range(10)]
    others = [_setting("erm", hparam_seed, photographs=False, search=search) for hparam_seed in range(10)]
    assert [s["data.batch_size"] for s in small_images] == [s["data.batch_size"] for s in others]


@pytest.mark.parametrize("protocol", ["domainbed", "swad"])
def test_what_arm_draws_after_its_batch_size_is_what_others_draw(protocol):
    for hparam_seed in (1, 2, 3):
        arm, erm = (_setting(name, hparam_seed, protocol=protocol) for name in ("arm", "erm"))
        assert arm["optimizer.weight_decay"] == erm["optimizer.weight_decay"]
        assert arm["data.batch_size"] == 8


@pytest.mark.parametrize(("protocol", "constant"), [("domainbed", True), ("swad", True), ("domainbed-head", False)])
def test_the_dialects_of_the_published_table_draw_no_alpha_for_mixup(protocol, constant):
    alphas = [_setting("mixup", hparam_seed, protocol=protocol)["algorithm.alpha"] for hparam_seed in range(10)]
    assert alphas[0] == 0.2
    assert (set(alphas[1:]) == {0.1}) is constant


@pytest.mark.parametrize(
    ("algorithm", "option", "dialects"),
    [
        ("fish", "fixed_order", {"domainbed", "domainbed-head", "swad"}),
        ("fish", "interpolates_buffers", {"domainbed", "domainbed-head", "swad"}),
        ("sagnet", "three_steps", {"domainbed", "domainbed-head", "swad"}),
        ("groupdro", "divided", {"domainbed", "swad"}),
    ],
)
def test_a_dialect_takes_the_options_of_the_code_that_it_follows(algorithm, option, dialects):
    for protocol in PROTOCOLS:
        for hparam_seed in (0, 3):
            drawn = _setting(algorithm, hparam_seed, protocol=protocol)
            assert drawn.get(f"algorithm.{option}", False) is (protocol in dialects)


def test_the_guide_has_every_algorithm_with_its_hyperparameters():
    objectives, costs, published = map(_table, ("index", "hyperparameters", "published_numbers"))
    for name in ALGORITHMS:
        assert objectives.count(f"\n| `{name}` |") == 1
        [row] = [line for line in costs.splitlines() if line and f"`{name}`" in line.split("|")[1]]
        cells = row.split("|")
        told = dict(re.findall(r"`(\w+)` (\S+?)(?:,|;| |$)", cells[2].strip()))
        together = {
            key: hparam for one in re.findall(r"`(\w+)`", cells[1]) for key, hparam in ALGORITHMS[one].hparams.items()
        }
        assert told.keys() == together.keys()
        for hparam, text in told.items():
            default = together[hparam].default
            assert text == _in_the_guide(default)
        assert ("yes" in cells[4] or f"`{name}`" in cells[4]) is ALGORITHMS[name].accumulates
        assert f"`{name}`" in published
        for hparam, settings in ALGORITHMS[name].hparams.items():
            assert not settings.in_dialects or f"`{hparam}`" in published


def _table(page):
    guide = Path(__file__).parents[2] / "docs" / "reference" / "algorithms" / f"{page}.md"
    [rows] = re.findall(r"\|(?:---\|)+(.*?)(?:\n\n|\n?$)", guide.read_text(encoding="utf-8"), re.DOTALL)
    return rows


def _in_the_guide(default):
    if isinstance(default, bool):
        return str(default).lower()
    if default == 1 / 3:
        return "1/3"
    return default if isinstance(default, str) else f"{default:g}"
