"""The agreement of the source domains' gradients over training, with and without an annealer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from shiftproof.annealing import Annealer, DomainLosses, domain_similarities
from shiftproof.base.drawing import COLUMN, STYLE, method_styles, write_figure
from shiftproof.figures.traces import check_stepped
from shiftproof.studies import Study, open_data, plan_run
from shiftproof.training import Loop, NonFiniteLossError, reproducible
from shiftproof.training.callbacks import ProgressBar

SMOOTHING = 10
"""Number of steps in the moving average of a curve."""


class Agreement(NamedTuple):
    """Cosines of the source domains' gradients at one step, at the weights where its gradient is computed.

    Attributes:
        method: the method of the run.
        step: number of the step.
        least: the least cosine of all pairs.
        mean: the mean over all pairs.
    """

    method: str
    step: int
    least: float
    mean: float


class _Measured(Annealer):
    """Measures after another annealer has moved the parameters, without affecting it."""

    def __init__(self, annealer: Annealer, method: str) -> None:
        super().__init__(annealer.seed)
        self.annealer, self.method = annealer, method
        self.leaves_mean = annealer.leaves_mean
        self.steps: list[Agreement] = []

    def before_step(
        self,
        parameters: Iterable[Tensor],
        step: int,
        domain_losses: DomainLosses,
        searched: Iterable[Tensor] | None = None,
    ) -> None:
        parameters = list(parameters)
        self.annealer.before_step(parameters, step, domain_losses, searched)
        least, mean = domain_similarities(parameters, domain_losses, seed=self.seed, step=step)
        self.steps.append(Agreement(self.method, step, least, mean))

    def edit_gradients(self, parameters: Iterable[Tensor], step: int, domain_losses: DomainLosses) -> None:
        self.annealer.edit_gradients(parameters, step, domain_losses)


def measure_agreement(study: Study, trial_seed: int = 0) -> list[Agreement]:
    """Train every method of a study once at its defaults, and return the measurements of every step.

    The runs train as in a comparison, but are neither evaluated nor stored.

    Args:
        study: a study with one data set and at most one set of targets, which leave at least two source domains;
            without targets its first domain is left out.
        trial_seed: number of the trial.

    Raises:
        ValueError: the study is not valid, or its parts cannot work together.
    """
    if study.targets is None:
        study = replace(study, targets=open_data(study, study.datasets[0]).domain_names[:1])
    specs = [plan_run(study.only(method), trial_seed, 0) for method in study.methods]
    for spec in specs:
        check_stepped(spec)
    data, device = open_data(study, study.datasets[0]), study.device_here()
    measured = []
    for spec, method in zip(specs, study.methods, strict=True):
        with reproducible():
            loop = Loop(spec, data, device, study.weights_file)
            measuring = loop.steps.annealer = _Measured(loop.steps.annealer, str(method))
            loop.callbacks = [ProgressBar(str(method))]
            with suppress(NonFiniteLossError):  # the measurements up to then are drawn
                loop.run()
        measured += measuring.steps
    return measured


def write_agreement(measured: Sequence[Agreement], folder: Path) -> list[Path]:
    """Write measurements as CSV, draw them as SVG and PNG, and return the files.

    Lines are means over `SMOOTHING` steps.

    Args:
        measured: measurements of one or more runs.
        folder: folder to write to; created if need be.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # slow to import, and every worker imports this folder

    methods = list(dict.fromkeys(one.method for one in measured))
    with rc_context(STYLE):
        figure = Figure(figsize=(2 * COLUMN, 2.8), layout="constrained")
        figure.suptitle("Agreement of the domains' gradients over training")
        axes = figure.subplots(1, 2, sharex=True)
        for axis, quantity, title in zip(axes, ("least", "mean"), ("least pair", "mean of the pairs"), strict=True):
            for method, (color, dashes) in zip(methods, method_styles(methods), strict=True):
                values = [getattr(one, quantity) for one in measured if one.method == method]
                smooth = [
                    sum(part) / len(part)
                    for i in range(len(values))
                    if (part := values[max(0, i + 1 - SMOOTHING) : i + 1])
                ]
                line = (0, dashes) if dashes else "-"
                axis.plot(range(1, len(values) + 1), smooth, label=method, color=color, linestyle=line)
            axis.set(title=title, xlabel="step", ylabel="cosine of domain gradients")
        axes[0].legend()
        return write_figure(figure, folder, "agreement", Agreement._fields, measured)
