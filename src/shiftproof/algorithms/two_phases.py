"""Base of algorithms that change what they minimise once, after some steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from shiftproof.algorithms.algorithm import Algorithm, OptimizerFactory
from shiftproof.base.batch import Batch
from shiftproof.models import Network


class TwoPhases(Algorithm):
    """Base of algorithms that minimise one objective for ``anneal_steps`` steps, and another from then on.

    At that point the optimizer starts anew if the algorithm `renews` it, as in DomainBed, because moments of a gradient
    of another magnitude would hold it back. All of this follows from the number of the step, so checkpoints need not
    store it.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        anneal_steps: number of steps of the first phase, at least 0.
        lr_ratio: the learning rate of the second phase, if it has an optimizer of its own, divided by the run's; above
            0.

    Attributes:
        renews: whether the second phase has an optimizer of its own.
        beginning: whether the current step is in the first phase.

    Raises:
        ValueError: an argument is out of its range.
    """

    renews: bool = True
    accumulates: ClassVar[bool] = False

    def __init__(self, network: Network, num_domains: int, anneal_steps: int, lr_ratio: float = 1.0) -> None:
        super().__init__(network, num_domains)
        check_steps("anneal_steps", anneal_steps)
        if not 0 < lr_ratio < math.inf:
            raise ValueError(f"Invalid lr_ratio value: {lr_ratio}; it must be above 0")
        self.anneal_steps, self.lr_ratio = anneal_steps, lr_ratio
        self.beginning = anneal_steps > 0

    def build_optimizers(self, factory: OptimizerFactory) -> None:
        """Build the optimizer, and keep the factory for the one that replaces it."""
        super().build_optimizers(factory)
        self._factory = factory

    def before_step(self, batches: Sequence[Batch], step: int) -> None:
        """Note the phase, and replace the optimizer at the step that begins the second."""
        self.beginning = step <= self.anneal_steps
        if self.renews and step == self.anneal_steps + 1 and (step > 1 or self.lr_ratio != 1):
            self._renew("annealed", self.lr_ratio)

    def _renew(self, name: str, lr_ratio: float = 1.0) -> None:
        """Replace the optimizer by a new one.

        Args:
            name: key of its random numbers.
            lr_ratio: its learning rate divided by the run's.
        """
        optimizer = self._factory((p for p in self.parameters() if p.requires_grad), name=name, lr_ratio=lr_ratio)
        if lr_ratio != 1:
            for group in optimizer.param_groups:
                group["lr_ratio"] = lr_ratio  # schedules know only the rates that a run starts with
        self.optimizers["all"] = optimizer


def check_steps(name: str, steps: int) -> None:
    """Raise unless a number of steps is a whole number, at least 0."""
    if not isinstance(steps, int) or steps < 0:
        raise ValueError(f"Invalid {name} value: {steps}; it must be a whole number, at least 0")
