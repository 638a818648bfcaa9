"""Draw the records of a recorder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shiftproof.base.drawing import COLUMN, STYLE, line_style
from shiftproof.diagnostics.osgr import StepContributions, step_ratios

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATIO_SPAN = 20
"""Number of measurements over which to take a ratio."""
_PANELS = {
    "balance": (
        "update balance",
        {"balance/gini": "Gini", "balance/entropy": "entropy", "balance/top_share": "share of the top 1 %"},
    ),
    "agreement": ("cosine of domain gradients", {"agreement/least": "least pair", "agreement/mean": "mean"}),
}


def draw_records(
    records: Sequence[dict[str, float]], contributions: Sequence[StepContributions], track: Sequence[str]
) -> Figure:
    """Draw records over the steps, one panel per tracked quantity.

    Args:
        records: records of a `Recorder`.
        contributions: its contributions; the ratio at each step covers the last `RATIO_SPAN` of them.
        track: the quantities that it measured.

    Raises:
        ValueError: there is no record.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    if not records:
        raise ValueError("nothing was measured yet")
    steps = [record["step"] for record in records]
    with rc_context(STYLE):
        figure = Figure(figsize=(2 * COLUMN, 2.8), layout="constrained")
        figure.suptitle("Measurements of training")
        for axes, name in zip(figure.subplots(1, len(track), squeeze=False)[0], track, strict=True):
            if name == "osgr":
                title = f"ratio over {RATIO_SPAN} measurements"
                ratios = [
                    step_ratios(contributions[max(0, end - RATIO_SPAN) : end]) for end in range(1, len(steps) + 1)
                ]
                lines = {
                    ratio: [found[ratio].value if ratio in found else math.nan for found in ratios]
                    for ratio in ratios[-1]
                }
            else:
                title, labels = _PANELS[name]
                lines = {label: [record.get(key, math.nan) for record in records] for key, label in labels.items()}
            for index, (label, values) in enumerate(lines.items()):
                axes.plot(steps, values, color=line_style(index).color, marker="o", markersize=2, label=label)
            axes.set(title=title, xlabel="step")
            axes.legend()
        return figure
