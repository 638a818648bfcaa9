"""The look of all figures (colours, line styles, fonts) and their files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from shiftproof.base.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart; those faintest on white come last
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
DASHES: tuple[tuple[float, ...], ...] = ((), (4.0, 2.0), (1.0, 1.5), (5.0, 1.5, 1.0, 1.5), (8.0, 3.0))


class LineStyle(NamedTuple):
    """A colour, and the lengths of dashes and gaps in line widths, empty for a solid line."""

    color: str
    dashes: tuple[float, ...]


def line_style(index: int) -> LineStyle:
    """Return the style of the index-th method; colours vary first, then dashes."""
    return LineStyle(COLORS[index % len(COLORS)], DASHES[index // len(COLORS) % len(DASHES)])


STYLE: dict[Any, Any] = {
    "font.size": 8,
    "text.parse_math": False,  # names of methods and domains are not formulas
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "xtick.color": "#999999",
    "ytick.color": "#999999",
    "xtick.labelcolor": "#555555",
    "ytick.labelcolor": "#555555",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: small, and in the reader's font
    "svg.hashsalt": "shiftproof",  # so that equal numbers give equal files
}
DPI = 200
COLUMN = 3.4
"""Width in inches of one column of a paper; a figure across both columns is twice as wide."""


def saved(figure: Figure, suffix: str) -> bytes:
    """Return the content of a figure's file in the format of a suffix, such as "svg"."""
    file = io.BytesIO()
    metadata = {"Date": None} if suffix == "svg" else None
    figure.savefig(file, format=suffix, dpi=DPI, metadata=metadata)
    return file.getvalue()


def write_figure(
    figure: Figure, folder: Path, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = ""
) -> list[Path]:
    """Write a figure as SVG and PNG, the numbers behind it as CSV and its caption as text; return the files.

    Args:
        figure: the figure, drawn within ``rc_context(STYLE)``.
        folder: folder of the files, created if it does not exist.
        name: name of the files, without a suffix.
        header: names of the columns of numbers.
        rows: the numbers.
        caption: what the figure shows and under which terms; if empty, no text file is written.
    """
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([header, *rows])
    contents = {"csv": table.getvalue().encode(), "svg": saved(figure, "svg"), "png": saved(figure, "png")}
    if caption:
        contents["txt"] = caption.encode() + b"\n"
    folder.mkdir(parents=True, exist_ok=True)
    paths = {folder / f"{name}.{suffix}": content for suffix, content in contents.items()}
    for path, content in paths.items():
        write_bytes(path, content)
    return list(paths)
