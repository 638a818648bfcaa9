"""The parts of the page: one per table, and one per data set with its runs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shiftproof.protocol import Unit
from shiftproof.report.class_accuracy import DomainAccuracy, class_accuracy_csv, domain_accuracies
from shiftproof.report.curves import Quantity, curves, curves_csv, quantities
from shiftproof.report.figure_files import FigureFiles, embedded
from shiftproof.report.figures import panel_svg, sheet, vertical_limits
from shiftproof.report.ranks import rank_figure
from shiftproof.report.runs import RunEntry, RunList, run_list
from shiftproof.report.settings import ChosenSettings, chosen_settings
from shiftproof.studies import Grid, Method, Results
from shiftproof.tables import Table, marks


@dataclass(frozen=True)
class TablePart:
    """The part of the page about a table.

    Attributes:
        key: suffix of its ids; empty for the first table.
        files: files of its figure.
        by_rule: the table under every selection rule of the study, the page's rule first.
        rank_image: the critical difference diagram as a data URL; None without ranks.
    """

    key: str
    files: FigureFiles
    by_rule: dict[str, Table]
    rank_image: str | None

    @property
    def table(self) -> Table:
        """The table under the page's rule."""
        return next(iter(self.by_rule.values()))

    @property
    def highest(self) -> Sequence[Method]:
        """The methods with the best mean, among those that finished every trial; none if nothing is compared."""
        rows = self.table.rows
        marked = zip(rows, marks([row.mean for row in rows], self.table.unit), strict=True)
        return [row.method for row, mark in marked if mark == "best"]


class Panel(NamedTuple):
    """The curves of one target, with the image as a data URL."""

    target: str
    image: str


class CurveFigure(NamedTuple):
    """A quantity's panels, one per target."""

    quantity: Quantity
    panels: list[Panel]


@dataclass(frozen=True)
class DatasetPart:
    """The part of the page about the runs on one data set.

    Attributes:
        key: suffix of its ids; empty for the only data set.
        files: files of its figures.
        grid: the data set's part of the plan.
        figures: its curves.
        accuracies: accuracy by domain and class for every method; empty if the names of the classes are unknown.
        settings: the chosen settings of every method.
        runs: all its runs.
        unit: its measure, and how that is written.
        validation_unit: the same of the measure that chose steps and settings.
    """

    key: str
    files: FigureFiles
    grid: Grid
    figures: list[CurveFigure]
    accuracies: dict[Method, list[DomainAccuracy]]
    settings: list[ChosenSettings]
    runs: RunList
    unit: Unit
    validation_unit: Unit

    @property
    def failed(self) -> list[RunEntry]:
        """The runs that failed."""
        return [entry for entry in self.runs.entries if entry.status == "failed"]

    @property
    def missing(self) -> int:
        """The number of runs that have not ended."""
        return sum(entry.status == "missing" for entry in self.runs.entries)


def write_table_part(by_rule: dict[str, Table], key: str, files: FigureFiles) -> TablePart:
    """Write the figure of a table's ranks, if it has any, and return the page's part about the table."""
    part = TablePart(key, files, by_rule, None)
    ranks = part.table.ranks
    if ranks is None:
        return part
    drawn = rank_figure([str(method) for method in part.table.ranked], ranks)
    files.write("ranks", {**drawn, "csv": _ranks_csv(part).encode()})
    return TablePart(key, files, by_rule, embedded(drawn["svg"]))


def write_dataset_part(results: Results, grid: Grid, key: str, files: FigureFiles) -> DatasetPart:
    """Write the figures of a data set and the numbers behind them, and return the page's part about it."""
    named = grid.runs[0].task == "classification" and bool(grid.classes)
    accuracies = {method: domain_accuracies(results, grid, method) for method in grid.methods if named}
    if named:
        numbers = class_accuracy_csv(grid.classes, [one for found in accuracies.values() for one in found])
        files.write("class_accuracy", {"csv": numbers.encode()})
    return DatasetPart(
        key,
        files,
        grid,
        [_write_curves(results, grid, quantity, files) for quantity in quantities(results.shown(grid))],
        accuracies,
        [chosen_settings(results, grid, method) for method in grid.methods],
        run_list(results, grid),
        Unit.of(results.shown(grid)),
        Unit.of(results.plan.metric_of(grid)),
    )


def _write_curves(results: Results, grid: Grid, quantity: Quantity, files: FigureFiles) -> CurveFigure:
    drawn = curves(results, grid, quantity)
    limits = vertical_limits(quantity, drawn)
    files.write(quantity.name, {**sheet(quantity, drawn, limits), "csv": curves_csv(drawn).encode()})
    panels = []
    for target in grid.targets:
        svg = panel_svg(quantity, [curve for curve in drawn if curve.target == target], limits)
        panels.append(Panel(target, embedded(svg)))
    return CurveFigure(quantity, panels)


def _ranks_csv(part: TablePart) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*Method._fields, "rank"])
    writer.writerows([*method, rank] for rank, method in part.table.ranking)
    return file.getvalue()
