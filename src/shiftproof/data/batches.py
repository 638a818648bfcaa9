"""The batches of a step, as a function of (seed, step, domain, position)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shiftproof.base.randomness import generator


def batch_indices(
    candidates: Sequence[NDArray[np.int64]],
    batch_size: int,
    seed: int,
    step: int,
    classes: Sequence[NDArray[np.int64]] | None = None,
) -> list[NDArray[np.int64]]:
    """Draw the rows of one step: ``batch_size`` of every source domain, with replacement.

    Args:
        candidates: for every source domain, the indices to draw from; a domain's key is its position among them.
        batch_size: rows per domain.
        seed: the run's seed.
        step: number of the step, from 1.
        classes: for every source domain, the class of each candidate: then every class that the domain has is drawn
            with the same probability; None draws every candidate with the same probability.

    Returns:
        For every source domain, int64 indices of shape (batch_size,).

    Examples:
        >>> import numpy as np
        >>> from shiftproof.data import batch_indices
        >>> first, second = batch_indices([np.arange(10), np.arange(20)], batch_size=4, seed=0, step=3)
        >>> len(first), len(second), bool(first.max() < 10)
        (4, 4, True)
    """
    if classes is not None:
        return [
            _balanced(indices, own, batch_size, generator(seed, "batch", step, domain))
            for domain, (indices, own) in enumerate(zip(candidates, classes, strict=True))
        ]
    return [
        indices[generator(seed, "batch", step, domain).integers(len(indices), size=batch_size)]
        for domain, indices in enumerate(candidates)
    ]


def _balanced(
    indices: NDArray[np.int64], classes: NDArray[np.int64], batch_size: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """Draw a class for every row of a batch, and then one of the class's candidates."""
    order = np.argsort(classes, kind="stable")
    _, firsts, counts = np.unique(classes[order], return_index=True, return_counts=True)
    drawn = random.integers(len(counts), size=batch_size)
    within = (random.random(batch_size) * counts[drawn]).astype(np.int64)
    chosen: NDArray[np.int64] = indices[order[firsts[drawn] + within]]
    return chosen
