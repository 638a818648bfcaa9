"""GGA-L: noise on the gradient, the stronger the more the domains' gradients disagree."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from shiftproof.annealing.annealer import ANNEALERS, Annealer, mean
from shiftproof.base.hparams import Hparam
from shiftproof.base.options import check_number
from shiftproof.base.randomness import generator
from shiftproof.gradients import (
    DomainLosses,
    check_dense,
    check_domains,
    direction,
    evaluated_domains,
    pairwise_cosines,
)

Noise = Literal["uniform", "normal"]
NOISES: tuple[Noise, ...] = ("uniform", "normal")


class GGAL(Annealer):
    r"""GGA-L (Ballas and Diou, CVPR 2025, arXiv 2502.20162, corrected version).

    After every backward pass the gradient becomes

    .. math:: g \leftarrow g + \gamma\,(1 - s)\,\xi,

    where :math:`s` is the mean over pairs :math:`i<j` of :math:`\cos(g_i, g_j)`, and :math:`g_i` are the flattened
    gradients of the domains' losses at the current parameters. (The paper prints the sum over ordered pairs, twice the
    mean; the mean is meant.) The noise :math:`\xi` has one element per parameter and is a function of (seed, step), so
    it is the same in every pass of an optimizer that evaluates the gradient several times a step.

    If no parameter has a gradient yet, :math:`g` is the gradient of the mean of the domains' losses, which the same
    backward passes give. Otherwise :math:`g` is the gradient already there, whatever objective left it, and the
    domains' gradients cost one extra forward and backward pass each. GGA-L works in one process only, because each of
    several would measure a different similarity.

    Args:
        gamma: scale of the noise, at least 0.
        noise: "uniform" on [0, 1), as in the paper; or "normal", the standard normal of the released code.
        seed: key of all draws.

    Raises:
        ValueError: an argument is out of its range.
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {
        "gamma": Hparam(0.001),
        "noise": Hparam("uniform", in_dialects={"swad": "normal"}),
    }
    leaves_mean = True
    single_device = "it compares the gradients of whole domains, and each device holds only parts of them"

    def __init__(self, gamma: float = 0.001, noise: Noise = "uniform", *, seed: int = 0) -> None:
        super().__init__(seed)
        check_number("gamma", gamma)
        if not 0 <= gamma < math.inf:
            raise ValueError(f"Invalid gamma value: {gamma}; it must be at least 0")
        if noise not in NOISES:
            raise ValueError(f"Invalid noise value: {noise}; it must be one of {', '.join(NOISES)}")
        self.gamma, self.noise = gamma, noise
        self.totals = dict.fromkeys(("steps", "before", "evaluations", "seconds"), 0)
        self._last = 0  # the step whose similarity was counted

    def edit_gradients(self, parameters: Iterable[Tensor], step: int, domain_losses: DomainLosses) -> None:
        """Add the noise of step number ``step`` (from 1) to the gradients.

        The random numbers that the model draws depend on (seed, step, domain). The passes over the domains leave
        running statistics, other buffers and torch's generators as they were. So if the model has batch norms that
        train on their batches, call ``backward`` first.

        Args:
            parameters: the parameters that train.
            step: number of the step.
            domain_losses: functions that evaluate the losses of the source domains.

        Raises:
            ValueError: there is only one domain, or a parameter is complex.
            RuntimeError: a gradient is sparse.
        """
        check_domains("GGA-L", len(domain_losses))
        begin = time.perf_counter()
        parameters, domains = [p for p in parameters if p.requires_grad], len(domain_losses)
        alone = all(p.grad is None for p in parameters)
        check_dense(p.grad for p in parameters)
        directions = []
        with evaluated_domains(parameters, domain_losses, self.seed, step) as evaluate:
            for domain in range(domains):
                gradient = evaluate(domain)
                directions.append(direction(gradient, parameters))
                if alone:
                    _accumulate(parameters, gradient.parts, 1 / domains)
        cosines = pairwise_cosines(directions)
        similarity = math.fsum(cosines.values()) / len(cosines)
        self._add_noise(parameters, step, self.gamma * (1 - similarity))
        self.totals["domains"] = domains
        if step != self._last:
            self._last = step
            self.totals["steps"] += 1
            self.totals["before"] += similarity
        if not alone:
            self.totals["evaluations"] += domains
            self.totals["seconds"] += time.perf_counter() - begin

    def _add_noise(self, parameters: Iterable[Tensor], step: int, scale: float) -> None:
        random = generator(self.seed, "gga_l", step)
        draw = random.random if self.noise == "uniform" else random.standard_normal
        for p in parameters:
            noise = torch.from_numpy(
                draw(tuple(p.shape), dtype=np.float32)
            )  # drawn for every parameter, so that a missing gradient does not shift the others' noise
            if p.grad is not None:
                # not in place: a second-order optimizer differentiates the gradient
                p.grad = p.grad + noise.mul_(scale).to(p.grad)

    def check(self, num_domains: int, steps: int) -> None:
        """Check that there are at least two source domains.

        Raises:
            ValueError: there is only one.
        """
        check_domains("GGA-L", num_domains)

    def planned_passes(self, num_domains: int, steps: int, passes: int) -> float:
        """Return one pass for every pass of the optimizer."""
        return steps * passes

    def report(self) -> dict[str, float | None]:
        """Return statistics of the steps so far.

        Returns:
            ``similarity_before``: the mean pairwise cosine at the first pass of a step, averaged over steps.
            ``extra_passes`` and ``seconds``: their number and time, without passes that also served the objective.
            ``similarity_after`` and ``accepted`` are None, because GGA-L does not search.
        """
        return {
            "similarity_before": mean(self.totals["before"], self.totals["steps"]),
            "similarity_after": None,
            "accepted": None,
            "extra_passes": self.extra_passes,
            "seconds": self.totals["seconds"],
        }


def _accumulate(parameters: Iterable[Tensor], gradient: Iterable[Tensor | None], scale: float) -> None:
    for p, part in zip(parameters, gradient, strict=True):
        if part is not None:
            if p.grad is None:
                p.grad = torch.zeros_like(p)  # in the memory layout of the parameter, as backward leaves it
            p.grad.add_(part, alpha=scale)


ANNEALERS.register("gga_l", GGAL)
