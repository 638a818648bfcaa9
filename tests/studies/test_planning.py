"""What a study plans: settings, targets, variants, pairs and data that are not at hand."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from draws import draw
from shiftproof.base.files import DamagedFileError
from shiftproof.base.hparams import Hparam
from shiftproof.data import DATASETS
from shiftproof.optim import OPTIMIZERS
from shiftproof.studies import FieldError, Method, Study, Variant, make_plan, read_plan
from shiftproof.studies.plan import ABSENT, PLAN_FILE
from shiftproof.training import PROTOCOLS


def _settings(plan, optimizer):
    return [spec.hparams for spec in plan.runs if spec.optimizer == optimizer]


def test_every_method_gets_the_same_number_of_settings():
    plan = make_plan(Study(optimizers=("adam", "genie"), targets=("0",), trials=1, hparam_trials=3))
    settings = {name: _settings(plan, name) for name in ("adam", "genie")}
    assert [len(drawn) for drawn in settings.values()] == [3, 3]
    quantiles = {}
    for name, drawn in settings.items():
        default = drawn[0]["optimizer.lr"]
        assert all(default / 10 <= setting["optimizer.lr"] < default * 10 for setting in drawn)
        quantiles[name] = [setting["optimizer.lr"] / default for setting in drawn]
    assert quantiles["adam"] == pytest.approx(quantiles["genie"])  # a paired search


def test_what_is_fixed_by_hand_leaves_the_search():
    fixed = {"optimizer.lr": 0.5, "optimizer.beta": 0.5}
    runs = make_plan(Study(targets=("0",), trials=1, hparam_trials=3, fixed=fixed)).runs
    assert {spec.hparams["optimizer.lr"] for spec in runs} == {0.5}
    assert {spec.hparams.get("optimizer.beta") for spec in runs} == {None, 0.5}
    assert len({spec.hparams["optimizer.dropout"] for spec in runs if spec.optimizer == "genie"}) == 3


def test_what_is_fixed_for_one_optimizer_comes_before_what_is_fixed_for_all():
    methods = {"algorithms": ("erm",), "optimizers": ("adam", "sgd", "sam"), "targets": ("0",), "trials": 1}
    fixed = {"optimizer.lr": 0.5, "adam.lr": 0.02, "sam.rho": 0.01, "sgd.momentum": 0}
    study = Study(**methods, fixed=fixed)
    plan = make_plan(study)
    hparams = {spec.optimizer: spec.hparams for spec in plan.runs}
    assert {name: hparams[name]["optimizer.lr"] for name in methods["optimizers"]} == {
        "adam": 0.02,
        "sgd": 0.5,
        "sam": 0.5,
    }
    assert (hparams["sgd"]["optimizer.momentum"], hparams["sam"]["optimizer.rho"]) == (0.0, 0.01)
    assert not {"optimizer.relative_rho"} & hparams["sam"].keys()
    axes = {name.partition(".")[0] for names in hparams.values() for name in names}
    assert axes == {"data", "model", "optimizer"}  # no run has a name by part
    assert plan.grids[0].terms["fixed"] == "optimizer.lr=0.5, adam.lr=0.02, sam.rho=0.01, sgd.momentum=0"
    alone = make_plan(study.only(Method("erm", "adam")))
    assert alone.runs == [spec for spec in plan.runs if spec.optimizer == "adam"]
    assert alone.grids[0].terms["fixed"] == "optimizer.lr=0.5, adam.lr=0.02"


def test_runs_are_the_same_whichever_way_their_hyperparameters_are_named():
    facts = {"algorithms": ("irm",), "optimizers": ("adam",), "targets": ("0",), "trials": 1, "hparam_trials": 3}
    by_axis = Study(**facts, fixed={"optimizer.lr": 0.02, "algorithm.anneal_steps": 5})
    by_name = Study(**facts, fixed={"adam.lr": 0.02, "irm.anneal_steps": 5})
    assert make_plan(by_name).runs == make_plan(by_axis).runs


def test_variants_may_fix_what_is_of_one_optimizer():
    study = Study(
        optimizers=("adam", "sgd"),
        targets=("0",),
        trials=1,
        variants=(Variant(""), Variant("fast", fixed={"sgd.lr": 0.3}), Variant("slow", fixed={"optimizer.lr": 1e-3})),
    )
    rates = {str(spec.method): spec.hparams["optimizer.lr"] for spec in make_plan(study).runs}
    assert rates == {
        "erm + adam": 0.01, "erm + adam, slow": 1e-3, "erm + sgd": 0.1, "erm + sgd, fast": 0.3, "erm + sgd, slow": 1e-3,
    }  # fmt: skip
    with pytest.raises(FieldError, match=r"variant slow fixes optimizer\.lr, and the study adam\.lr"):
        dataclasses.replace(study, fixed={"adam.lr": 1})
    dataclasses.replace(study, variants=study.variants[:2], fixed={"adam.lr": 1})
    several = Variant("tuned", fixed={"adam.lr": 0.02, "sgd.lr": 0.2, "data.batch_size": 8})
    study = Study(optimizers=("adam", "sgd", "genie"), targets=("0",), trials=1, variants=(several,))
    tuned = {spec.optimizer: spec.hparams["optimizer.lr"] for spec in make_plan(study).runs}
    assert tuned == {"adam": 0.02, "sgd": 0.2}
    narrowed = [dataclasses.replace(study, optimizers=("adam",)), study.only(Method("erm", "adam", variant="tuned"))]
    for one in narrowed:
        assert make_plan(one).runs == [spec for spec in make_plan(study).runs if spec.optimizer == "adam"]
    for fixed, name in (({"adam.lr": 1, "sgd.lrr": 1}, "sgd.lrr"), ({"sgd.lr": 1}, "sgd.lr")):
        with pytest.raises(FieldError, match=name):
            dataclasses.replace(study, optimizers=("adam",), variants=(Variant("a", fixed=fixed),))


def test_a_part_with_a_dot_in_its_name_has_hyperparameters_too(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS._entries, "my.sgd", OPTIMIZERS["sgd"])
    [spec] = make_plan(Study(optimizers=("my.sgd",), targets=("0",), trials=1, fixed={"my.sgd.lr": 0.5})).runs
    assert spec.hparams["optimizer.lr"] == 0.5


@pytest.mark.parametrize(
    ("search", "fixed", "radii"),
    [
        ("short", {}, {"relative_rho"}),
        ("protocol", {}, {"rho"}),
        ("short", {"optimizer.rho": 0.05}, {"rho"}),
        ("protocol", {"optimizer.relative_rho": 0.01}, {"relative_rho"}),
    ],
)
def test_a_radius_fixed_by_hand_is_the_only_one(search, fixed, radii):
    methods = {"algorithms": ("erm",), "optimizers": ("sam", "gam")}
    by_study = make_plan(Study(**methods, targets=("0",), trials=1, search=search, fixed=fixed)).runs[0].hparams
    variants = (Variant("one", fixed=fixed),)
    by_variant = make_plan(Study(**methods, targets=("0",), trials=1, search=search, variants=variants)).runs[0].hparams
    assert by_study == by_variant
    assert {name.removeprefix("optimizer.") for name in by_study if name.endswith("rho")} == radii
    assert by_study.items() >= fixed.items()


def test_tuned_per_target_trials_draw_their_own_settings_and_shared_the_same():
    study = Study(optimizers=("adam",), targets=("0", "15"), trials=2, hparam_trials=3)
    rates = {
        tune: {
            (spec.trial_seed, spec.hparam_seed): spec.hparams["optimizer.lr"]
            for spec in make_plan(dataclasses.replace(study, tune=tune)).runs
        }
        for tune in ("per_target", "shared")
    }
    assert rates["per_target"][0, 1] != rates["per_target"][1, 1]
    for setting in range(3):
        assert rates["shared"][1, setting] == rates["shared"][0, setting] == rates["per_target"][0, setting]


def test_with_one_source_domain_all_others_are_targets():
    plan = make_plan(Study(single_source=True, optimizers=("sgd",), trials=1))
    names = plan.grids[0].domains
    assert len(plan.runs) == len(names) == 6
    assert [set(names) - set(spec.targets) for spec in plan.runs] == [{name} for name in names]


def test_leave_one_domain_out_validation_plans_every_pair_once():
    study = Study(
        optimizers=("sgd",), targets=("15", "0"), trials=2, selection=("leave_one_domain_out", "training_domain")
    )
    grid = make_plan(study).grids[0]
    assert grid.columns == (("15",), ("0",))
    pairs = [spec.targets for spec in grid.runs if len(spec.targets) == 2 and spec.trial_seed == 0]
    assert set(pairs) == {("0", "15"), *((a, b) for a in ("0", "15") for b in ("30", "45", "60", "75"))}
    assert len(pairs) == len(set(pairs)) == 9
    assert all(spec.score_targets for spec in grid.runs)


def test_a_variant_is_run_by_the_methods_that_have_what_it_fixes():
    variants = (
        Variant("default"),
        Variant("half", fixed={"optimizer.dropout": 0.5}),
        Variant("twice", times=2),
    )
    study = Study(optimizers=("sgd", "genie"), variants=variants, targets=("0",), trials=1, steps=10)
    plan = make_plan(study)
    assert [str(method) for method in plan.grids[0].methods] == [
        "erm + sgd, default", "erm + sgd, twice", "erm + genie, default", "erm + genie, half", "erm + genie, twice",
    ]  # fmt: skip
    by_method = {str(spec.method): spec for spec in plan.runs}
    assert by_method["erm + genie, half"].hparams["optimizer.dropout"] == 0.5
    assert (by_method["erm + sgd, twice"].steps, by_method["erm + sgd, twice"].checkpoint_freq) == (20, 4)
    assert plan.grids[0].terms["steps"] == "10 20"


def test_equal_runs_at_several_places_are_one_run():
    beta = OPTIMIZERS["genie"].hparams["beta"].default
    variants = (Variant("default"), Variant("beta", fixed={"optimizer.beta": beta}))
    plan = make_plan(Study(optimizers=("genie",), variants=variants, targets=("0",), trials=1))
    assert (len(plan.runs), len(plan.distinct)) == (2, 1)


def test_a_published_set_that_is_not_at_hand_is_planned_and_marked():
    study = Study(datasets=("DomainNet",), optimizers=("adam",), model="squeezenet1_1", image_size=64, protocol="swad")
    with pytest.raises(ValueError, match="DomainNet needs a data folder"):
        make_plan(study)
    plan = make_plan(study, absent=True)
    [grid] = plan
    assert not grid.at_hand
    assert (len(grid.domains), grid.images, grid.classes) == (6, 586575, ())
    assert {(spec.steps, spec.checkpoint_freq, spec.data_fingerprint) for spec in grid.runs} == {(15001, 500, ABSENT)}
    assert len(grid.runs) == 6 * 3


def test_names_with_plus_signs_can_be_joined_by_one(image_tree):
    files = [f"{letter}.png" for letter in "abcde"]
    root = image_tree({name: {"round": files, "long": files} for name in ("a", "b+c", "d", "e+")})
    study = Study(datasets=("folder",), data_dir=root, optimizers=("sgd",), trials=1, targets=("a+b+c", "e+", "d+e++a"))
    assert make_plan(study).grids[0].columns == (("a", "b+c"), ("e+",), ("a", "d", "e+"))
    for target, unknown in (("a+b", "b"), ("a+b+c+x", "x"), ("a+", "")):
        with pytest.raises(FieldError, match=rf"unknown domain of shapes '{unknown}'\."):
            make_plan(dataclasses.replace(study, targets=(target,)))


def test_targets_belong_to_the_data_sets_that_have_them():
    study = Study(datasets=("rotated_digits", "colored_digits"), optimizers=("sgd",), trials=1)
    with pytest.raises(FieldError, match="colored_digits has none of the targets 15"):
        make_plan(dataclasses.replace(study, targets=("15",)))
    plan = make_plan(dataclasses.replace(study, targets=("15", "minus90")))
    assert [grid.targets for grid in plan] == [["15"], ["minus90"]]


def test_a_dialect_sets_what_is_not_given():
    plans = {
        name: make_plan(Study(protocol=name, optimizers=("adam",), targets=("0",), trials=1, search="protocol"))
        for name in ("shiftproof", "domainbed", "domainbed-head", "swad")
    }
    lengths = {name: (plan.runs[0].steps, plan.runs[0].checkpoint_freq) for name, plan in plans.items()}
    assert lengths == {
        "shiftproof": (300, 60), "domainbed": (5001, 100), "domainbed-head": (5001, 100), "swad": (5001, 100),
    }  # fmt: skip
    assert plans["domainbed"].grids[0].terms["protocol"] == "domainbed"


def test_domainbeds_draws_are_the_golden_ones():
    """The values that DomainBed's own code gave (PACS, trial 0)."""
    space = {"lr": OPTIMIZERS["adam"].lr_pretrained.hparam("protocol")}
    assert draw(space, 1, 0)["lr"] == pytest.approx(2.7028930742148706e-05, rel=1e-12)
    assert draw(space, 2, 0)["lr"] == pytest.approx(5.6841898471378446e-05, rel=1e-12)


