"""Measures are scikit-learn's and torchmetrics', and undefined where there is nothing to measure."""

import doctest
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import special, stats
from sklearn import metrics
from torchmetrics.functional.classification import binary_calibration_error

from plugin_files import forgotten
from shiftproof.base.registry import UnknownNameError
from shiftproof.protocol import (
    MEASURES,
    Measure,
    MeasureError,
    Predictions,
    measures_of,
    over_domains,
    score,
)

GUIDE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
OF_LABELS = ("accuracy", "balanced_accuracy", "macro_f1", "worst_class")


def near(values):
    return {
        name: value if value is None else pytest.approx(value, rel=1e-12, abs=1e-12) for name, value in values.items()
    }


def mean_or_none(values):
    return float(np.mean(values)) if values else None


def calibration_error(confidence, right):
    # of the two in torchmetrics, the binary one computes in the precision of what it is given
    return binary_calibration_error(torch.from_numpy(confidence), torch.from_numpy(right).long(), n_bins=15).item()


def reference_of_classes(logits, targets):
    classes = logits.shape[1]
    probabilities, predicted = special.softmax(logits, axis=1), logits.argmax(axis=1)
    asked = [1] if classes == 2 else range(classes)
    defined = [(targets == k, probabilities[:, k]) for k in asked if 0 < np.sum(targets == k) < len(targets)]
    return {
        "accuracy": metrics.accuracy_score(targets, predicted),
        "balanced_accuracy": metrics.recall_score(targets, predicted, labels=np.unique(targets), average="macro"),
        "macro_f1": metrics.f1_score(targets, predicted, average="macro"),
        "auroc": mean_or_none([metrics.roc_auc_score(*one) for one in defined]),
        "average_precision": mean_or_none([metrics.average_precision_score(*one) for one in defined]),
        "nll": metrics.log_loss(targets, probabilities, labels=range(classes)),
        "ece": calibration_error(probabilities.max(axis=1), predicted == targets),
        "worst_class": metrics.recall_score(targets, predicted, labels=np.unique(targets), average=None).min(),
    }


def reference_of_labels(logits, targets):
    probabilities, predicted = special.expit(logits), special.expit(logits) > 0.5
    columns = list(zip(targets.T, probabilities.T, predicted.T, strict=True))
    occur = [column for column in columns if column[0].any()]
    both = [column for column in occur if not column[0].all()]
    f1s = [metrics.f1_score(has, found) for has, _, found in occur]
    return {
        "accuracy": np.mean([metrics.accuracy_score(has, found) for has, _, found in columns]),
        "balanced_accuracy": mean_or_none([metrics.balanced_accuracy_score(has, found) for has, _, found in both]),
        "macro_f1": mean_or_none(f1s),
        "auroc": mean_or_none([metrics.roc_auc_score(has, p) for has, p, _ in both]),
        "average_precision": mean_or_none([metrics.average_precision_score(has, p) for has, p, _ in both]),
        "nll": np.mean([metrics.log_loss(has, p, labels=[0, 1]) for has, p, _ in columns]),
        "ece": calibration_error(probabilities.ravel(), targets.ravel()),
        "worst_class": min(f1s, default=None),
    }


