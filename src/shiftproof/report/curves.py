"""Training curves: quantities over the steps of runs, trial by trial and averaged."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shiftproof.protocol import Record, Unit, mean_measure, training_domain_validation
from shiftproof.studies import Grid, Method, Outcome, Results


class Point(NamedTuple):
    """A value at a step."""

    step: int
    value: float


@dataclass(frozen=True)
class Quantity:
    """A quantity that every evaluation of a run records.

    Attributes:
        name: name of its files.
        title: title of its figure.
        label: label of its axis.
        percent: whether it is in [0, 1], and drawn in per cent.
        read: reads its value from an evaluation, given the domains left out; None where it is undefined.
    """

    name: str
    title: str
    label: str
    percent: bool
    read: Callable[[Record, Sequence[str]], float | None]


@dataclass(frozen=True)
class Curve:
    """A quantity over the steps of a method on a target.

    Attributes:
        method: the method that was trained.
        target: the table's column.
        trials: the points of every trial that finished, by trial seed.
    """

    method: Method
    target: str
    trials: dict[int, list[Point]]

    @property
    def mean(self) -> list[Point]:
        """The mean over the trials that finished, at the steps that all of them reached."""
        trials = [dict(points) for points in self.trials.values()]
        steps = [step for step in trials[0] if all(step in one for one in trials)] if trials else []
        return [Point(step, sum(one[step] for one in trials) / len(trials)) for step in steps]


def quantities(metric: str) -> tuple[Quantity, ...]:
    """Return the quantities that a report draws of a data set.

    Args:
        metric: the measure that its tables show.
    """

    def unseen(record: Record, targets: Sequence[str]) -> float | None:
        """Return the measure on the target's held-out part, which every evaluation scores; the mean over several."""
        return mean_measure([record["domains"][target]["out"] for target in targets], metric)

    unit = Unit.of(metric)
    label = f"{metric}, %" if unit.percent else metric
    title = metric[0].upper() + metric[1:].replace("_", " ")
    return (
        Quantity("unseen", f"{title} on the unseen domain", label, unit.percent, unseen),
        Quantity(
            "validation",
            f"Validation {metric}",
            label,
            unit.percent,
            lambda record, targets: training_domain_validation(record, targets, metric),
        ),
        Quantity("loss", "Training loss", "loss", False, lambda record, targets: float(record["loss"])),
    )


def curves(results: Results, grid: Grid, quantity: Quantity) -> list[Curve]:
    """Return the curves of a quantity, one per target and method; they are empty without a finished run."""

    def points(outcome: Outcome) -> list[Point]:
        evaluations = [record for record in outcome.metrics if "averaged" not in record]  # which belongs to no step
        values = [(record["step"], quantity.read(record, outcome.targets)) for record in evaluations]
        return [Point(step, value) for step, value in values if value is not None]

    def curve(method: Method, targets: tuple[str, ...]) -> Curve:
        outcomes = results.outcomes(grid, results.plan.selection[0], method, targets)
        return Curve(method, "+".join(targets), {one.trial: points(one) for one in outcomes if one.row})

    return [curve(method, targets) for targets in grid.columns for method in grid.methods]


def curves_csv(drawn: Sequence[Curve]) -> str:
    """Return curves as CSV, with one line per point of a trial or of the mean and accuracies in [0, 1]."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*Method._fields, "target", "trial", "step", "value"])
    for curve in drawn:
        for trial, points in [*curve.trials.items(), ("mean", curve.mean)]:
            writer.writerows([*curve.method, curve.target, trial, *point] for point in points)
    return file.getvalue()
