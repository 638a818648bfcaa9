"""The contract of an annealer: what happens around a step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import ClassVar

from torch import Tensor

from shiftproof.base.hparams import Hparam
from shiftproof.base.registry import Registry
from shiftproof.gradients import DomainLosses


class Annealer:
    """Does nothing around a step; subclass it to search before one or to edit its gradients.

    Both hooks must be functions of the parameters and the step: every pass of a multi-pass optimizer calls
    `edit_gradients` again, and all must see one objective.

    Args:
        seed: key of all its random numbers.

    Attributes:
        seed: key of all its random numbers.
        totals: what it counted over the steps so far; a checkpoint holds it, and nothing else of an annealer.
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {}
    """Hyperparameters by name; a subclass takes them as keyword arguments."""
    leaves_mean: bool = False
    """Whether `edit_gradients`, where no parameter has a gradient yet, leaves that of the mean of the domain losses
    first, and for it evaluates every domain once."""
    single_device: str | None = None
    """Why a run with it cannot be split over several devices; None where it can."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.totals: dict[str, float] = {}

    def before_step(
        self,
        parameters: Iterable[Tensor],
        step: int,
        domain_losses: DomainLosses,
        searched: Iterable[Tensor] | None = None,
    ) -> None:
        """Move parameters before step number ``step`` (from 1).

        Args:
            parameters: the parameters that train.
            step: number of the step.
            domain_losses: evaluate the losses of the source domains.
            searched: the parameters that may be moved, those of the featurizer; None for all.
        """

    def edit_gradients(self, parameters: Iterable[Tensor], step: int, domain_losses: DomainLosses) -> None:
        """Edit the gradients of the parameters after every backward pass of step ``step``."""

    def check(self, num_domains: int, steps: int) -> None:
        """Raise unless it can act on so many source domains within so many steps.

        Raises:
            ValueError: it cannot; the message says why.
        """

    def planned_passes(self, num_domains: int, steps: int, passes: int) -> float:
        """Return how many passes over all domains it adds to a run, at most.

        Args:
            num_domains: number of source domains.
            steps: steps of the run.
            passes: passes per step of the optimizer.
        """
        return 0

    @property
    def extra_passes(self) -> float:
        """Passes that it has added so far: evaluations of one domain's loss, over the number of domains."""
        return self.totals["evaluations"] / self.totals["domains"] if self.totals.get("evaluations") else 0

    def report(self) -> dict[str, float | None] | None:
        """Return what it did over the steps so far (see `GGA` and `GGAL`); None where it has nothing to tell."""
        return None


def mean(total: float, count: float) -> float | None:
    """Return a mean, None where there is none or it is not finite."""
    return total / count if count and math.isfinite(total) else None


ANNEALERS: Registry[type[Annealer]] = Registry("annealer")
ANNEALERS.register("none", Annealer)
