"""Measures of a model's predictions for one domain, and how they are put together over domains."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from numpy.typing import NDArray

from shiftproof.base.choices import TASKS, Task
from shiftproof.base.hparams import is_finite
from shiftproof.base.registry import Registry, check_callable
from shiftproof.protocol.classification_measures import (
    accuracy,
    auroc,
    average_precision,
    balanced_accuracy,
    ece,
    macro_f1,
    nll,
    worst_class,
)
from shiftproof.protocol.predictions import Predictions
from shiftproof.protocol.regression_measures import mae, pearson, r2, rmse


@dataclass(frozen=True)
class Measure:
    """How good predictions for one domain are, in one number.

    Attributes:
        compute: returns the measure of predictions, and None where it is undefined; depends on nothing else.
        tasks: the tasks that it is a measure of.
        greater_is_better: whether a greater value is better.
        undefined: when it is undefined, as in "no label occurs"; empty if only outputs that are not finite undo it.
        percent: whether tables show it in percent; it is a share of 1 then.
        of_labels: whether it reads no more than predicted labels, which classification has even where an output is not
            finite. Every other measure is undefined there, and `score` does not compute it.

    Raises:
        ValueError: a field is not as described here.
    """

    compute: Callable[[Predictions], float | None]
    tasks: tuple[Task, ...]
    greater_is_better: bool
    undefined: str = ""
    percent: bool = False
    of_labels: bool = False

    def __post_init__(self) -> None:
        check_callable("compute of Measure", self.compute, 1)
        if not isinstance(self.tasks, tuple) or not self.tasks or not set(TASKS).issuperset(self.tasks):
            raise ValueError(
                f'tasks of Measure must be a tuple of {", ".join(TASKS)}, as in ("classification",), not {self.tasks!r}'
            )
        if not isinstance(self.undefined, str):
            raise ValueError(f"undefined of Measure must be a text, not {self.undefined!r}")  # noqa: TRY004
        for name in ("greater_is_better", "percent", "of_labels"):
            if not isinstance(value := getattr(self, name), bool):
                raise ValueError(f"{name} of Measure must be true or false, not {value!r}")  # noqa: TRY004
        if self.of_labels and "regression" in self.tasks:
            raise ValueError("of_labels of Measure must be false in regression, which predicts no labels")

    @property
    def documented(self) -> object:
        """What its docstring describes, for `Registry.summary`."""
        return self.compute


class MeasureError(ValueError):
    """A measure of a plug-in raised an error or returned something that is neither a finite number nor None."""


MEASURES: Registry[Measure] = Registry("measure", instances_of=Measure)
"""All measures by name: `MEASURES.register(name, measure)` adds one."""


def measures_of(task: Task) -> list[str]:
    """Return the names of a task's measures, in the registry's order.

    Examples:
        >>> from shiftproof.protocol import measures_of
        >>> "rmse" in measures_of("regression"), "accuracy" in measures_of("classification")
        (True, True)
    """
    return [name for name in MEASURES if task in MEASURES[name].tasks]


def score(
    task: Task, outputs: NDArray[Any], targets: NDArray[Any], names: Sequence[str] | None = None
) -> dict[str, float | None]:
    """Return measures of the task.

    Args:
        task: what is predicted.
        outputs: logits (n, classes) or (n, labels), or in regression values (n,); floating-point numbers.
        targets: what is right, as in `Predictions`.
        names: some of its measures; None for all, in the registry's order.

    Returns:
        The measures by name; None for one that is undefined for these predictions. Where an output is not finite, that
        is every measure but those `of_labels` in classification.

    Raises:
        ValueError: the task is unknown, there are no rows, or an array has the wrong type, shape or values.
        MeasureError: a plug-in's measure raised an error or returned something else.
    """
    predictions = Predictions(task, outputs, targets)
    return {name: _computed(name, predictions) for name in names or measures_of(task)}


def _computed(name: str, predictions: Predictions) -> float | None:
    measure = MEASURES[name]
    if not (predictions.has_labels if measure.of_labels else predictions.is_finite):
        return None
    if MEASURES.place(name).is_ours:
        return measure.compute(predictions)
    try:
        value: Any = measure.compute(predictions)
    except Exception as error:
        raise MeasureError(f"measure '{name}' raised {type(error).__name__}: {error}") from error
    if value is None:
        return None
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not is_finite(value):
        raise MeasureError(
            f"measure '{name}' must return a finite number, or None where it is undefined, not {value!r}"
        )
    return float(value)  # JSON does not have NumPy's numbers


def over_domains(
    values: Sequence[float | None], how: Literal["mean", "worst"], greater_is_better: bool
) -> float | None:
    """Put a measure of several domains into one number.

    Args:
        values: the measure of each domain.
        how: "mean" is unweighted, so that large domains do not count more; "worst" is that of the worst domain.
        greater_is_better: whether a greater value is better, which "worst" depends on.

    Returns:
        None if it is undefined in any domain, because the mean or worst of the others would be that of easier or
        harder domains, or if there are no domains.

    Raises:
        ValueError: ``how`` is neither.
    """
    if how not in ("mean", "worst"):
        raise ValueError(f"how must be mean or worst, not {how!r}")
    defined = [value for value in values if value is not None]
    if not defined or len(defined) < len(values):
        return None
    if how == "mean":
        return math.fsum(defined) / len(defined)
    return min(defined) if greater_is_better else max(defined)


_LABELLED: tuple[Task, ...] = ("classification", "multilabel")
_ONE_SIDED = "no class has rows here both of it and of others, or no label both values"

MEASURES.register("accuracy", Measure(accuracy, _LABELLED, True, percent=True, of_labels=True))
MEASURES.register(
    "balanced_accuracy",
    Measure(balanced_accuracy, _LABELLED, True, "no label has both values here", percent=True, of_labels=True),
)
MEASURES.register("macro_f1", Measure(macro_f1, _LABELLED, True, "no label occurs here", percent=True, of_labels=True))
MEASURES.register("auroc", Measure(auroc, _LABELLED, True, _ONE_SIDED, percent=True))
MEASURES.register("average_precision", Measure(average_precision, _LABELLED, True, _ONE_SIDED, percent=True))
MEASURES.register("nll", Measure(nll, _LABELLED, False))
MEASURES.register("ece", Measure(ece, _LABELLED, False, percent=True))
MEASURES.register(
    "worst_class", Measure(worst_class, _LABELLED, True, "no label occurs here", percent=True, of_labels=True)
)
MEASURES.register("rmse", Measure(rmse, ("regression",), False))
MEASURES.register("mae", Measure(mae, ("regression",), False))
MEASURES.register("r2", Measure(r2, ("regression",), True, "all targets are equal here"))
MEASURES.register("pearson", Measure(pearson, ("regression",), True, "all targets, or all outputs, are equal here"))