@pytest.mark.parametrize(
    ("rows", "classes", "present"),
    [
        (500, 2, [0, 1]),
        (400, 11, range(11)),
        (60, 11, [0, 1, 2, 4, 5, 6, 8]),
        (30, 3, [0, 2]),
        (30, 2, [1]),
        (30, 4, [2]),
        (1, 5, [3]),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_measures_of_classes_are_the_references(rows, classes, present, tied):
    random = np.random.default_rng(rows + classes)
    targets = random.choice(list(present), rows)
    logits = 2 * random.normal(size=(rows, classes)) + np.eye(classes)[targets]
    if tied:
        logits = logits[random.integers(0, min(rows, 8), rows)]
    found = score("classification", logits, targets)
    assert list(found) == measures_of("classification")
    assert found == near(reference_of_classes(logits, targets))
    if len(present) == 1:
        assert found["auroc"] is None
        assert found["average_precision"] is None


@pytest.mark.parametrize("rows", [300, 40, 1])
@pytest.mark.parametrize("tied", [False, True])
def test_measures_of_labels_are_the_references(rows, tied):
    random = np.random.default_rng(rows)
    targets = random.integers(0, 2, (rows, 6))
    targets[:, 2], targets[:, 4] = 0, 1
    logits = 2 * random.normal(size=(rows, 6)) + targets
    if tied:
        logits = np.round(logits)
    found = score("multilabel", logits, targets)
    assert list(found) == measures_of("multilabel")
    assert found == near(reference_of_labels(logits, targets))


def test_a_label_that_is_absent_is_left_out_and_not_zero():
    logits = np.array([[3.0, 1.0], [-3.0, 1.0]])
    with_absent = score("multilabel", logits, np.array([[1, 0], [0, 0]]))
    for name in ("balanced_accuracy", "macro_f1", "auroc", "average_precision", "worst_class"):
        assert with_absent[name] == 1, name
    nothing = score("multilabel", logits, np.zeros((2, 2)))
    assert {name for name, value in nothing.items() if value is None} == {
        "balanced_accuracy", "macro_f1", "auroc", "average_precision", "worst_class"
    }  # fmt: skip


@pytest.mark.parametrize("rows", [500, 2])
def test_measures_of_numbers_are_the_references(rows):
    random = np.random.default_rng(rows)
    targets = 50 + 3 * random.normal(size=rows)
    outputs = targets + random.normal(size=rows)
    assert score("regression", outputs, targets) == near(
        {
            "rmse": metrics.root_mean_squared_error(targets, outputs),
            "mae": metrics.mean_absolute_error(targets, outputs),
            "r2": metrics.r2_score(targets, outputs),
            "pearson": stats.pearsonr(outputs, targets).statistic,
        }
    )


def test_what_targets_that_do_not_vary_leave_undefined():
    found = score("regression", np.array([1.0, 2.0]), np.array([4, 4]))
    assert found == {"rmse": pytest.approx(math.sqrt(6.5)), "mae": 2.5, "r2": None, "pearson": None}
    assert score("regression", np.array([1.0]), np.array([1.5])) == {
        "rmse": 0.5,
        "mae": 0.5,
        "r2": None,
        "pearson": None,
    }
    constant = score("regression", np.array([1.0, 1.0]), np.array([0.0, 2.0]))
    assert constant == {"rmse": 1.0, "mae": 1.0, "r2": 0.0, "pearson": None}


def test_confident_predictions_are_told_apart():
    logits = np.array([[0, 40], [0, 50], [0, 60]])  # whose probabilities of class 1 all round to 1
    found = score("classification", logits.astype(np.float32), np.array([0, 1, 1]))
    assert found["auroc"] == found["average_precision"] == 1
    assert found["nll"] == pytest.approx(40 / 3, rel=1e-12)
    logits = np.array([[0, 40, 0], [0, 50, 0], [0, 60, 0]])
    assert score("classification", logits.astype(float), np.array([0, 1, 1]))["auroc"] > 0.9
    assert score("multilabel", np.array([[40.0], [50.0]]), np.array([[0], [1]]))["auroc"] == 1


def logit(p):
    return math.log(p / (1 - p))


@pytest.mark.parametrize(("confidence", "right"), [(0.9, 1.0), (0.7, 0.25), (0.55, 0.0)])
def test_the_calibration_error_of_one_confidence_is_its_distance_from_the_accuracy(confidence, right):
    logits = np.tile([0.0, logit(confidence)], (4, 1))
    targets = (np.arange(4) < 4 * right).astype(int)
    assert score("classification", logits, targets)["ece"] == pytest.approx(abs(right - confidence), abs=1e-15)


def test_calibration_errors_cancel_within_a_bin_and_not_between_bins():
    def error(confidences, right):
        logits = np.array([[0.0, logit(p)] for p in confidences])
        return score("classification", logits, np.array(right))["ece"]

    # bins end at 0.6, 0.667, 0.733, 0.8 and so on
    assert error([0.61, 0.65], [0, 1]) == pytest.approx(abs(0.5 - 0.63))
    assert error([0.61, 0.7], [0, 1]) == pytest.approx((0.61 + 0.3) / 2)
    assert error([0.61, 0.7, 0.71, 0.9], [0, 1, 0, 1]) == pytest.approx((0.61 + 2 * abs(0.5 - 0.705) + 0.1) / 4)
    certain = np.array([[0.0, 1e6], [1e6, 0.0]])
    assert score("classification", certain, np.array([1, 0]))["ece"] == 0
    assert score("classification", certain, np.array([0, 1]))["ece"] == 1
    # of labels: bins of the probability of the label
    labels = np.array([[logit(0.1), logit(0.12), logit(0.9)]])
    assert score("multilabel", labels, np.array([[0, 0, 1]]))["ece"] == pytest.approx((0.22 + 0.1) / 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e39])
def test_outputs_that_are_not_finite_leave_labels_of_classes_alone(bad):
    random = np.random.default_rng(0)
    logits, targets = random.normal(size=(50, 3)), random.integers(0, 3, 50)
    logits[4, 1] = logits[9, 2] = logits[12] = bad
    found = score("classification", logits, targets)
    predicted = torch.from_numpy(logits).argmax(dim=1).numpy()
    assert {name for name, value in found.items() if value is not None} == set(OF_LABELS)
    assert found["accuracy"] == metrics.accuracy_score(targets, predicted)
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(targets, predicted, average="macro"))
    assert set(score("multilabel", logits, logits > 0).values()) == {None}
    assert set(score("regression", logits[:, 1], targets).values()) == {None}


