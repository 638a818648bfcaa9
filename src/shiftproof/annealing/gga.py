"""Gradient-Guided Annealing: search the neighbourhood for parameters at which the domains' gradients agree."""

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
from shiftproof.base.options import check_number
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
    """A point of the search: its similarity, the pair of domains that attains it, and its loss."""

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
    respect to *all* parameters that train, and :math:`L` is the mean of the domains' losses. Because the batches are of
    equal size, this is the loss of their union. Training continues from the best point, or from the start if no
    candidate was accepted.

    The search keeps only one copy of the searched weights, the start: the perturbation of a candidate is a function of
    (seed, step, candidate), so the best one can be drawn again. A candidate costs at most one forward and one backward
    pass per domain. The two domains that agree least at the best point so far are evaluated first, and once any pair is
    at or below :math:`S_\text{best}` the candidate is rejected without evaluating the other domains. This shortcut does
    not change the result.

    A radius of 1e-5 is lost in weights of less than float32 precision, and its effect is lost in losses under bfloat16
    autocast: evaluate the domains in float32 (runs of shiftproof do, whatever their precision). The search works in one
    process only, because each of several would accept different candidates.

    Args:
        radius: largest change of a weight, above 0.
        candidates: points to draw per step, at least 1.
        tolerance: by how much the loss of the best point may rise, at least 0.
        start: first step of the search, counted from 1; 0 also means the first step.
        end: last step of the search.
        search: "ball" draws around the start, as in the paper. "walk", as in the released code, draws around the last
            candidate while candidates are rejected, and returns to the start once one is accepted.
        seed: key of all draws.

    Raises:
        ValueError: an argument is out of its range.

    Examples:
        >>> import torch
        >>> from shiftproof.annealing import GGA
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> domains = [(torch.randn(8, 3), torch.randn(8, 1)) for _ in range(2)]
        >>> losses = [lambda x=x, y=y: torch.nn.functional.mse_loss(model(x), y) for x, y in domains]
        >>> annealer = GGA(radius=1e-2, candidates=5, start=1, end=2)
        >>> for step in range(1, 4):
        ...     annealer.before_step(model.parameters(), step, losses)
        ...     optimizer.zero_grad()
        ...     torch.stack([loss() for loss in losses]).sum().backward()
        ...     optimizer.step()
        >>> annealer.report()["similarity_after"] >= annealer.report()["similarity_before"]
        True
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {
        "radius": Hparam(1e-5),
        "candidates": Hparam(250),
        "tolerance": Hparam(0.1),
        # the released trainer, which is built on SWAD's, counts its steps from 0
        "start": Hparam(100, in_dialects={"swad": 101}),
        "end": Hparam(200, in_dialects={"swad": 201}),
        "search": Hparam("ball", in_dialects={"swad": "walk"}),
    }

    searches = True
    single_device = "it compares the gradients of whole domains, and each device holds only parts of them"
    _rejects_early = True  # the benchmark and a test turn this off

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
        check_number("radius", radius)
        check_number("tolerance", tolerance)
        if not 0 < radius < math.inf:
            raise ValueError(f"Invalid radius value: {radius}; it must be above 0")
        if not tolerance >= 0:
            raise ValueError(f"Invalid tolerance value: {tolerance}; it must be at least 0")
        for name, number, least in (("candidates", candidates, 1), ("start", start, 0), ("end", end, 1)):
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise ValueError(f"Invalid {name} value: {number!r}; it must be a whole number, at least {least}")
        if end < start:
            raise ValueError(f"Invalid end value: {end}; it must be a whole number, at least {start}")
        if search not in SEARCH_SHAPES:
            raise ValueError(f"Invalid search value: {search}; it must be one of {', '.join(SEARCH_SHAPES)}")
        self.radius, self.candidates, self.tolerance = radius, candidates, tolerance
        self.start, self.end, self.search = start, end, search
        self.totals = dict.fromkeys(("steps", "before", "after", "accepted", "evaluations", "seconds"), 0)
        self._told = False  # whether the warning that there is nothing to search was given

    def before_step(
        self,
        parameters: Iterable[Tensor],
        step: int,
        domain_losses: DomainLosses,
        searched: Iterable[Tensor] | None = None,
    ) -> None:
        """Move the searched parameters to the best point found, if step ``step`` (from 1) is part of the search.

        Within a step the model draws the same random numbers for all candidates. The search leaves running statistics,
        other buffers and torch's generators as they were.

        Args:
            parameters: the parameters that train.
            step: number of the step.
            domain_losses: functions that evaluate the losses of the source domains.
            searched: the parameters to move, usually the featurizer's; None for all.

        Warns:
            UserWarning: all of ``searched`` is frozen, so nothing is evaluated or moved. Given once.

        Raises:
            ValueError: there is only one domain, or a parameter is complex.
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
                warnings.warn("GGA searches nothing: all parameters that it may move are frozen", stacklevel=2)
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
        """Move to the best point; return the start and the best point."""
        start = [p.clone() for p in searched]
        first = self._evaluate(parameters, domains, evaluate, None)
        if first is None:  # not finite: nothing to improve, and the step itself will reveal it
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
        finally:  # even if evaluating a loss fails: the weights belong to the user
            _copy(start, searched)
        for candidate in path:
            self._perturb(searched, step, candidate)
        return first, best

    def _evaluate(
        self, parameters: Sequence[Tensor], domains: int, evaluate: EvaluateDomain, best: _Point | None
    ) -> _Point | None:
        """Evaluate the current point; return None as soon as it cannot beat the best."""
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
        """Check that there are at least two source domains and that the search ends within the run.

        Raises:
            ValueError: there is one domain, or the run is too short.
        """
        check_domains("GGA", num_domains)
        if self.end > steps:
            raise ValueError(
                f"GGA searches at steps {self.start} to {self.end}, and the run has {steps}: train for longer, or set "
                "annealer.start and annealer.end"
            )

    def planned_passes(self, num_domains: int, steps: int, passes: int) -> float:
        """Return the number of passes that the search takes if no candidate is rejected early."""
        active = max(0, min(self.end, steps) - max(self.start, 1) + 1)
        return active * (self.candidates + 1)

    def report(self) -> dict[str, float | None]:
        """Return statistics of the search.

        Returns:
            ``similarity_before`` and ``similarity_after`` the search: the least pairwise cosine, averaged over the
            searched steps (None if there are none, or one is not finite). ``accepted``: the number of accepted
            candidates. ``extra_passes`` and ``seconds``: the cost of the search.
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
