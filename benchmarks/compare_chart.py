"""Draws the README's picture from a table: `python -m benchmarks.compare_chart runs/compare/table.csv FILE.svg`."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from shiftproof.base.drawing import STYLE, method_colors, saved

COLUMNS = {"mean": "mean of the unseen domains", "worst": "worst unseen domain"}
NUMBERS = ("difference", "difference_low", "difference_high")
Row = dict[str, str]


def compared(lines: Sequence[Row], column: str) -> list[Row]:
    """Return a line for each method that a column compares with the baseline, by the first selection rule."""
    first = lines[0]["selection"]
    return [line for line in lines if (line["selection"], line["target"]) == (first, column) and line["difference_low"]]


def name_of(line: Row) -> str:
    """Return what a line's method is called: its optimizer, and its average if it has one."""
    return " + ".join(name for name in (line["optimizer"], line["averaging"]) if name != "none")


def draw(lines: Sequence[Row]) -> bytes:
    """Return the differences from the baseline with their intervals as SVG, the mean beside the worst domain."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    optimizers = list(dict.fromkeys(line["optimizer"] for line in lines))
    colors = dict(zip(optimizers, method_colors(optimizers), strict=True))
    with rc_context(STYLE):
        figure = Figure(figsize=(6.8, 2.2), layout="constrained", facecolor="white")
        for axes, (column, title) in zip(figure.subplots(1, 2, sharey=True), COLUMNS.items(), strict=True):
            rows = compared(lines, column)
            axes.axvline(0, color="#555555", linewidth=0.8)
            for place, row in enumerate(rows):
                mean, low, high = (float(row[name]) * 100 for name in NUMBERS)
                color = colors[row["optimizer"]]
                axes.plot([low, high], [place, place], color=color, linewidth=1.4, solid_capstyle="butt")
                axes.plot(mean, place, "o", color=color, markersize=4)
            axes.set_yticks(range(len(rows)), [name_of(row) for row in rows])
            axes.set_title(title, fontsize=8)
            axes.set_xlabel(f"points of accuracy above {name_of(lines[0])}")
            axes.grid(visible=False, axis="y")
        axes.invert_yaxis()
        return saved(figure, "svg")


if __name__ == "__main__":
    table, picture = map(Path, sys.argv[1:])
    with table.open(encoding="utf-8", newline="") as file:
        picture.write_bytes(draw(list(csv.DictReader(file))))
