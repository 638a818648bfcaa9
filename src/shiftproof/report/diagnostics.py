"""The diagnostic figures found in the folders of a study and its runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shiftproof.figures import DIAGNOSTICS_FOLDER
from shiftproof.report.figure_files import embedded, embedded_csv
from shiftproof.studies import Results, Store


@dataclass(frozen=True)
class DiagnosticFigure:
    """A figure for the page.

    Attributes:
        of: name of the study or run that it shows.
        file: its SVG, relative to the page, in the same folder as its PNG and its numbers.
        image: the SVG as a data URL.
        caption: what it shows.
        numbers: its numbers as CSV in a data URL; None if the file is not there.
    """

    of: str
    file: str
    image: str
    caption: str
    numbers: str | None

    @property
    def table(self) -> str:
        """The file of its numbers, relative to the page."""
        return str(Path(self.file).with_suffix(".csv").as_posix())


def diagnostic_figures(results: Results, output: Path) -> list[DiagnosticFigure]:
    """Return the figures that `shiftproof figure` drew for a study, and `shiftproof diagnose` for its runs.

    Args:
        results: the study's results.
        output: the study's folder, which the page is written to.
    """
    store = Store(output)
    folders = [
        ("all methods", output),
        *((spec.label(dataset=True), store.folder(spec)) for spec in results.plan.distinct),
    ]
    return [
        DiagnosticFigure(
            of,
            str(svg.relative_to(output)),
            embedded(svg.read_bytes()),
            caption.read_text("utf-8").strip(),
            embedded_csv(numbers.read_bytes()) if (numbers := svg.with_suffix(".csv")).exists() else None,
        )
        for of, folder in folders
        for svg in sorted((folder / DIAGNOSTICS_FOLDER).glob("*.svg"))
        if (caption := svg.with_suffix(".txt")).exists()
    ]
