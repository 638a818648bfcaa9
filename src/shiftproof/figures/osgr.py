"""The one-step generalization ratio (OSGR) of real training, and its prediction from the gradients' moments."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.utils import vector_to_parameters

from shiftproof.base.drawing import COLORS, COLUMN, OPTIMIZER_COLORS, STYLE, method_colors, write_figure
from shiftproof.diagnostics import (
    RATIO_SPAN,
    GradientMoments,
    Ratio,
    genie_distance,
    gradient_moments,
    osgr_of_moments,
    step_ratios,
)
from shiftproof.figures.traces import DIAGNOSTICS_FOLDER, Subject, Trace, traced
from shiftproof.studies import Study
from shiftproof.training import reproducible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HALF = 128
"""Most images per source domain in each of the two halves that moments are computed from."""
MOMENTS_AT = 5
"""Number of snapshots of a path at which moments are computed."""
_PRECONDITIONERS = {  # the corollaries' two belong to no optimizer
    "sgd": ("SGD", OPTIMIZER_COLORS["sgd"]),
    "adam": ("Adam", OPTIMIZER_COLORS["adam"]),
    "uniform": ("uniform", COLORS[8]),
    "genie": ("Corollary 2", COLORS[6]),
    "genie_step": ("GENIE's step", OPTIMIZER_COLORS["genie"]),
}
_BESIDE = 0.12  # between the intervals of two optimizers at one step, as a share of the distance to the next
_TITLES = {
    "osgr": "step as taken",
    "osgr_frozen": "preconditioner frozen",
    "transfer": "step as taken, unseen domain",
    "transfer_frozen": "frozen, unseen domain",
}


def windows(trace: Trace) -> dict[str, list[tuple[int, Ratio]]]:
    """Return every ratio over disjoint windows of `RATIO_SPAN` measurements, each with its last step."""
    steps, contributions = [int(record["step"]) for record in trace.records], trace.contributions
    found: dict[str, list[tuple[int, Ratio]]] = {name: [] for name in _TITLES}
    for end in range(min(RATIO_SPAN, len(steps)), len(steps) + 1, RATIO_SPAN):
        for name, ratio in step_ratios(contributions[max(0, end - RATIO_SPAN) : end]).items():
            found[name].append((steps[end - 1], ratio))
    return found


def draw_osgr(traces: Mapping[str, Trace], folder: Path, setting: str) -> list[Path]:
    """Draw the measured ratios over training, and return the files.

    Args:
        traces: traces by name of the optimizer.
        folder: folder to write to.
        setting: description of the runs, for the caption.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows: list[tuple[object, ...]] = []
    intervals: list[tuple[Axes, float, Ratio, str]] = []
    colors = method_colors(list(traces))
    with rc_context(STYLE):
        figure = Figure(figsize=(2 * COLUMN, 4.6), layout="constrained")
        figure.suptitle("One-step generalization ratio of real steps")
        axes = figure.subplots(2, 2, sharex=True, squeeze=False)
        for index, ((name, trace), color) in enumerate(zip(traces.items(), colors, strict=True)):
            for axis, (quantity, points) in zip(axes.flat, windows(trace).items(), strict=True):
                if points:
                    aside = (index - (len(traces) - 1) / 2) * _BESIDE * points[0][0]
                    steps = [step + aside for step, _ in points]
                    axis.plot(steps, [r.value for _, r in points], color=color, marker="o", markersize=2.5, label=name)
                    intervals += [(axis, x, ratio, color) for x, (_, ratio) in zip(steps, points, strict=True)]
                rows += [(name, quantity, step, *ratio) for step, ratio in points]
            rows += [(name, quantity, "all", *ratio) for quantity, ratio in step_ratios(trace.contributions).items()]
        for axis, title in zip(axes.flat, _TITLES.values(), strict=True):
            axis.axhline(0, color="#999999", linewidth=0.6)
            axis.set_title(title)
        for row in axes:  # limits follow the values, because intervals may be unbounded
            values = [value for axis in row for line in axis.get_lines() for value in line.get_ydata()]
            low, high = min([0.0, *values]), max([1.0, *values])
            for axis in row:
                axis.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
        for interval in intervals:
            _draw_interval(*interval)
        for axis in axes[1]:
            axis.set_xlabel("step")
        for axis in axes[:, 0]:
            axis.set_ylabel("ratio")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(traces))
        caption = (
            f"One-step generalization ratio, E[u.g'] / E[u.g]: {setting}. g is the gradient of the step's own batch, "
            "g' that of a batch of the same source domains' held-out images (above) or of the unseen domain (below), "
            f"u the update. A point is the ratio over {RATIO_SPAN} measured steps, the bar its 95 % interval: a cap is "
            "a bound, an arrow says that there is none on that side, and a bar that reaches the panel's edge without "
            "an arrow has its bound beyond. Points of one step stand side by side. Frozen: u is the preconditioner "
            "as it was before the step times g, without momentum, noise and masks. Images that were never trained on "
            "may have larger losses, and so larger gradients, than the batch: a ratio can be above 1."
        )
        header = ("optimizer", "ratio", "step", "value", "low", "high")
        return write_figure(figure, folder, "osgr", header, rows, caption)


def _draw_interval(axes: Axes, x: float, ratio: Ratio, color: str) -> None:
    """Draw a ratio's interval within the axes' limits, with a cap at each bound and an arrow where there is none."""
    bottom, top = axes.get_ylim()
    low, high = max(ratio.low, bottom), min(ratio.high, top)
    if low > high:  # all of it lies beyond the limits
        return
    axes.plot([x, x], [low, high], color=color, linewidth=0.8, alpha=0.6)
    for bound, end, arrow in ((ratio.low, low, "v"), (ratio.high, high, "^")):
        if math.isinf(bound) or bound == end:  # one that lies beyond the limits has no mark
            marker = arrow if math.isinf(bound) else "_"
            axes.plot(x, end, color=color, marker=marker, markersize=3.5, alpha=0.6, clip_on=False)
    axes.set_ylim(bottom, top)


