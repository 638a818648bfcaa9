import pytest

from shiftproof.base.registry import UnknownNameError
from shiftproof.protocol import RULES, select
from shiftproof.training import PROTOCOLS

OURS, SWAD = PROTOCOLS["shiftproof"], PROTOCOLS["swad"]


def _score(accuracy, per_class=(0.0,)):
    return {"accuracy": accuracy, "per_class": list(per_class)}


def _record(step, a_out, b_out, target_in, target_out=None, **more):
    target = {"in": _score(target_in, (target_in, None, 0.0))}
    if target_out is not None:
        target["out"] = _score(target_out)
    return {
        "step": step,
        "loss": 1.0,
        "domains": {"a": {"out": _score(a_out)}, "b": {"out": _score(b_out)}, "t": target},
        **more,
    }


def _chosen(step, validation, accuracy, class_mean):
    return {
        "step": step,
        "validation": validation,
        "accuracy": accuracy,
        "class_mean": class_mean,
        "measures": {"accuracy": accuracy},
    }


CURVE = [
    _record(10, 0.5, 0.7, 0.9, target_out=0.8),
    _record(20, 0.9, 0.5, 0.4, target_out=0.8),
    _record(30, 0.8, 0.6, 0.6, target_out=0.3),
]


def test_training_domain_takes_the_earliest_best_mean_over_sources():
    selected = select("training_domain", CURVE, ["t"], OURS)
    assert selected == _chosen(20, pytest.approx(0.7), 0.4, 0.2)


@pytest.mark.parametrize("dialect", ["shiftproof", "domainbed", "domainbed-head"])
def test_oracle_takes_the_last_checkpoint_and_validates_on_the_target(dialect):
    selected = _chosen(30, 0.3, 0.6, 0.3)
    assert select("oracle", CURVE, ["t"], PROTOCOLS[dialect]) == selected


def test_oracle_of_swad_takes_the_earliest_best_checkpoint_on_the_target():
    assert select("oracle", CURVE, ["t"], SWAD) == _chosen(10, 0.8, 0.9, 0.45)


def test_last_validates_nothing():
    assert select("last", CURVE, ["t"], OURS) == _chosen(30, None, 0.6, 0.3)


def test_several_targets_are_averaged_and_are_no_sources():
    curve = [
        {
            "step": 1,
            "loss": 0.0,
            "domains": {
                "a": {"out": {"accuracy": 0.25, "per_class": [0.25]}},
                "s": {"in": {"accuracy": 0.5, "per_class": [0.5]}, "out": {"accuracy": 1.0, "per_class": [1.0]}},
                "t": {"in": {"accuracy": 0.7, "per_class": [0.7]}, "out": {"accuracy": 0.6, "per_class": [0.6]}},
            },
        }
    ]
    assert select("training_domain", curve, ["s", "t"], OURS)["validation"] == 0.25
    assert select("training_domain", curve, ["s", "t"], OURS)["accuracy"] == pytest.approx(0.6)
    assert select("oracle", curve, ["s", "t"], OURS)["validation"] == pytest.approx(0.8)
    assert select("leave_one_domain_out", curve, ["s", "t"], OURS, {"a": curve}) is None


def _pair(other, accuracies, **more):
    """The evaluations of the run without the target and one more domain, by step."""
    return [
        {"step": step, "loss": 1.0, "domains": {other: {"in": _score(accuracy), "out": _score(0.99)}}, **more}
        for step, accuracy in accuracies.items()
    ]


def test_leave_one_domain_out_takes_the_earliest_best_step_of_the_runs_that_validate():
    pairs = {"a": _pair("a", {10: 0.2, 20: 0.6, 30: 0.4}), "b": _pair("b", {10: 0.1, 20: 0.2, 30: 0.4})}
    selected = select("leave_one_domain_out", CURVE, ["t"], OURS, pairs)
    assert selected == _chosen(20, pytest.approx(0.4), 0.4, 0.2)


def test_leave_one_domain_out_looks_at_steps_that_all_runs_have():
    pairs = {"a": _pair("a", {10: 0.9, 30: 0.1, 40: 1.0}), "b": _pair("b", {20: 0.9, 30: 0.2, 40: 1.0})}
    selected = select("leave_one_domain_out", CURVE, ["t"], OURS, pairs)
    assert (selected["step"], selected["validation"]) == (30, pytest.approx(0.15))
    assert select("leave_one_domain_out", CURVE, ["t"], OURS, {"a": pairs["a"], "b": _pair("b", {20: 0.9})}) is None


def test_leave_one_domain_out_needs_all_runs_and_what_they_must_score():
    pairs = {"a": _pair("a", {10: 0.2, 30: 0.4}), "b": _pair("b", {10: 0.1, 30: 0.4})}
    assert select("leave_one_domain_out", CURVE, ["t"], OURS, pairs)["step"] == 30
    assert select("leave_one_domain_out", CURVE, ["t"], OURS, {"a": pairs["a"]}) is None
    assert select("leave_one_domain_out", CURVE, ["t"], OURS, {}) is None
    del pairs["b"][0]["domains"]["b"]["in"]  # of a run that was not told to score it
    assert select("leave_one_domain_out", CURVE, ["t"], OURS, pairs) is None


def test_rules_read_averaged_weights_alone_where_there_are_any():
    averaged = _record(30, 0.1, 0.3, 0.5, target_out=0.2, averaged=[11, 30])
    expected = {"step": 30, "accuracy": 0.5, "class_mean": 0.25, "measures": {"accuracy": 0.5}}
    pairs = {
        "a": [*_pair("a", {30: 1.0}), *_pair("a", {20: 0.6}, averaged=[1, 20])],  # it stopped earlier
        "b": [*_pair("b", {30: 1.0}), *_pair("b", {30: 0.4}, averaged=[1, 30])],
    }
    for rule, validation in (("training_domain", 0.2), ("leave_one_domain_out", 0.5), ("oracle", 0.2), ("last", None)):
        for protocol in (OURS, SWAD):
            validated = validation and pytest.approx(validation)
            selected = select(rule, [*CURVE, averaged], ["t"], protocol, pairs)
            assert selected == {**expected, "validation": validated}


def test_rules_are_selected_by_name():
    pairs = {"a": _pair("a", {10: 0.5}), "b": _pair("b", {10: 0.5})}
    steps = [select(rule, CURVE, ["t"], SWAD, pairs)["step"] for rule in RULES]
    assert dict(zip(RULES, steps, strict=True)) == {
        "training_domain": 20,
        "leave_one_domain_out": 10,
        "oracle": 10,
        "last": 30,
    }
    assert select("leave_one_domain_out", CURVE, ["t"], OURS) is None
    with pytest.raises(UnknownNameError, match=r"unknown selection rule 'orakel'\. Did you mean oracle"):
        select("orakel", CURVE, ["t"], OURS)
