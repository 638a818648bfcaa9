"""The look of all figures (colours, line styles, fonts) and their files."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from shiftproof.base.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart, and two more; the one faintest on white comes last
COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255", "#7F7F7F", "#F0E442",
)  # fmt: skip
DASHES: tuple[tuple[float, ...], ...] = ((), (4.0, 2.0), (1.0, 1.5), (5.0, 1.5, 1.0, 1.5), (8.0, 3.0))
OPTIMIZER_COLORS = {
    "sgd": "#0072B2", "adam": "#D55E00", "sam": "#009E73", "genie": "#CC79A7", "genie_adamw": "#E69F00",
    "genie_released": "#882255", "adamw": "#8C4A00", "adabelief": "#56B4E9", "adahessian": "#000000",
    "yogi": "#A89500", "asam": "#66C2A5", "gsam": "#1B5E20", "sagm": "#7CB342", "gam": "#4F7A6B", "fad": "#7F7F7F",
    "signum": "#1A237E", "m_svag": "#7E57C2", "sign_genie": "#F06292",
}  # fmt: skip
"""The colour of every optimizer, in all figures in which colours stand for optimizers."""
INK = "#555555"
"""The colour of what belongs to no series, such as a legend's sample of a dotted line."""


class LineStyle(NamedTuple):
    """A colour, and the lengths of dashes and gaps in line widths, empty for a solid line."""

    color: str
    dashes: tuple[float, ...]


def line_style(index: int) -> LineStyle:
    """Return the style of the index-th method; colours vary first, then dashes."""
    return LineStyle(COLORS[index % len(COLORS)], DASHES[index // len(COLORS) % len(DASHES)])


def method_styles(names: Sequence[str]) -> list[LineStyle]:
    """Return the styles of optimizers, or of methods whose names contain one, such as "coral + adam".

    The colour is the optimizer's, the same in all figures; dashes tell methods with the same optimizer apart. Where all
    have the same, or more have it than there are dashes, or optimizers of plug-ins outnumber the colours that are left,
    styles follow the order, as in `line_style`.

    Args:
        names: names of the optimizers or methods of one figure, in their order.
    """
    optimizers = [
        next((part for part in re.split(r" \+ |, ", name) if part in OPTIMIZER_COLORS), name) for name in names
    ]
    counts = Counter(optimizers)
    known = {one: OPTIMIZER_COLORS[one] for one in counts if one in OPTIMIZER_COLORS}
    free = [color for color in COLORS if color not in known.values()]
    others = [one for one in counts if one not in known]  # of plug-ins
    if len(counts) == 1 < len(names) or max(counts.values(), default=0) > len(DASHES) or len(others) > len(free):
        return [line_style(index) for index in range(len(names))]
    colors = known | dict(zip(others, free, strict=False))
    return [LineStyle(colors[one], DASHES[optimizers[:index].count(one)]) for index, one in enumerate(optimizers)]


def method_colors(names: Sequence[str]) -> list[str]:
    """Return the colours of `method_styles` for a figure without dashes, or whose dashes mean something else.

    Where methods have the same optimizer, only colours can tell them apart, which then follow the order.

    Args:
        names: names of the optimizers or methods of one figure, in their order.
    """
    colors = [style.color for style in method_styles(names)]
    return colors if len(set(colors)) == len(names) else [line_style(index).color for index in range(len(names))]


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
    "figure.titlesize": 10,
    "axes.titlesize": 8.5,
    "svg.fonttype": "none",  # text stays text: small, and in the reader's font
    "svg.hashsalt": "shiftproof",  # so that equal numbers give equal files
}
DPI = 200
COLUMN = 3.4
"""Width in inches of one column of a paper; a figure across both columns is twice as wide."""


def saved(figure: Figure, suffix: str) -> bytes:
    """Return the content of a figure's file in the format of a suffix, such as "svg"."""
    from matplotlib import rc_context

    file = io.BytesIO()
    metadata = {"Date": None} if suffix == "svg" else None
    with rc_context({key: value for key, value in STYLE.items() if key.startswith("svg.")}):
        figure.savefig(file, format=suffix, dpi=DPI, metadata=metadata)
    return file.getvalue()


def write_figure(
    figure: Figure, folder: Path, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = ""
) -> list[Path]:
    """Write a figure as SVG and PNG, the numbers behind it as CSV and its caption as text; return the files.

    Args:
        figure: the figure, drawn within ``rc_context(STYLE)``, with a title.
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