def test_logits_that_are_all_nan_predict_class_0_as_in_torch():
    logits = np.full((4, 3), math.nan, dtype=np.float32)
    found = score("classification", logits, np.array([0, 1, 1, 2]))
    assert found == {
        "accuracy": 0.25,
        "balanced_accuracy": pytest.approx(1 / 3),
        "macro_f1": pytest.approx(0.4 / 3),
        "auroc": None,
        "average_precision": None,
        "nll": None,
        "ece": None,
        "worst_class": 0.0,
    }


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_outputs_of_less_precision_are_measured_in_float64(dtype):
    random = np.random.default_rng(0)
    logits, targets = random.normal(size=(80, 4)).astype(dtype), random.integers(0, 4, 80)
    numbers = random.normal(size=80).astype(dtype)
    assert score("classification", logits, targets) == score("classification", logits.astype(float), targets)
    assert score("regression", numbers, targets) == score("regression", numbers.astype(float), targets)
    labels = logits > 0.3
    for of_dtype in (int, float, np.uint8):
        assert score("multilabel", logits, labels.astype(of_dtype)) == score("multilabel", logits, labels)


def test_predictions_derive_once_and_leave_their_arrays_alone():
    logits, targets = np.array([[0.0, 2.0], [1.0, 0.0]]), np.array([1, 1])
    predictions = Predictions("classification", logits, targets)
    np.testing.assert_allclose(predictions.probabilities, special.softmax(logits, axis=1), rtol=1e-15)
    for name in ("predicted", "probabilities", "log_probabilities", "counts", "threshold_counts"):
        assert getattr(predictions, name) is getattr(predictions, name)
    tp, fp, fn, tn = (counts.tolist() for counts in predictions.counts)
    assert (tp, fp, fn, tn) == ([0, 1], [1, 0], [0, 1], [1, 0])
    for name in ("outputs", "targets", "predicted", "probabilities"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(predictions, name)[0] = 0
    logits[0, 0], targets[0] = 9.0, 0  # the caller's stay the caller's
    assert predictions.outputs[0, 0] == 0
    assert predictions.targets[0] == 1


@pytest.mark.parametrize(
    ("task", "outputs", "targets", "message"),
    [
        ("clasification", np.zeros((1, 2)), np.zeros(1, int), "not 'clasification'. Did you mean classification?"),
        ("classification", [[0.0]], np.zeros(1, int), "outputs of classification must be a NumPy array, not list"),
        (
            "classification",
            np.zeros((1, 2)),
            torch.zeros(1),
            "targets of classification must be a NumPy array, not Ten",
        ),
        ("classification", np.zeros((1, 2), int), np.zeros(1, int), "outputs .* floating-point numbers, not int64"),
        ("classification", np.zeros((1, 2)), np.zeros(1), "targets .* must be integers, not float64"),
        ("classification", np.zeros(3), np.zeros(3, int), r"shape \(n, classes\), .* not \(3,\)"),
        ("classification", np.zeros((0, 2)), np.zeros(0, int), r"at least one row, not \(0, 2\)"),
        ("classification", np.zeros((3, 2)), np.zeros(4, int), r"targets must have shape \(3,\), .* not \(4,\)"),
        ("classification", np.zeros((2, 2)), np.array([0, 2]), "classes from 0 to 1, one for each output, not 2"),
        ("classification", np.zeros((2, 2)), np.array([0, -1]), "classes from 0 to 1, one for each output, not -1"),
        ("multilabel", np.zeros((2, 3)), np.zeros((2, 2)), r"targets must have shape \(2, 3\)"),
        ("multilabel", np.zeros((2, 3)), np.full((2, 3), 0.5), "targets must be 0 or 1, not 0.5"),
        ("regression", np.zeros((2, 1)), np.zeros(2), r"shape \(n,\), .* not \(2, 1\)"),
        ("regression", np.zeros(2), np.array([0, math.nan]), "targets must be finite numbers .* not nan"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(task, outputs, targets, message):
    with pytest.raises(ValueError, match=message):
        score(task, outputs, targets)


def share_of_class_0(predictions):
    """Share of rows that are predicted as class 0."""
    return (predictions.predicted == 0).mean()


@pytest.fixture
def own():
    """A function that registers a measure of classes, which is forgotten at the end."""
    with forgotten():
        yield lambda compute, **fields: MEASURES.register(
            "own", Measure(**{"compute": compute, "tasks": ("classification",), "greater_is_better": True, **fields})
        )


LOGITS, TARGETS = np.array([[2.0, 0.0], [2.0, 1.0], [0.0, 1.0]]), np.array([0, 1, 1])


def test_an_own_measure_is_scored_after_ours(own):
    own(share_of_class_0)
    found = score("classification", LOGITS, TARGETS)
    assert list(found) == [*measures_of("multilabel"), "own"]
    assert found["own"] == pytest.approx(2 / 3)
    assert type(found["own"]) is float
    assert MEASURES.summary("own") == "Share of rows that are predicted as class 0."


def test_an_own_measure_need_not_know_of_outputs_that_are_not_finite(own):
    def mean_output(predictions):
        return predictions.outputs.mean()

    own(mean_output)
    assert score("classification", LOGITS * math.nan, TARGETS)["own"] is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [(math.nan, "nan"), (math.inf, "inf"), ("0.5", "'0.5'"), (True, "True"), (np.zeros(2), "array"), (10**400, "10+")],
)
def test_what_is_no_measure_is_an_error_that_names_it(own, value, shown):
    own(lambda predictions: value)
    message = f"measure 'own' must return a finite number, or None where it is undefined, not {shown}"
    with pytest.raises(MeasureError, match=message):
        score("classification", LOGITS, TARGETS)


def test_an_error_in_a_measure_names_it(own):
    own(lambda predictions: predictions.nothing)
    with pytest.raises(MeasureError, match=r"measure 'own' raised AttributeError: .*nothing"):
        score("classification", LOGITS, TARGETS)


def test_a_measure_cannot_change_what_others_read(own):
    own(lambda predictions: predictions.probabilities.sort())
    with pytest.raises(MeasureError, match=r"measure 'own' raised ValueError: .*read-only"):
        score("classification", LOGITS, TARGETS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"compute": 1}, "compute of Measure must be a function or a class, not 1"),
        ({"compute": lambda outputs, targets: 0.0}, "compute of Measure must take 1 argument"),
        ({"tasks": ()}, "tasks of Measure must be a tuple of classification, multilabel, regression"),
        ({"tasks": "regression"}, r'as in \("classification",\), not \'regression\''),
        ({"tasks": ("ranking",)}, r"not \('ranking',\)"),
        ({"tasks": ("regression",), "of_labels": True}, "of_labels of Measure must be false in regression"),
        ({"greater_is_better": "yes"}, "greater_is_better of Measure must be true or false, not 'yes'"),
        ({"undefined": None}, "undefined of Measure must be a text, not None"),
        ({"percent": 1}, "percent of Measure must be true or false, not 1"),
        ({"of_labels": 0}, "of_labels of Measure must be true or false, not 0"),
    ],
)
def test_a_wrong_field_is_named(own, fields, message):
    with pytest.raises(ValueError, match=message):
        own(**{"compute": share_of_class_0, **fields})


