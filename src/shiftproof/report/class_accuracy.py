"""Accuracy per unseen domain and class, at the selected checkpoints, averaged over trials."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shiftproof.studies import Grid, Method, Outcome, Results


@dataclass(frozen=True)
class DomainAccuracy:
    """A method's accuracy on one domain that was left out.

    Attributes:
        method: the method that was trained.
        target: the table's column; names several domains if they were left out together.
        domain: the domain that was scored.
        accuracy: accuracy over all images, averaged over trials; None if no run finished.
        per_class: accuracy of each class, averaged over trials; None for a class without images in all trials.
        trials: number of trials that finished.
    """

    method: Method
    target: str
    domain: str
    accuracy: float | None
    per_class: list[float | None]
    trials: int


def domain_accuracies(results: Results, grid: Grid, method: Method) -> list[DomainAccuracy]:
    """Return a method's accuracies on every domain that is left out, by the study's first selection rule."""
    result = []
    for targets in grid.columns:
        outcomes = results.outcomes(grid, results.plan.selection[0], method, targets)
        records = [_selected_record(one) for one in outcomes if one.selected]
        for domain in targets:
            scores: list[dict[str, Any]] = [record["domains"][domain]["in"] for record in records]
            result.append(
                DomainAccuracy(
                    method,
                    "+".join(targets),
                    domain,
                    _mean([score["accuracy"] for score in scores]),
                    [_mean([score["per_class"][i] for score in scores]) for i in range(len(grid.classes))],
                    len(records),
                )
            )
    return result


def class_accuracy_csv(classes: Sequence[str], accuracies: Sequence[DomainAccuracy]) -> str:
    """Return accuracies as CSV, one line per method, domain and class, in [0, 1]."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*Method._fields, "target", "domain", "class", "accuracy", "trials"])
    for one in accuracies:
        for name, accuracy in zip(classes, one.per_class, strict=True):
            writer.writerow([*one.method, one.target, one.domain, name, accuracy, one.trials])
    return file.getvalue()


def _selected_record(outcome: Outcome) -> dict[str, Any]:
    """Return the evaluation that was selected."""
    assert outcome.selected is not None  # noqa: S101  (asked before)
    step = outcome.selected["step"]
    # from the end, because rules prefer averaged weights, which are scored after the curve at its last step
    return next(record for record in reversed(outcome.metrics) if record["step"] == step)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