def test_a_plan_is_read_back_as_it_was_written(tmp_path):
    study = Study(
        datasets=("rotated_digits", "colored_digits"), optimizers=("sgd", "genie"), trials=1, published="optimizers",
        variants=(Variant("a"), Variant("b", times=2, published="convergence_5000")), hparam_trials=2,
    )  # fmt: skip
    plan = make_plan(study)
    plan.write(tmp_path)
    again = read_plan(tmp_path)
    assert again == plan
    assert [spec.name for spec in again.runs] == [spec.name for spec in plan.runs]
    assert again.baseline == Method("erm", "sgd", "none", "a")
    assert again.published == {"a": "optimizers", "b": "convergence_5000"}


def test_runs_of_earlier_versions_have_names_of_their_own():
    """No table mixes them with those of today."""
    specs = make_plan(Study(annealers=("none", "gga", "gga_l"), targets=("0",), trials=1)).runs
    assert {spec.results_version for spec in specs} == {6}
    for spec in specs:
        assert spec.name not in {dataclasses.replace(spec, results_version=version).name for version in (3, 4, 5)}


def test_a_missing_or_damaged_plan_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no study"):
        read_plan(tmp_path)
    (tmp_path / PLAN_FILE).write_text(json.dumps({"grids": [{"dataset": "x"}]}))
    with pytest.raises(DamagedFileError, match="run the study again"):
        read_plan(tmp_path)


