"""What a model predicts for one domain, and what several measures need of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shiftproof.base.choices import TASKS, Task
from shiftproof.base.registry import did_you_mean

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_GREATEST = float(np.finfo(np.float32).max)


class _Form(NamedTuple):
    """What arrays of a task must look like: their shapes, in words, and the kinds of the targets' dtype."""

    outputs: str
    targets: str
    kinds: str


_FORMS: dict[Task, _Form] = {
    "classification": _Form("(n, classes)", "(n,)", "iu"),
    "multilabel": _Form("(n, labels)", "(n, labels)", "biuf"),
    "regression": _Form("(n,)", "(n,)", "iuf"),
}


class Counts(NamedTuple):
    """How often predicted labels are right and wrong, by class (each against all others) or by label.

    Attributes:
        tp: rows that have the label and for which it is predicted, int64 (columns,).
        fp: rows that lack it and for which it is predicted.
        fn: rows that have it and for which it is not predicted.
        tn: rows that lack it and for which it is not predicted.
    """

    tp: Integers
    fp: Integers
    fn: Integers
    tn: Integers


class ThresholdCounts(NamedTuple):
    """How many rows reach the score of a row that has a label, for each of these rows, from the lowest score.

    Attributes:
        tp: rows that have the label and score at least as high, itself among them, int64 (rows that have it,).
        reached: all rows that score at least as high, in the same order.
        exceeded: all rows that score higher.
    """

    tp: Integers
    reached: Integers
    exceeded: Integers


@dataclass(frozen=True, eq=False)
class Predictions:
    """Outputs of a model and their targets; what measures derive from them is computed once, when first read.

    All arrays are read-only, because measures share them.

    Attributes:
        task: what is predicted.
        outputs: float64, made of what is given in any precision: logits (n, classes) in classification, logits
            (n, labels) in multilabel, and values (n,) in regression.
        targets: the class of each row, int64 (n,); in multilabel 0 or 1 for each label, int64 (n, labels); in
            regression values, float64 (n,).

    Raises:
        ValueError: the task is unknown, there are no rows, or an array has the wrong type, shape or values. Outputs
            may be NaN or infinite.
    """

    task: Task
    outputs: Floats
    targets: NDArray[Any]

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(
                f"task must be {', '.join(TASKS[:-1])} or {TASKS[-1]}, not {self.task!r}."
                f"{did_you_mean(str(self.task), TASKS)}"
            )
        _check(self.task, self.outputs, self.targets)
        of_targets = np.float64 if self.task == "regression" else np.int64
        object.__setattr__(self, "outputs", _fixed(self.outputs.astype(np.float64)))
        object.__setattr__(self, "targets", _fixed(self.targets.astype(of_targets)))

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def is_finite(self) -> bool:
        """Whether every output is a number of float32's range: squares and sums then do not overflow."""
        return bool(self.outputs.min() >= -_GREATEST and self.outputs.max() <= _GREATEST)  # both are NaN if one is

    @cached_property
    def has_labels(self) -> bool:
        """Whether labels are predicted: always in classification, in multilabel where outputs are finite."""
        return self.task == "classification" or (self.task == "multilabel" and self.is_finite)

    @cached_property
    def predicted(self) -> Integers:
        """The predicted labels, shaped as the targets.

        In classification the class of the highest logit, the first on a tie; NaN counts as highest, as in
        `torch.argmax`. In multilabel 1 where the probability is above 0.5.
        """
        if self.task == "multilabel":
            return _fixed((self.outputs > 0).astype(np.int64))
        return _fixed(self.outputs.argmax(axis=1))

    @cached_property
    def log_probabilities(self) -> Floats:
        """Logarithms of the probabilities, shaped as the outputs.

        They tell apart what is so probable that it rounds to 1.
        """
        if self.task == "multilabel":
            return _fixed(-np.logaddexp(0.0, -self.outputs))
        below_top = self.outputs - self.outputs.max(axis=1, keepdims=True)
        of_others = np.exp(below_top)
        of_others[np.arange(len(self)), self.predicted] = 0.0
        return _fixed(below_top - np.log1p(of_others.sum(axis=1, keepdims=True)))

    @cached_property
    def probabilities(self) -> Floats:
        """The probability of each class (softmax) or, in multilabel, of each label (sigmoid), shaped as the outputs."""
        return _fixed(np.exp(self.log_probabilities))

    @cached_property
    def counts(self) -> Counts:
        """Right and wrong labels by class or label."""
        if self.task == "multilabel":
            has, predicted = self.targets.sum(axis=0), self.predicted.sum(axis=0)
            tp = (self.targets & self.predicted).sum(axis=0)
        else:
            has, predicted, tp = (
                np.bincount(labels, minlength=self.outputs.shape[1])
                for labels in (self.targets, self.predicted, self.targets[self.targets == self.predicted])
            )
        fp, fn = predicted - tp, has - tp
        return Counts(*map(_fixed, (tp, fp, fn, len(self) - tp - fp - fn)))

    @cached_property
    def threshold_counts(self) -> list[ThresholdCounts]:
        """The counts of every class or label that some rows have and others lack; of two classes, of class 1 alone."""
        if self.task == "multilabel":
            columns: Iterable[tuple[Floats, NDArray[np.bool_]]] = zip(self.outputs.T, self.targets.T > 0, strict=True)
        else:
            classes = [1] if self.outputs.shape[1] == 2 else range(self.outputs.shape[1])
            columns = ((self.log_probabilities[:, label], self.targets == label) for label in classes)
        return [_threshold_counts(scores, has) for scores, has in columns if has.any() and not has.all()]


def _threshold_counts(scores: Floats, has: NDArray[np.bool_]) -> ThresholdCounts:
    own, ordered = np.sort(scores[has]), np.sort(scores)
    tp = len(own) - np.searchsorted(own, own)
    reached, exceeded = (len(ordered) - np.searchsorted(ordered, own, side) for side in ("left", "right"))
    return ThresholdCounts(*map(_fixed, (tp, reached, exceeded)))


def _fixed(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


def _check(task: Task, outputs: NDArray[Any], targets: NDArray[Any]) -> None:
    form = _FORMS[task]
    _check_form(f"outputs of {task}", outputs, "f", form.outputs)
    _check_form(f"targets of {task}", targets, form.kinds, form.targets)
    expected = outputs.shape[: targets.ndim]
    if targets.shape != expected:
        raise ValueError(f"targets must have shape {expected}, as the outputs have, not {targets.shape}")
    if task == "multilabel":
        valid, are = (targets == 0) | (targets == 1), "0 or 1"
    elif task == "classification":
        classes = outputs.shape[1]
        valid, are = (targets >= 0) & (targets < classes), f"classes from 0 to {classes - 1}, one for each output"
    else:
        valid, are = np.abs(targets) <= _GREATEST, "finite numbers of float32's range"
    if not valid.all():
        raise ValueError(f"targets must be {are}, not {targets[~valid][0]}")


def _check_form(what: str, array: object, kinds: str, shape: str) -> None:
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{what} must be a NumPy array, not {type(array).__name__}")  # noqa: TRY004
    if array.dtype.kind not in kinds:
        wanted = {"f": "floating-point numbers", "iu": "integers"}.get(kinds, "numbers")
        raise ValueError(f"{what} must be {wanted}, not {array.dtype}")
    if array.ndim != (2 if ", " in shape else 1) or array.size == 0:
        raise ValueError(f"{what} must have the shape {shape}, with at least one row, not {array.shape}")
