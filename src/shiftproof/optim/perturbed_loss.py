"""A watch over how far the perturbed loss is above the loss."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from shiftproof.base.sharding import PLAIN

FACTOR = 10
"""A perturbed loss of more than this many times the loss is far above it."""
STEPS = 20
"""For so many steps on end it must be far above. That is looked at only this often, as a look waits for the device."""


class PerturbedLossWatch:
    """Counts the steps on end whose perturbed loss is far above the loss, on the device that holds the losses."""

    def __init__(self) -> None:
        self._steps = 0
        self._far: Tensor | int = 0
        self._most: Tensor | int = 0  # of them since the last look

    def is_far(self, loss: Tensor | float, perturbed: Tensor | float) -> bool:
        """Take in the losses of a step, and return whether the perturbed one has been far above for `STEPS` steps.

        Args:
            loss: the loss, as `number` returns it.
            perturbed: the perturbed loss, likewise.
        """
        far = (loss > 0) & (perturbed > FACTOR * loss) & (perturbed < math.inf)
        self._far = (self._far + 1) * far
        self._most = self._most + (self._far - self._most) * (self._far > self._most)
        self._steps += 1
        if self._steps % STEPS:
            return False
        most, self._most = int(self._most), 0
        return most >= STEPS


def number(result: object) -> Tensor | float:
    """Return the loss that a closure returned, as a copy if it is a tensor; NaN if it is not a real number."""
    if type(result) in PLAIN:
        loss = torch.as_tensor(result).detach()
        if loss.numel() == 1 and loss.is_floating_point() and not loss.is_meta:
            return loss.reshape(()).clone()  # the closure may reuse the memory
    elif isinstance(result, Real):
        return float(result)
    return math.nan
