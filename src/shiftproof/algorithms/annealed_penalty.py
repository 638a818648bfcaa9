"""Base of algorithms that raise the weight of a penalty once, after some steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from shiftproof.algorithms.algorithm import Algorithm, OptimizerFactory
from shiftproof.base.batch import Batch
from shiftproof.models import Network


class AnnealedPenalty(Algorithm):
    """Base of algorithms that add a penalty to the loss.

    The penalty's weight is `weight_before` for the first ``anneal_steps`` steps and ``penalty_weight`` from then on. At
    that point the optimizer starts anew, as in DomainBed, because moments of a gradient of another magnitude would hold
    it back. Both follow from the number of the step, so checkpoints need not store them.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        penalty_weight: the penalty's weight after it is raised, at least 0.
        anneal_steps: number of steps before it is raised, at least 0.

    Attributes:
        weight: the penalty's weight at the current step.

    Raises:
        ValueError: an argument is out of its range.
    """

    weight_before: ClassVar[float] = 1.0
    accumulates: ClassVar[bool] = False

    def __init__(self, network: Network, num_domains: int, penalty_weight: float, anneal_steps: int) -> None:
        super().__init__(network, num_domains)
        if not 0 <= penalty_weight < math.inf:
            raise ValueError(f"Invalid penalty_weight value: {penalty_weight}; it must be at least 0")
        if not isinstance(anneal_steps, int) or anneal_steps < 0:
            raise ValueError(f"Invalid anneal_steps value: {anneal_steps}; it must be a whole number, at least 0")
        self.penalty_weight, self.anneal_steps = penalty_weight, anneal_steps
        self.weight = self._weight_at(1)

    def build_optimizers(self, factory: OptimizerFactory) -> None:
        """Build the optimizer, and keep the factory for the one that replaces it."""
        super().build_optimizers(factory)
        self._factory = factory

    def before_step(self, batches: Sequence[Batch], step: int) -> None:
        """Set the penalty's weight, and replace the optimizer at the step that raises it."""
        self.weight = self._weight_at(step)
        if step == self.anneal_steps + 1 > 1:
            self.optimizers["all"] = self._factory((p for p in self.parameters() if p.requires_grad), name="annealed")

    def _weight_at(self, step: int) -> float:
        return self.penalty_weight if step > self.anneal_steps else self.weight_before