def snapshot_moments(subject: Subject, trace: Trace) -> dict[int, tuple[GradientMoments, GradientMoments]]:
    """Return the moments of two halves of the sources' held-out images at `MOMENTS_AT` snapshots of a path, by step.

    Args:
        subject: the run.
        trace: its trace.
    """
    inputs = subject.inputs
    samples = [inputs.sample(domain, "out", 2 * HALF) for domain in inputs.sources]
    halves = [[[(images[part::2], labels[part::2])] for images, labels in samples] for part in (0, 1)]
    model = subject.algorithm(trace.state)
    parameters = [p for p in model.parameters() if p.requires_grad]
    last = len(trace.path_steps) - 1
    chosen = sorted({round(i * last / (MOMENTS_AT - 1)) for i in range(MOMENTS_AT)})
    found = {}
    with reproducible():
        for i in chosen:
            vector_to_parameters(trace.path[i].to(subject.device), parameters)
            model.load_state_dict(trace.buffers[i], strict=False)
            first, second = (gradient_moments(model, half, subject.loss) for half in halves)
            found[trace.path_steps[i]] = (first, second)
    return found


def draw_osgr_of_moments(
    moments: Mapping[str, Mapping[int, tuple[GradientMoments, GradientMoments]]],
    images: int,
    folder: Path,
    setting: str,
) -> list[Path]:
    """Draw the ratios that the corollaries predict from the gradients' moments along each path; return the files.

    Args:
        moments: moments of two halves of the samples, by optimizer and step.
        images: number of images per step.
        folder: folder to write to.
        setting: description of the runs, for the caption.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows: list[tuple[object, ...]] = []
    with rc_context(STYLE):
        figure = Figure(figsize=(2 * COLUMN, 2.7), layout="constrained")
        figure.suptitle("One-step generalization ratio that the gradients' moments predict")
        axes = figure.subplots(1, len(moments), sharey=True, squeeze=False)[0]
        for axis, (optimizer, by_step) in zip(axes, moments.items(), strict=True):
            ratios = {step: osgr_of_moments(*halves, images) for step, halves in by_step.items()}
            for name in next(iter(ratios.values())):
                label, color = _PRECONDITIONERS[name]
                found = [ratio[name] for ratio in ratios.values()]
                values = [one.value for one in found]
                spans = [abs(one.forward - one.backward) / 2 for one in found]
                axis.errorbar(
                    list(ratios), values, spans, color=color, marker="o", markersize=2.5, elinewidth=0.7, label=label,
                )  # fmt: skip
                rows += [(optimizer, name, step, *one) for step, one in zip(ratios, found, strict=True)]
            for step, halves in by_step.items():
                rows += [(optimizer, *row) for row in _more_of_moments(step, halves, images)]
            axis.set(title=optimizer, xlabel="step")
        axes[0].set_ylabel("ratio at the weights of the path")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
        first, _ = next(iter(next(iter(moments.values())).values()))
        caption = (
            "One-step generalization ratio of five preconditioners by Corollaries 1 and 2 of the GENIE paper, from "
            f"the moments of per-sample gradients at the weights of each path: {setting}. The preconditioner is made "
            f"from one half of the samples (up to {max(first.counts)} held-out images per source domain), the moments "
            "are of the other, corrected for their bias; a point is the mean of both directions, which are the ends "
            "of its bar. Corollary 2: 1 / variance; GENIE's step: the factor of Algorithm 1."
        )
        header = ("path", "quantity", "step", "value", "forward", "backward")
        return write_figure(figure, folder, "osgr_moments", header, rows, caption)


def _more_of_moments(
    step: int, halves: tuple[GradientMoments, GradientMoments], images: int
) -> list[tuple[object, ...]]:
    """Return more rows from the moments: the share of noise, and how far GENIE's step is from Corollary 2."""
    noise = torch.cat([half.flat("noise") for half in halves]).double().mean()
    half = halves[0]
    varies = half.flat("within") > 0
    distance = genie_distance(half.flat("mean").square()[varies], half.flat("within")[varies], images)
    return [
        ("share of elements whose mean gradient is noise", step, float(noise), "", ""),
        ("cosine of GENIE's step with Corollary 2", step, distance.cosine, "", ""),
        ("rank correlation of GENIE's step with Corollary 2", step, distance.rank_correlation, "", ""),
    ]


def figure_osgr(study: Study, output: Path, trial_seed: int = 0) -> list[Path]:
    """Train every method of a study at its defaults, draw its one-step generalization ratios, and return the files.

    Args:
        study: a study with one data set and at most one set of targets; without targets its first domain is left out.
        output: folder of the figures; runs that it holds are not trained again.
        trial_seed: number of the trial.

    Raises:
        ValueError: the study is not valid, or its parts cannot work together.
    """
    runs, folder = traced(study, output, trial_seed), output / DIAGNOSTICS_FOLDER
    [subject, *_] = [subject for subject, _ in runs.values()]
    drawn = draw_osgr({name: found for name, (_, found) in runs.items()}, folder, subject.setting)
    moments = {name: snapshot_moments(*run) for name, run in runs.items()}
    return [*drawn, *draw_osgr_of_moments(moments, subject.images_per_step, folder, subject.setting)]
