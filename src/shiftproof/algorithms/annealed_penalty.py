"""Base of algorithms that raise the weight of a penalty once, after some steps."""

from __future__ import annotations

import math
from typing import ClassVar

from shiftproof.algorithms.two_phases import TwoPhases
from shiftproof.models import Network


class AnnealedPenalty(TwoPhases):
    """Base of algorithms that add a penalty to the loss.

    The penalty's weight is `weight_before` for the first ``anneal_steps`` steps and ``penalty_weight`` from then on. At
    that point the optimizer starts anew (see `TwoPhases`).

    Args:
        network: the network to train.
        num_domains: number of source domains.
        penalty_weight: the penalty's weight after it is raised, at least 0.
        anneal_steps: number of steps before it is raised, at least 0.
        lr_ratio: the learning rate from then on, divided by the run's; above 0.

    Raises:
        ValueError: an argument is out of its range.
    """

    weight_before: ClassVar[float] = 1.0

    def __init__(
        self, network: Network, num_domains: int, penalty_weight: float, anneal_steps: int, lr_ratio: float = 1.0
    ) -> None:
        super().__init__(network, num_domains, anneal_steps, lr_ratio)
        if not 0 <= penalty_weight < math.inf:
            raise ValueError(f"Invalid penalty_weight value: {penalty_weight}; it must be at least 0")
        self.penalty_weight = penalty_weight

    @property
    def weight(self) -> float:
        """The penalty's weight at the current step."""
        return self.weight_before if self.beginning else self.penalty_weight
