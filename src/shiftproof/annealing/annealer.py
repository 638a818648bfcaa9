"""The contract of an annealer, which acts around an optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import ClassVar

from torch import Tensor

from shiftproof.base.hparams import Hparam
from shiftproof.base.registry import Registry
from shiftproof.gradients import DomainLosses


class Annealer:
    """Base of annealers, which itself does nothing; subclass it to search before a step or to edit its gradients.

    Both hooks must depend on the parameters and the step alone: every pass of a multi-pass optimizer calls
    `edit_gradients` again, and all passes must see the same objective.

    Args:
        seed: key of all its random numbers.

    Attributes:
        seed: key of all its random numbers.
        totals: counts over the steps so far, and the only part of an annealer that a checkpoint holds.
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {}
    """Hyperparameters by name; a subclass takes them as keyword arguments."""
    searches: bool = False
    """Whether it moves the featurizer's weights itself, so that some of them must train."""
    leaves_mean: bool = False
    """Whether `edit_gradients`, called when no parameter has a gradient, first computes the gradient of the mean domain
    loss from the same evaluations. A run whose objective is that mean then needs no backward pass of its own."""
    single_device: str | None = None
    """Why a run with it cannot be split over several devices; None if it can."""

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
            domain_losses: functions that evaluate the losses of the source domains.
            searched: the parameters that it may move, usually the featurizer's; None for all.
        """

    def edit_gradients(self, parameters: Iterable[Tensor], step: int, domain_losses: DomainLosses) -> None:
        """Edit the gradients of the parameters after every backward pass of step ``step``."""

    def check(self, num_domains: int, steps: int) -> None:
        """Check that it can act on this number of source domains within this number of steps.

        Raises:
            ValueError: it cannot; the message says why.
        """

    def planned_passes(self, num_domains: int, steps: int, passes: int) -> float:
        """Return the largest number of passes over all domains that it can add to a run.

        Args:
            num_domains: number of source domains.
            steps: steps of the run.
            passes: passes that the optimizer takes per step.
        """
        return 0

    @property
    def extra_passes(self) -> float:
        """Passes added so far: the number of evaluations of single domains' losses divided by the number of domains."""
        return self.totals["evaluations"] / self.totals["domains"] if self.totals.get("evaluations") else 0

    def report(self) -> dict[str, float | None] | None:
        """Return statistics of the steps so far (see `GGA` and `GGAL`); None if it keeps none."""
        return None


def mean(total: float, count: float) -> float | None:
    """Return a mean; None if the count is 0 or the total is not finite."""
    return total / count if count and math.isfinite(total) else None


ANNEALERS: Registry[type[Annealer]] = Registry("annealer", subclasses_of=Annealer)
"""All annealers by name: `ANNEALERS.register(name, cls)` adds one."""
ANNEALERS.register("none", Annealer, summary="Does nothing.")
