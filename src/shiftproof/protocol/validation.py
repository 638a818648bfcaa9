"""Validation scores computed from one evaluation of a run."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from shiftproof.base.choices import Task
from shiftproof.protocol.measures import MEASURES

DEFAULT_METRIC: dict[Task, str] = {
    "classification": "accuracy",
    "multilabel": "average_precision",
    "regression": "rmse",
}
"""The measure that selects steps and settings, and that tables show, unless another is named."""


def measured(score: Mapping[str, Any], metric: str) -> float | None:
    """Return a measure of one part of a domain; None if it is undefined there, or was not recorded.

    Args:
        score: the part's scores in a run's metrics.
        metric: name of the measure.
    """
    if metric in (measures := score.get("measures", {})):
        value: float | None = measures[metric]
        return value
    return score.get("accuracy") if metric == "accuracy" else None  # of runs from before measures were recorded


def mean_measure(scores: Sequence[Mapping[str, Any]], metric: str) -> float | None:
    """Return the unweighted mean of a measure over parts of domains; None if it is undefined in one.

    Args:
        scores: the parts' scores in a run's metrics.
        metric: name of the measure.
    """
    values = [measured(score, metric) for score in scores]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def goodness(value: float | None, metric: str) -> float:
    """Return a number that is greater for a better value of a measure; minus infinity for an undefined one."""
    if value is None:
        return -math.inf
    return value if MEASURES[metric].greater_is_better else -value


def training_domain_validation(
    record: dict[str, Any], targets: Collection[str], metric: str = "accuracy"
) -> float | None:
    """Return the unweighted mean of a measure on the held-out parts of the source domains; None if one is undefined.

    Args:
        record: one evaluation from a run's metrics.
        targets: the domains that are not sources.
        metric: name of the measure.
    """
    return mean_measure([parts["out"] for name, parts in record["domains"].items() if name not in targets], metric)


def validation_loss(record: dict[str, Any], targets: Collection[str]) -> float:
    """Return the unweighted mean loss on the held-out parts of the source domains; infinite if one is not finite."""
    losses = [parts["out"]["loss"] for name, parts in record["domains"].items() if name not in targets]
    return math.inf if None in losses else math.fsum(losses) / len(losses)
