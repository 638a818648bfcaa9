"""The diagnostic figures that lie beside a study and its runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shiftproof.figures import DIAGNOSTICS_FOLDER
from shiftproof.report.figure_files import embedded
from shiftproof.studies import Results, Store


@dataclass(frozen=True)
class DiagnosticFigure:
    """A figure for the page.

    Attributes:
        of: the study, or the run, that it shows.
        file: its SVG, relative to the page; beside it lie its PNG and its numbers.
        image: the SVG as an address that holds it.
        caption: what it shows.
    """

    of: str
    file: str
    image: str
    caption: str


def diagnostic_figures(results: Results, output: Path) -> list[DiagnosticFigure]:
    """Return the figures that `shiftproof figure` drew beside a study, and `shiftproof diagnose` beside its runs.

    Args:
        results: of the study.
        output: its folder, where the page goes.
    """
    store = Store(output)
    folders = [
        ("all methods", output),
        *((spec.label(dataset=True), store.folder(spec)) for spec in results.plan.distinct),
    ]
    return [
        DiagnosticFigure(
            of, str(svg.relative_to(output)), embedded(svg.read_bytes()), caption.read_text("utf-8").strip()
        )
        for of, folder in folders
        for svg in sorted((folder / DIAGNOSTICS_FOLDER).glob("*.svg"))
        if (caption := svg.with_suffix(".txt")).exists()
    ]