def test_the_data_set_is_not_opened_to_describe_a_study(monkeypatch):
    monkeypatch.setattr(type(DATASETS["rotated_digits"]), "open", None, raising=False)
    assert len(Study().methods) == 5


@pytest.mark.parametrize(
    ("entries", "field", "message"),
    [
        ({"protocol": "swad", "steps": 50}, "steps", "would evaluate only step 1 of 50 steps, with 100 between"),
        ({"protocol": "domainbed", "steps": 9, "checkpoint_freq": 9}, "checkpoint_freq", "would evaluate only step 1"),
        ({"averaging": "swad", "steps": 20, "checkpoint_freq": 10}, "checkpoint_freq", "swad needs 3 evaluations"),
        ({"weights": Path("/nowhere/w.pt")}, "weights", "there is no weights file /nowhere/w.pt"),
        ({"fixed": {"optimizer.lr": -1.0}}, "optimizer.lr", "Invalid learning rate: -1"),
        ({"accumulate": 3}, "accumulate", "a batch of 16 cannot be split into 3 equal parts"),
        ({"warm_up": 20, "steps": 20}, "warm_up", "a warm-up of 20 steps takes all 20 steps of the run"),
    ],
)
def test_what_only_planning_can_refuse_names_its_field(entries, field, message):
    with pytest.raises(FieldError, match=message) as error:
        make_plan(Study(targets=("0",), trials=1, optimizers=("adam",), **entries))
    assert error.value.field == field


