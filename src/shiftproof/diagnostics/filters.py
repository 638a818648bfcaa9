"""Directions in weight space, measured in units of the norms of filters."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from shiftproof.base.randomness import generator
from shiftproof.diagnostics.mean_loss import flat_weights, trained_weights


def filter_norms(model: nn.Module, vector: Tensor) -> Tensor:
    """Return for every element of a vector of shape (n,) the norm of its filter's part of the vector, of that shape.

    A filter is what yields one output: a slice of a weight along its first dimension. Biases and the factors of
    normalisation layers (parameters of fewer than two dimensions) have none, and 0 here.

    Args:
        model: has the filters, in ``n`` weights that train.
        vector: the weights themselves (`flat_weights`), or a change of them.
    """
    parameters = list(trained_weights(model).values())
    parts = []
    for p, part in zip(parameters, torch.split(vector, [p.numel() for p in parameters]), strict=True):
        if p.ndim > 1:
            filters = part.view(len(p), -1)
            parts.append(filters.norm(dim=1, keepdim=True).expand_as(filters).flatten())
        else:
            parts.append(torch.zeros_like(part))
    return torch.cat(parts)


def weight_norms(model: nn.Module) -> Tensor:
    """Return `filter_norms` of the weights that train, of shape (n,).

    Raises:
        ValueError: all are 0, so that there is no unit to measure in.
    """
    norms = filter_norms(model, flat_weights(model))
    if not norms.any():
        raise ValueError("no weight that trains has two or more dimensions and is not zero: there is no filter")
    return norms


def units(model: nn.Module, vector: Tensor) -> Tensor:
    """Return a vector of shape (n,) with every filter's part at length 1; zeros stay, and what has no filter gets 0."""
    norms = filter_norms(model, vector)
    return torch.where(norms > 0, vector / norms, 0)


def random_units(model: nn.Module, *key: int | str) -> Tensor:
    """Draw a direction of length 1 for every filter, uniformly; return them as one vector of shape (n,).

    Args:
        model: has the filters.
        *key: of the draws.
    """
    like = flat_weights(model)
    normal = generator(*key).standard_normal(len(like), dtype=np.float32)
    return units(model, torch.from_numpy(normal).to(like))


def filter_normalised_directions(model: nn.Module, seed: int, count: int = 2) -> Tensor:
    """Draw Gaussian directions of which every filter has the norm of the model's filter.

    Li et al., "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018, section 4: at a distance of 1 every filter
    is changed by as much as its own size, so that nets of different scale can be compared. Biases and the factors of
    normalisation layers stay as they are, as in the authors' figures. ``Plane(flat_weights(model), directions)`` is
    the plane of two of them.

    Args:
        model: the directions are around its weights.
        seed: key of the draws; the first direction does not depend on ``count``.
        count: number of directions, at least 1.

    Returns:
        The directions, of shape (count, n), where n is the number of weights that train.

    Raises:
        ValueError: no weight that trains has a filter that is not zero.
    """
    norms = weight_norms(model)
    return torch.stack([norms * random_units(model, seed, "filter-normalised direction", i) for i in range(count)])
