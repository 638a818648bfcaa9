"""Gradient-Guided Annealing: search nearby for parameters at which the domains' gradients agree."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from shiftproof.annealing.annealer import ANNEALERS, Annealer, mean
from shiftproof.base.hparams import Hparam
from shiftproof.base.randomness import generator
from shiftproof.gradients import (
    Direction,
    DomainLosses,
    EvaluateDomain,
    check_domains,
    check_real,
    cosine,
    direction,
    evaluated_domains,
)

SearchShape = Literal["ball", "walk"]
SEARCH_SHAPES: tuple[SearchShape, ...] = ("ball", "walk")


class _Point(NamedTuple):
    """What the search knows of a point: its similarity, the pair of domains that has it, and its loss."""

    similarity: float
    pair: tuple[int, int]
    loss: float


class GGA(Annealer):
    r"""Gradient-Guided Annealing (Ballas and Diou, CVPR 2025, arXiv 2502.20162, corrected version).

    Before every step from ``start`` to ``end``, with one batch per source domain, it draws ``candidates`` points

    .. math:: \theta' = \theta + \epsilon, \qquad \epsilon \sim U(-\text{radius}, \text{radius})

    on the searched weights (the featurizer's), and accepts one as the best so far if

    .. math:: S' > S_\text{best} \quad\text{and}\quad L' < L_\text{best} + \text{tolerance},

    where :math:`S = \min_{i<j} \cos(g_i, g_j)` over the flattened gradients :math:`g_i` of the domains' losses with
    respect to *all* parameters that train, and :math:`L` is the mean of the domains' losses: that of the union of the
    batches, which are of equal size. Training goes on from the best point, from the start if none was accepted.

    A candidate is a number: its perturbation is a function of (seed, step, candidate) and the best is drawn again, so
    that the search holds one copy of the searched weights, the start. A candidate costs at most one forward and one
    backward pass per domain. The pair of domains that agrees least at the best point so far is evaluated first: once a
    pair is at or below :math:`S_\text{best}` the minimum is too, and the other domains are spared. This changes
    nothing that the search finds.

    Weights that are not at least float32 do not see a radius of 1e-5, and losses under bfloat16 autocast not what it
    changes: evaluate the domains in float32 (runs of shiftproof do, whatever their precision). For one process: each
    of several would accept candidates of its own.

    Args:
        radius: largest change of a weight, above 0.
        candidates: points that are drawn per step, at least 1.
        tolerance: by how much the loss of the best point may rise, at least 0.
        start: first step of the search, from 1; 0 is the first step too.
        end: last step of the search.
        search: "ball" draws around the start, as the paper describes it. "walk" is the released code's search: it
            draws around the last candidate while candidates are rejected, and around the start after one was accepted.
        seed: key of all draws.

    Raises:
        ValueError: an argument is out of its range.
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {
        "radius": Hparam(1e-5),
        "candidates": Hparam(250),
        "tolerance": Hparam(0.1),
        "start": Hparam(100),
        "end": Hparam(200),
        "search": Hparam("ball"),
    }

    single_device = "it compares the gradients of domains, of which a device has parts"
    _rejects_early = True  # what the benchmark and a test turn off

    def __init__(
        self,
        radius: float = 1e-5,
        candidates: int = 250,
        tolerance: float = 0.1,
        start: int = 100,
        end: int = 200,
        search: SearchShape = "ball",
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if not 0 < radius < math.inf:
            raise ValueError(f"Invalid radius value: {radius}; it must be above 0")
        if not tolerance >= 0:
            raise ValueError(f"Invalid tolerance value: {tolerance}; it must be at least 0")
        for name, number, least in (("candidates", candidates, 1), ("start", start, 0), ("end", end, max(start, 1))):
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise ValueError(f"Invalid {name} value: {number}; it must be a whole number, at least {least}")
        if search not in SEARCH_SHAPES:
            raise ValueError(f"Invalid search value: {search}; it must be one of {', '.join(SEARCH_SHAPES)}")
        self.radius, self.candidates, self.tolerance = radius, candidates, tolerance
        self.start, self.end, self.search = start, end, search
        self.totals = dict.fromkeys(("steps", "before", "after", "accepted", "evaluations", "seconds"), 0)
        self._told = False  # that there is nothing to search

    def before_step(
        self,
        parameters: Iterable[Tensor],
        step: int,
        domain_losses: DomainLosses,
        searched: Iterable[Tensor] | None = None,
    ) -> None:
        """Move the searched parameters to the best point found, if ``step`` (from 1) is one of the search's.

        What the model draws is the same for all candidates of a step, running statistics and other buffers count none
        of them, and torch's generators are left as they were.

        Args:
            parameters: the parameters that train.
            step: number of the step.
            domain_losses: evaluate the losses of the source domains.
            searched: the parameters that are moved, those of the featurizer; None for all.

        Warns:
            UserWarning: there is nothing to move, as all of ``searched`` is frozen. Then nothing is evaluated; once.

        Raises:
            ValueError: there is one domain only, or a parameter is complex.
            RuntimeError: a gradient is sparse.
        """
        if not self.start <= step <= self.end:
            return
        check_domains("GGA", len(domain_losses))
        begin = time.perf_counter()
        parameters = [p for p in parameters if p.requires_grad]
        moved = [p for p in (parameters if searched is None else searched) if p.requires_grad]
        if not moved:
            if not self._told:
                warnings.warn("GGA searches nothing: all that it may move is frozen", stacklevel=2)
            self._told = True
            return
        check_real(moved)
        with torch.no_grad(), evaluated_domains(parameters, domain_losses, self.seed, step) as evaluate:
            first, best = self._search(parameters, moved, step, len(domain_losses), evaluate)
        self.totals["domains"] = len(domain_losses)
        self.totals["steps"] += 1
        self.totals["before"] += first.similarity
        self.totals["after"] += best.similarity
        self.totals["seconds"] += time.perf_counter() - begin

    def _search(
        self,
        parameters: Sequence[Tensor],
        searched: Sequence[Tensor],
        step: int,
        domains: int,
        evaluate: EvaluateDomain,
    ) -> tuple[_Point, _Point]:
        """Move to the best point and return what is known of the start and of the best."""
        start = [p.clone() for p in searched]
        first = self._evaluate(parameters, domains, evaluate, None)
        if first is None:  # not finite: there is nothing to improve, and the step will show it
            return (nowhere := _Point(math.nan, (0, 1), math.nan)), nowhere
        best, path = first, range(0)  # the draws that lead from the start to the best point
        since = 0  # the first draw after the last return to the start
        try:
            for candidate in range(self.candidates):
                self._perturb(searched, step, candidate)
                found = self._evaluate(parameters, domains, evaluate, best)
                if found is not None:
                    best, path = found, range(since, candidate + 1)
                    self.totals["accepted"] += 1
                if found is not None or self.search == "ball":
                    _copy(start, searched)
                    since = candidate + 1
        finally:  # also when a loss cannot be evaluated: the weights are the user's
            _copy(start, searched)
        for candidate in path:
            self._perturb(searched, step, candidate)
        return first, best

    def _evaluate(
        self, parameters: Sequence[Tensor], domains: int, evaluate: EvaluateDomain, best: _Point | None
    ) -> _Point | None:
        """Return what there is to know of the current point; None as soon as it cannot be accepted over the best."""
        order = list(range(domains))
        floor, ceiling = -math.inf, math.inf
        if best is not None:
            order.sort(key=lambda domain: domain not in best.pair)
            floor, ceiling = best.similarity, best.loss + self.tolerance
        directions: dict[int, Direction] = {}
        losses: dict[int, float] = {}
        least, pair = math.inf, (0, 1)
        similarities: list[float] = []
        for domain in order:
            gradient = evaluate(domain)
            self.totals["evaluations"] += 1
            losses[domain] = gradient.loss
            directions[domain] = direction(gradient, parameters)
            for other in list(directions)[:-1]:
                similarity = cosine(directions[other], directions[domain])
                similarities.append(similarity)
                if self._rejects_early and not similarity > floor:
                    return None
                if similarity < least:
                    least, pair = similarity, (other, domain)
        loss = math.fsum(losses[domain] for domain in range(domains)) / domains
        agrees = all(similarity > floor for similarity in similarities)  # false for NaN too
        return _Point(least, pair, loss) if agrees and loss < ceiling else None

    def _perturb(self, searched: Sequence[Tensor], step: int, candidate: int) -> None:
        random = generator(self.seed, "gga", step, candidate)
        for p in searched:
            draw = torch.from_numpy(random.random(tuple(p.shape), dtype=np.float32))
            p.add_(draw.mul_(2 * self.radius).sub_(self.radius).to(p))

    def check(self, num_domains: int, steps: int) -> None:
        """Raise unless there are two source domains, and the search ends within the run.

        Raises:
            ValueError: one of them is not so.
        """
        check_domains("GGA", num_domains)
        if self.end > steps:
            raise ValueError(
                f"GGA searches at steps {self.start} to {self.end}, and the run has {steps}: train for longer, or set "
                "annealer.start and annealer.end"
            )

    def planned_passes(self, num_domains: int, steps: int, passes: int) -> float:
        """Return the passes of the search if no candidate is rejected early."""
        active = max(0, min(self.end, steps) - max(self.start, 1) + 1)
        return active * (self.candidates + 1)

    def report(self) -> dict[str, float | None]:
        """Return what the search did.

        Returns:
            ``similarity_before`` and ``similarity_after`` it, the least pairwise cosine, means over its steps (None
            where there are none, or some is not finite); ``accepted`` candidates; ``extra_passes``; ``seconds``.
        """
        before, after = (mean(self.totals[name], self.totals["steps"]) for name in ("before", "after"))
        return {
            "similarity_before": before,
            "similarity_after": after,
            "accepted": self.totals["accepted"],
            "extra_passes": self.extra_passes,
            "seconds": self.totals["seconds"],
        }


def _copy(values: Sequence[Tensor], into: Sequence[Tensor]) -> None:
    for value, target in zip(values, into, strict=True):
        target.copy_(value)


ANNEALERS.register("gga", GGA)