TOO_LARGE = 10**400


def test_an_empty_weights_file_is_refused_by_its_field(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"")
    with pytest.raises(FieldError, match=r"w\.pt is empty") as error:
        make_plan(Study(targets=("0",), trials=1, optimizers=("adam",), weights=tmp_path / "w.pt"))
    assert error.value.field == "weights"


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, TOO_LARGE, -TOO_LARGE])
def test_a_number_that_json_cannot_hold_is_refused_in_every_field(value):
    message = f"optimizer.lr must be a finite number, not {value!r}"
    with pytest.raises(FieldError, match=message) as error:
        Study(fixed={"optimizer.lr": value})
    assert error.value.field == "optimizer.lr"
    with pytest.raises(FieldError, match=message) as error:
        Study(variants=(Variant("a"), Variant("b", fixed={"optimizer.lr": value})))
    assert error.value.field == "variants"
    with pytest.raises(FieldError, match=f"clip_norm must be a finite number above 0, not {value!r}"):
        Study(clip_norm=value)
    for name in ("trials", "hparam_trials", "accumulate", "steps", "checkpoint_freq", "image_size"):
        with pytest.raises(FieldError, match=f"{name} must be a whole number above 0, not {value!r}"):
            Study(**{name: value})
    with pytest.raises(FieldError, match=f"times of variant a must be a whole number above 0, not {value!r}"):
        Study(variants=(Variant("a", times=value),))


