import pytest

from shiftproof.studies.selection import last, oracle, training_domain


def _record(step, a_out, b_out, target_in, target_out=None):
    def score(accuracy, per_class=(0.0,)):
        return {"accuracy": accuracy, "per_class": list(per_class)}

    target = {"in": score(target_in, (target_in, None, 0.0))}
    if target_out is not None:
        target["out"] = score(target_out)
    return {
        "step": step,
        "loss": 1.0,
        "domains": {"a": {"out": score(a_out)}, "b": {"out": score(b_out)}, "t": target},
    }


CURVE = [_record(10, 0.5, 0.7, 0.9), _record(20, 0.9, 0.5, 0.4), _record(30, 0.8, 0.6, 0.6, target_out=0.3)]


def test_training_domain_takes_the_earliest_best_mean_over_sources():
    selected = training_domain(CURVE, ["t"])
    assert selected == {"step": 20, "validation": pytest.approx(0.7), "accuracy": 0.4, "class_mean": 0.2}


def test_oracle_takes_the_last_checkpoint_and_validates_on_the_target():
    assert oracle(CURVE, ["t"]) == {"step": 30, "validation": 0.3, "accuracy": 0.6, "class_mean": 0.3}


def test_last_validates_nothing():
    assert last(CURVE, ["t"]) == {"step": 30, "validation": None, "accuracy": 0.6, "class_mean": 0.3}


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
    assert training_domain(curve, ["s", "t"])["validation"] == 0.25
    assert training_domain(curve, ["s", "t"])["accuracy"] == pytest.approx(0.6)
    assert oracle(curve, ["s", "t"])["validation"] == pytest.approx(0.8)
