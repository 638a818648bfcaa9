"""Empirical risk minimization (Vapnik, 1998)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm
from shiftproof.algorithms.domain_loss import pooled
from shiftproof.base.batch import Batch


class ERM(Algorithm):
    """Minimises the mean loss over the images, or other inputs, of all source domains."""

    takes_class_vectors: ClassVar[bool] = True

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the loss of all batches in one forward pass."""
        images, labels = pooled(batches)
        return self.network.loss(self.predict(images), labels)


ALGORITHMS.register("erm", ERM)