def test_a_number_that_json_cannot_hold_is_refused_where_a_search_draws_it(monkeypatch):
    endless = Hparam(0.9, lambda random: math.inf)
    monkeypatch.setitem(OPTIMIZERS["sgd"].hparams, "momentum", endless)
    with pytest.raises(ValueError, match=r"optimizer\.momentum must be a finite number, not inf"):
        make_plan(Study(optimizers=("sgd",), targets=("0",), trials=1, hparam_trials=2))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("optimizer.lr", True, "optimizer.lr must be a number, not True"),
        ("optimizer.lr", "fast", "optimizer.lr must be a number, not 'fast'"),
        ("optimizer.lr", None, "optimizer.lr must be a number, not None"),
        ("optimizer.lr", [0.1], r"optimizer.lr must be a number, not \[0.1\]"),
        ("data.batch_size", True, "data.batch_size must be a whole number, not True"),
        ("data.batch_size", 8.0, "data.batch_size must be a whole number, not 8.0"),
        ("data.batch_size", "8", "data.batch_size must be a whole number, not '8'"),
        ("algorithm.n_meta_test", 1.5, "algorithm.n_meta_test must be a whole number, not 1.5"),
        ("algorithm.first_order", 1, "algorithm.first_order must be true or false, not 1"),
        ("algorithm.first_order", "no", "algorithm.first_order must be true or false, not 'no'"),
        ("optimizer.precondition", 0.0, "optimizer.precondition must be true or false, not 0.0"),
        ("optimizer.moment_dtype", 16, "optimizer.moment_dtype must be a word, not 16"),
        ("annealer.candidates", "many", "annealer.candidates must be a whole number, not 'many'"),
        ("annealer.search", False, "annealer.search must be a word, not False"),
    ],
)
def test_a_hyperparameter_of_another_kind_is_named(name, value, message):
    methods = {"algorithms": ("mldg",), "optimizers": ("genie",), "annealers": ("gga",)}
    with pytest.raises(FieldError, match=message) as error:
        Study(**methods, fixed={name: value})
    assert error.value.field == name
    with pytest.raises(FieldError, match=message) as error:
        Study(**methods, variants=(Variant("a", fixed={name: value}),))
    assert error.value.field == "variants"


def test_a_plan_with_a_number_that_json_cannot_hold_is_damaged(tmp_path):
    plan = make_plan(Study(optimizers=("sgd",), targets=("0",), trials=1))
    plan.write(tmp_path)
    file = tmp_path / "study.json"
    file.write_text(file.read_text().replace('"optimizer.lr": 0.1', '"optimizer.lr": Infinity'))
    with pytest.raises(DamagedFileError, match=r"optimizer\.lr must be a finite number, not inf"):
        read_plan(tmp_path)


def test_a_run_of_domainbed_need_not_evaluate_its_last_step():
    spec = make_plan(Study(protocol="domainbed", optimizers=("adam",), targets=("0",), trials=1, steps=150)).runs[0]
    assert PROTOCOLS["domainbed"].last_evaluated(spec.steps, spec.checkpoint_freq) == 101


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_evaluations_are_counted(name):
    protocol = PROTOCOLS[name]
    for steps in range(1, 30):
        for freq in range(1, 12):
            evaluated = [step for step in range(1, steps + 1) if protocol.evaluated(step, steps, freq)]
            assert protocol.evaluations(steps, freq) == len(evaluated)


def test_an_embedded_set_beside_photographs_needs_no_folder(tmp_path, image_tree, monkeypatch):
    monkeypatch.setenv("SHIFTPROOF_CACHE", str(tmp_path / "cache"))
    names = [f"{i}.png" for i in range(5)]
    root = image_tree({domain: dict.fromkeys(("cat", "dog"), names) for domain in ("ink", "oil")})
    study = Study(datasets=("folder", "rotated_digits"), data_dir=root, optimizers=("adam",), trials=1, image_size=16)
    folder, digits = make_plan(study)
    assert (folder.targets, len(digits.targets)) == (["ink", "oil"], 6)
    assert digits.runs[0].image_size is None


def test_transductive_algorithms_are_a_term():
    study = Study(algorithms=("erm", "arm", "mtl"), optimizers=("adam",), targets=("0",), trials=1)
    assert make_plan(study).grids[0].terms["transductive"] == (
        "arm, mtl: predictions use the other images of a test batch, 64 of one domain in the order of the split"
    )
    assert "transductive" not in make_plan(dataclasses.replace(study, algorithms=("erm",))).grids[0].terms


def test_fields_that_a_run_shares_with_its_study_are_those_of_the_study():
    same = {
        "accumulate": 2, "clip_norm": 0.5, "precision": "bf16", "averaging": "ema", "compile": True,
        "schedule": "cosine", "warm_up": 20, "layer_decay": 0.75, "l2_sp": 0.01,
        "protocol": "domainbed-head", "steps": 400, "checkpoint_freq": 50, "model": "small_lenet",
    }  # fmt: skip
    plan = make_plan(Study(optimizers=("adam",), targets=("0",), trials=1, **same))
    [spec] = plan.runs
    assert {name: getattr(spec, name) for name in same} == same
