"""The report: one self-contained HTML page, with figures and the numbers behind them in a folder beside it."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from shiftproof import __version__
from shiftproof.base.drawing import method_styles
from shiftproof.base.files import write_bytes
from shiftproof.protocol import BUILT_IN_RULES, Unit
from shiftproof.report.diagnostics import diagnostic_figures
from shiftproof.report.figure_files import FigureFiles
from shiftproof.report.figures import MOST_WITH_TRIALS
from shiftproof.report.names import safe_names
from shiftproof.report.published import measured_terms
from shiftproof.report.section import write_dataset_part, write_table_part
from shiftproof.report.terms import MEANINGS, rule_meaning
from shiftproof.studies import Results
from shiftproof.tables import (
    MARK_NOTE,
    Table,
    annealer_block,
    build_tables,
    combined_note,
    comparisons,
    constant_note,
    difference_note,
    finding,
    selection_note,
    shared_note,
    transductive_note,
    verdicts,
)

REPORT_FILE = "report.html"
MOST_SENTENCES = 12
"""Most verdicts that stand open at the top of the page; more are folded under the finding of their data set."""


def write_report(results: Results, output: Path) -> Path:
    """Write the report of a study, finished or not, and return the page's path.

    The page is `report.html`; the folder `figures` beside it holds the figures as SVG and PNG, and the numbers
    behind them as CSV. Everything follows the study's first selection rule.

    Args:
        results: the study's results.
        output: the folder to write to.
    """
    plan = results.plan
    several = len(plan.grids) > 1
    keys = safe_names([grid.dataset for grid in plan]) if several else [""]
    folders = [FigureFiles(output, f"{key}_" if several else "") for key in keys]
    by_rule = {rule: build_tables(results, rule) for rule in plan.selection}
    compared = comparisons(results, by_rule[plan.selection[0]])

    def tables(dataset: str | None) -> dict[str, Table]:
        """Return the table of a data set, or the overall one, under every rule."""
        return {rule: table for rule, found in by_rule.items() for table in found if table.dataset == dataset}

    methods = plan.grids[0].methods
    page = _template().render(
        plan=plan,
        overview=write_table_part(tables(None), "", FigureFiles(output)) if several else None,
        parts=[
            (write_table_part(tables(grid.dataset), key, files), write_dataset_part(results, grid, key, files))
            for grid, key, files in zip(plan.grids, keys, folders, strict=True)
        ],
        compared=compared,
        diagnostics=diagnostic_figures(results, output),
        measured_terms=measured_terms(results, compared),
        styles=dict(zip(methods, method_styles([str(method) for method in methods]), strict=True)),
        trials_drawn=len(methods) <= MOST_WITH_TRIALS,
        mark_note=MARK_NOTE,
        most_sentences=MOST_SENTENCES,
        meanings=MEANINGS,
        built_in_rules=BUILT_IN_RULES,
        rule_meanings={rule: rule_meaning(rule) for rule in plan.selection},
        written=datetime.now(UTC),
        versions={"shiftproof": __version__, "Python": platform.python_version()},
        trained_with=results.versions,
    )
    write_bytes(output / REPORT_FILE, page.encode())
    return output / REPORT_FILE


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("shiftproof.report", ""),
        autoescape=True,  # names of classes and domains may hold anything, even HTML
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for said in (
        annealer_block,
        combined_note,
        constant_note,
        difference_note,
        finding,
        selection_note,
        shared_note,
        transductive_note,
        verdicts,
    ):
        environment.globals[said.__name__] = said
    environment.globals["percent"] = Unit()
    return environment.get_template("report.html.jinja")