def test_the_registry_names_near_measures_and_refuses_what_is_none():
    with pytest.raises(
        UnknownNameError, match=r"unknown measure 'acuracy'. Did you mean accuracy.* Valid names: accuracy"
    ):
        MEASURES["acuracy"]
    with pytest.raises(
        ValueError, match=r"measure 'own' must be an instance of shiftproof\.protocol\.Measure, not a func"
    ):
        MEASURES.register("own", share_of_class_0)


def test_over_domains():
    assert over_domains([0.5, 0.75, 1.0], "mean", True) == 0.75
    assert over_domains([0.5, 0.75, 1.0], "worst", True) == 0.5
    assert over_domains([0.5, 0.75, 1.0], "worst", False) == 1.0
    for how in ("mean", "worst"):
        assert over_domains([0.5, None], how, True) is None
        assert over_domains([], how, True) is None
    with pytest.raises(ValueError, match="how must be mean or worst, not 'median'"):
        over_domains([0.5], "median", True)


def test_the_guide_lists_every_measure_with_its_direction():
    listed = re.findall(r"^\| `(\w+)` \| (higher|lower) \|", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name: direction == "higher" for name, direction in listed} == {
        name: MEASURES[name].greater_is_better for name in MEASURES
    }


def test_the_example_of_the_guide_runs():
    [example] = re.findall(r"```pycon\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    with forgotten():
        test = doctest.DocTestParser().get_doctest(example, {}, GUIDE.name, str(GUIDE), 0)
        assert doctest.DocTestRunner().run(test).failed == 0
