"""Empirical risk minimization (Vapnik, 1998)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm, Batch


class ERM(Algorithm):
    """The mean cross-entropy over the images of all source domains."""

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the loss of all batches in one forward pass."""
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        return F.cross_entropy(self.predict(images), labels)


ALGORITHMS.register("erm", ERM)
