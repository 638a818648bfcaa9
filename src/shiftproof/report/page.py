"""The report's page: one HTML file that needs no other, beside it the figures and the numbers behind them."""

from __future__ import annotations

import base64
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from shiftproof import __version__
from shiftproof.files import write_bytes
from shiftproof.report.class_accuracy import class_accuracy_csv, domain_accuracies
from shiftproof.report.curves import QUANTITIES, Quantity, curves, curves_csv
from shiftproof.report.figures import panel_svg, sheet, vertical_limits
from shiftproof.report.outcomes import RULE, Outcomes, read_outcomes
from shiftproof.report.palette import line_style
from shiftproof.report.settings import chosen_settings
from shiftproof.report.terms import MEANINGS
from shiftproof.studies import Method, Store, Study, Table, build_table
from shiftproof.studies.tables import MEAN

REPORT_FILE = "report.html"
FIGURES_FOLDER = "figures"


class Panel(NamedTuple):
    """The curves of one target, as the address of an image that the page itself holds."""

    target: str
    image: str


class CurveFigure(NamedTuple):
    """A quantity's panels, one per target."""

    quantity: Quantity
    panels: list[Panel]


def write_report(study: Study, output: Path) -> Path:
    """Write the report of what there is of a study, and return the page's path.

    The page is `report.html`; the folder `figures` beside it holds the figures as SVG and PNG, and the numbers
    behind them as CSV.

    Args:
        study: what was compared.
        output: the store's folder.

    Raises:
        ValueError: the study is not valid.
        DamagedFileError: a recorded result cannot be read.
    """
    outcomes = read_outcomes(study, Store(output))
    table = build_table(study, outcomes.rows, RULE)
    folder = output / FIGURES_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    accuracies = {method: domain_accuracies(study, outcomes, method) for method in study.methods}
    numbers = class_accuracy_csv(study.data.classes, [one for rows in accuracies.values() for one in rows])
    write_bytes(folder / "class_accuracy.csv", numbers.encode())
    page = _template().render(
        study=study,
        table=table,
        mean=MEAN,
        targets=["+".join(targets) for targets in study.target_sets],
        highest=_highest(table),
        styles={method: line_style(i) for i, method in enumerate(study.methods)},
        figures=[_write_figure(study, outcomes, quantity, folder) for quantity in QUANTITIES],
        accuracies=accuracies,
        settings=[chosen_settings(outcomes, method) for method in study.methods],
        failures=[(_method(row), row) for row in outcomes.rows if row["status"] == "failed"],
        missing=len(study.runs) - len(outcomes.rows),
        meanings=MEANINGS,
        written=datetime.now(UTC),
        versions={"shiftproof": __version__, "Python": platform.python_version()},
        trained_with=outcomes.versions,
    )
    write_bytes(output / REPORT_FILE, page.encode())
    return output / REPORT_FILE


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("shiftproof.report", ""),
        autoescape=True,  # names of classes and domains are text, whatever they hold
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja")


def _write_figure(study: Study, outcomes: Outcomes, quantity: Quantity, folder: Path) -> CurveFigure:
    """Write a figure's files and return its panels for the page."""
    drawn = curves(study, outcomes, quantity)
    limits = vertical_limits(quantity, drawn)
    write_bytes(folder / f"{quantity.name}.csv", curves_csv(drawn).encode())
    for suffix, content in sheet(quantity, drawn, limits).items():
        write_bytes(folder / f"{quantity.name}.{suffix}", content)
    panels = []
    for target in map("+".join, study.target_sets):
        svg = panel_svg(quantity, [curve for curve in drawn if curve.target == target], limits)
        panels.append(Panel(target, "data:image/svg+xml;base64," + base64.b64encode(svg).decode()))
    return CurveFigure(quantity, panels)


def _highest(table: Table) -> Sequence[Method]:
    """Return the methods with the highest mean, among those that finished every trial; none if nothing is compared."""
    cells = {row.method: row.cells[MEAN] for row in table.rows}
    means = {m: cell.accuracy.mean for m, cell in cells.items() if cell.accuracy and cell.trials == cell.planned}
    return [method for method, mean in means.items() if len(means) > 1 and mean == max(means.values())]


def _method(row: dict[str, Any]) -> Method:
    return Method(row["algorithm"], row["optimizer"], row["annealer"])
