"""Draws curves: one panel per target for the page, and a sheet of all panels as a file."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from shiftproof.base.drawing import STYLE, method_styles, saved
from shiftproof.report.curves import Curve, Point, Quantity

TITLE_SIZE = 9
TITLE_LETTERS = 44
"""Number of letters that fit above a panel of a sheet; longer titles are set smaller."""
SHEET_COLUMNS = 3
MOST_WITH_TRIALS = 12
"""Most methods whose trials are drawn besides their means; with more, the trials would hide the means."""


def panel_svg(quantity: Quantity, drawn: Sequence[Curve], limits: tuple[float, float]) -> bytes:
    """Draw the curves of one target, without title and legend.

    Args:
        quantity: the quantity to draw.
        drawn: one curve per method, in the order of the study.
        limits: limits of the vertical axis, the same in all panels of a quantity.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(3.4, 2.3))
        # fixed margins, so that the axes of all panels have the same size
        axes = figure.add_axes((0.135, 0.165, 0.845, 0.81))
        _draw(axes, quantity, drawn, limits)
        return saved(figure, "svg")


def sheet(quantity: Quantity, drawn: Sequence[Curve], limits: tuple[float, float]) -> dict[str, bytes]:
    """Draw the curves of all targets with their names and a legend, and return the SVG and the PNG by suffix."""
    targets = list(dict.fromkeys(curve.target for curve in drawn))
    columns = min(SHEET_COLUMNS, len(targets))
    rows = -(-len(targets) // columns)
    methods = len(drawn) // len(targets)
    width, height = 0.3 + 3.2 * columns, 0.5 + 2.4 * rows
    longest = max(len(str(curve.method)) for curve in drawn)
    legend_columns = max(1, min(methods, int(width / (0.6 + 0.065 * longest))))  # inches per line and per letter
    below = 0.6 + 0.2 * -(-methods // legend_columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height + below))
        grid = figure.subplots(rows, columns, squeeze=False).flat
        # margins in inches are faster than matplotlib's own layout, and suffice for panels that are all alike
        figure.subplots_adjust(
            left=0.5 / width,
            right=1 - 0.15 / width,
            bottom=below / (height + below),
            top=1 - 0.6 / (height + below),
            hspace=0.22,
            wspace=0.08,
        )
        for axes, target in zip(grid, targets, strict=False):
            title = f"unseen: {target}"
            axes.set_title(title, fontsize=min(TITLE_SIZE, TITLE_SIZE * TITLE_LETTERS / len(title)))
            _draw(axes, quantity, [curve for curve in drawn if curve.target == target], limits)
            axes.label_outer()
        for axes in figure.axes[len(targets) :]:
            axes.remove()
        figure.suptitle(quantity.title, y=1 - 0.15 / (height + below), va="top")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=legend_columns)
        return {suffix: saved(figure, suffix) for suffix in ("svg", "png")}


def vertical_limits(quantity: Quantity, drawn: Sequence[Curve]) -> tuple[float, float]:
    """Return the range of the vertical axis that holds all curves."""
    values = [point.value for curve in drawn for points in curve.trials.values() for point in points]
    scale = 100 if quantity.percent else 1
    low, high = scale * min(values, default=0.0), scale * max(values, default=1.0)
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _draw(axes: Axes, quantity: Quantity, drawn: Sequence[Curve], limits: tuple[float, float]) -> None:
    scale = 100 if quantity.percent else 1
    many = len(drawn) > MOST_WITH_TRIALS
    styles = method_styles([str(curve.method) for curve in drawn])
    for curve, (color, dashes) in zip(drawn, styles, strict=True):
        for points in [] if many else curve.trials.values():
            axes.plot(*_coordinates(points, scale), color=color, linewidth=0.7, alpha=0.3)
        axes.plot(
            *_coordinates(curve.mean, scale),
            color=color,
            linestyle=(0, dashes) if dashes else "-",
            linewidth=1.1 if many else 1.6,
            marker="o",  # so that a run with a single evaluation shows as a point
            markersize=1.5 if many else 2.5,
            label=str(curve.method),
        )
    if not any(curve.trials for curve in drawn):
        axes.text(0.5, 0.5, "no finished run", transform=axes.transAxes, ha="center", va="center", color="#767676")
        axes.set_xticks([])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.set_ylim(limits)
    axes.set_xlabel("step")
    axes.set_ylabel(quantity.label)


def _coordinates(points: Sequence[Point], scale: float) -> tuple[list[int], list[float]]:
    return [point.step for point in points], [scale * point.value for point in points]
