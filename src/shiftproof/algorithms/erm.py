"""Empirical risk minimization (Vapnik, 1998)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm
from shiftproof.algorithms.domain_loss import pooled
from shiftproof.base.batch import Batch


class ERM(Algorithm):
    """Minimises the mean cross-entropy over the images of all source domains."""

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the loss of all batches in one forward pass."""
        images, labels = pooled(batches)
        return F.cross_entropy(self.predict(images), labels)


ALGORITHMS.register("erm", ERM)
