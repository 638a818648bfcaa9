"""The batches of a step, as a function of (seed, step, domain, position)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shiftproof.base.randomness import generator


def batch_indices(
    candidates: Sequence[NDArray[np.int64]], batch_size: int, seed: int, step: int
) -> list[NDArray[np.int64]]:
    """Draw the images of one step: ``batch_size`` of every source domain, with replacement.

    Args:
        candidates: for every source domain, the indices to draw from; a domain's key is its position among them.
        batch_size: images per domain.
        seed: the run's seed.
        step: number of the step, from 1.

    Returns:
        For every source domain, int64 indices of shape (batch_size,).
    """
    return [
        indices[generator(seed, "batch", step, domain).integers(len(indices), size=batch_size)]
        for domain, indices in enumerate(candidates)
    ]
