"""Draws mean ranks as a critical difference diagram (Demsar, JMLR 2006)."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shiftproof.base.drawing import COLORS, STYLE, saved
from shiftproof.tables import AverageRanks, indistinguishable

INK = "#333333"
RULE = "#777777"

# inches
ROW = 0.2  # height of a method's row
LEVEL = 0.09  # height of a level of bars
GAP = 0.12  # between bars of a level, and around all levels
DIFFERENCE = 0.5  # from the axis up to the critical difference, over the ticks and their title
LEADER, NUMBER, NAME = 0.1, 0.15, 0.57  # from the ends of the axis outwards


def rank_figure(names: Sequence[str], ranks: AverageRanks) -> dict[str, bytes]:
    """Draw the diagram and return the SVG and the PNG by suffix.

    Args:
        names: names of the methods, at least two, in the order of the ranks.
        ranks: ranks of the methods; without a critical difference, no bars are drawn.
    """
    # the canvas grows with the names, so that the axis keeps its size
    with rc_context({**STYLE, "savefig.bbox": "tight"}):
        figure = diagram(names, ranks)
        return {suffix: saved(figure, suffix) for suffix in ("svg", "png")}


def diagram(names: Sequence[str], ranks: AverageRanks) -> Figure:
    """Draw methods along an axis of mean ranks, with bars under it that join indistinguishable methods.

    The canvas holds the axis and the bars; labels lie outside it, within a tight bounding box.
    """
    ordered = sorted(zip(ranks.ranks, names, strict=True), key=lambda method: method[0])
    difference = ranks.critical_difference
    end = max(len(ordered), 1 + (difference or 0))  # with few cells, the difference can exceed the axis
    width = max(4.0, 0.22 * (end - 1))
    inch = (end - 1) / width
    bars = [] if difference is None else _bars([rank for rank, _ in ordered], difference, GAP * inch)
    below = 2 * GAP + LEVEL * max((level for _, level in bars), default=0)
    half = (len(ordered) + 1) // 2
    height = below + ROW * half

    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(1, end), ylim=(height, 0))  # ranks by inches
    _draw_axis(axes, len(ordered))
    for side, edge, outwards in ((ordered[:half], 1, -inch), (ordered[half:][::-1], end, inch)):
        for row, (rank, name) in enumerate(side):
            _draw_method(axes, name, rank, below + ROW * (row + 0.5), edge, outwards)
    for members, level in bars:
        heights = [GAP + LEVEL * level] * len(members)
        axes.plot(members, heights, color=COLORS[0], linewidth=2, marker="o", markersize=3.5, clip_on=False)
    if difference is not None:
        _draw_difference(axes, difference)
    return figure


def _draw_axis(axes: Axes, methods: int) -> None:
    axes.grid(visible=False)
    axes.yaxis.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "top")
    axes.spines["top"].set_bounds(1, methods)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xticks(range(1, methods + 1))
    axes.set_xlabel("mean rank, 1 is best", loc="left")


def _draw_method(axes: Axes, name: str, rank: float, y: float, edge: float, outwards: float) -> None:
    """Draw a line from the rank down and out to the name, beyond an end of the axis.

    ``outwards`` is the number of ranks per inch, negative to the left.
    """
    side = "left" if outwards > 0 else "right"
    axes.plot([rank, rank, edge + LEADER * outwards], [0, y, y], color=RULE, linewidth=0.8, clip_on=False)
    axes.text(edge + NUMBER * outwards, y, f"{rank:.2f}", color=RULE, ha=side, va="center")
    axes.text(edge + NAME * outwards, y, name, color=INK, ha=side, va="center")


def _draw_difference(axes: Axes, difference: float) -> None:
    ends, heights = [1, 1 + difference], [-DIFFERENCE, -DIFFERENCE]
    axes.plot(ends, heights, color=INK, linewidth=1, marker="|", markersize=6, clip_on=False)
    axes.text(1, -DIFFERENCE - 0.07, f"critical difference {difference:.2f}", color=INK, va="bottom")


def _bars(ordered: Sequence[float], difference: float, gap: float) -> list[tuple[Sequence[float], int]]:
    """Return the ranks and the level of each group; bars closer than the gap get different levels."""
    bars: list[tuple[Sequence[float], int]] = []
    ends: list[float] = []  # end of the last bar on each level
    for first, last in indistinguishable(ordered, difference):
        free = (level for level, end in enumerate(ends) if end + gap < ordered[first])
        level = next(free, len(ends))
        ends[level : level + 1] = [ordered[last]]
        bars.append((ordered[first : last + 1], level))
    return bars
