"""The parts of the page: one per table, and one per data set with its runs."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import NamedTuple

from shiftproof.protocol import Unit
from shiftproof.report.class_accuracy import DomainAccuracy, class_accuracy_csv, domain_accuracies
from shiftproof.report.curves import Quantity, curves, curves_csv, quantities
from shiftproof.report.figure_files import FigureFiles, embedded, embedded_csv
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
        rank_numbers: its numbers, likewise.
    """

    key: str
    files: FigureFiles
    by_rule: dict[str, Table]
    rank_image: str | None = None
    rank_numbers: str | None = None

    @property
    def table(self) -> Table:
        """The table under the page's rule."""
        return next(iter(self.by_rule.values()))

    @property
    def best(self) -> dict[str, list[bool]]:
        """By heading, which rows are marked as the best, as `marks` has it."""
        rows = [self.table.cells(row) for row in self.table.rows]
        return {name: marks([row[name] for row in rows], self.table.unit) for name in self.table.headings}

    @property
    def marked(self) -> bool:
        """Whether anything is marked."""
        return any(map(any, self.best.values()))


class Panel(NamedTuple):
    """The curves of one target, with the image as a data URL."""

    target: str
    image: str


class CurveFigure(NamedTuple):
    """A quantity's panels, one per target, and their numbers as a data URL."""

    quantity: Quantity
    panels: list[Panel]
    numbers: str


@dataclass(frozen=True)
class DatasetPart:
    """The part of the page about the runs on one data set.

    Attributes:
        key: suffix of its ids; empty for the only data set.
        files: files of its figures.
        grid: the data set's part of the plan.
        figures: its curves.
        accuracies: accuracy by domain and class for every method; empty if the names of the classes are unknown.
        class_numbers: these as CSV in a data URL.
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
    class_numbers: str
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
    part = TablePart(key, files, by_rule)
    ranks = part.table.ranks
    if ranks is None:
        return part
    drawn = rank_figure([str(method) for method in part.table.ranked], ranks)
    numbers = _ranks_csv(part).encode()
    files.write("ranks", {**drawn, "csv": numbers})
    return TablePart(key, files, by_rule, embedded(drawn["svg"]), embedded_csv(numbers))


def write_dataset_part(results: Results, grid: Grid, key: str, files: FigureFiles) -> DatasetPart:
    """Write the figures of a data set and the numbers behind them, and return the page's part about it."""
    named = grid.runs[0].task == "classification" and bool(grid.classes)
    accuracies = {method: domain_accuracies(results, grid, method) for method in grid.methods if named}
    numbers = b""
    if named:
        numbers = class_accuracy_csv(grid.classes, [one for found in accuracies.values() for one in found]).encode()
        files.write("class_accuracy", {"csv": numbers})
    return DatasetPart(
        key,
        files,
        grid,
        [_write_curves(results, grid, quantity, files) for quantity in quantities(results.shown(grid))],
        accuracies,
        embedded_csv(numbers),
        [chosen_settings(results, grid, method) for method in grid.methods],
        run_list(results, grid),
        Unit.of(results.shown(grid)),
        Unit.of(results.plan.metric_of(grid)),
    )


def _write_curves(results: Results, grid: Grid, quantity: Quantity, files: FigureFiles) -> CurveFigure:
    drawn = curves(results, grid, quantity)
    limits = vertical_limits(quantity, drawn)
    numbers = curves_csv(drawn).encode()
    files.write(quantity.name, {**sheet(quantity, drawn, limits), "csv": numbers})
    panels = []
    for target in grid.targets:
        svg = panel_svg(quantity, [curve for curve in drawn if curve.target == target], limits)
        panels.append(Panel(target, embedded(svg)))
    return CurveFigure(quantity, panels, embedded_csv(numbers))


def _ranks_csv(part: TablePart) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*Method._fields, "rank"])
    writer.writerows([*method, rank] for rank, method in part.table.ranking)
    return file.getvalue()
