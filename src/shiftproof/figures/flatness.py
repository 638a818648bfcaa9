"""The flatness of the loss around trained weights, on the sources and on the target."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import nn

from shiftproof.algorithms import Batch
from shiftproof.base.drawing import COLUMN, INK, STYLE, method_colors, write_figure
from shiftproof.diagnostics import DrawnMean, Sharpness, average_increase, sharpness
from shiftproof.figures.traces import Subject
from shiftproof.training import reproducible

RADII = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Sizes of the changes to every filter, relative to its norm."""
IMAGES = 16
"""Number of held-out images per source domain; the target has as many as all sources together."""
_SIDES = {"sources": "-", "target": ":"}


class Flatness(NamedTuple):
    """The loss around the weights of one model, for one set of images.

    Attributes:
        measured: sharpness at the default radius of `shiftproof.diagnostics.sharpness`.
        increases: increase of the loss at each of `RADII`, averaged over directions.
    """

    measured: Sharpness
    increases: dict[float, DrawnMean]


def held_out(subject: Subject) -> dict[str, list[Batch]]:
    """Return held-out images of the sources and of the targets."""
    inputs = subject.inputs
    each = -(-IMAGES * len(inputs.sources) // len(inputs.targets))
    return {
        "sources": [inputs.sample(domain, "out", IMAGES) for domain in inputs.sources],
        "target": [inputs.sample(domain, "out", each) for domain in inputs.targets],
    }


def flatness(subject: Subject, model: nn.Module) -> dict[str, Flatness]:
    """Measure the loss around a model's weights on the sources and on the target.

    Args:
        subject: the run, which determines the images.
        model: the trained model.
    """
    with reproducible():
        return {
            side: Flatness(
                sharpness(model, subject.loss, batches),
                {rho: average_increase(model, subject.loss, batches, rho=rho) for rho in RADII},
            )
            for side, batches in held_out(subject).items()
        }


def draw_flatness(found: Mapping[str, Mapping[str, Flatness]], folder: Path, setting: str) -> list[Path]:
    """Draw the loss around the weights against the distance, and return the files.

    Args:
        found: flatness by name of the optimizer, on "sources" and "target".
        folder: folder to write to.
        setting: description of the runs, for the caption.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows: list[tuple[object, ...]] = []
    with rc_context(STYLE):
        figure = Figure(figsize=(COLUMN, 3.2), layout="constrained")
        figure.suptitle("Loss around the weights at the end of training", fontsize=9)
        axes = figure.subplots()
        for (optimizer, sides), color in zip(found.items(), method_colors(list(found)), strict=True):
            for side, (measured, increases) in sides.items():
                means, errors = zip(*increases.values(), strict=True)
                axes.errorbar(
                    list(increases), means, errors, color=color, linestyle=_SIDES[side],
                    marker="o", markersize=2.5, linewidth=1.2, label=optimizer if side == "sources" else None,
                )  # fmt: skip
                rows += [(optimizer, side, f"average increase at {rho}", *increases[rho]) for rho in increases]
                rows += [
                    (optimizer, side, "loss", measured.loss, ""),
                    (optimizer, side, f"worst increase at {measured.rho}", measured.worst, ""),
                    (optimizer, side, "largest eigenvalue", measured.eigenvalue.value, measured.eigenvalue.residual),
                    (optimizer, side, "trace", *measured.trace),
                ]
        axes.set_xscale("log")
        axes.set_xticks(RADII, [f"{rho:g}" for rho in RADII])
        axes.minorticks_off()
        axes.set(xlabel="relative change of every filter", ylabel="increase of the loss")
        axes.axhline(0, color="#999999", linewidth=0.6)
        for side, dashes in _SIDES.items():
            axes.plot([], [], color=INK, linestyle=dashes, label={"target": "unseen domain"}.get(side, side))
        figure.legend(loc="outside lower center", ncols=3)
        caption = (
            "Increase of the mean loss when every filter moves by a share of its own norm, on average over random "
            f"directions, with standard errors: {setting}. Solid: held-out images of the sources ({IMAGES} per "
            "domain); dotted: as many of the unseen domain. The worst increase, the Hessian's largest eigenvalue and "
            "its trace are in the CSV."
        )
        header = ("optimizer", "images", "quantity", "value", "error")
        return write_figure(figure, folder, "flatness", header, rows, caption)
