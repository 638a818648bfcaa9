"""Directions in weight space, scaled by the norms of filters."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from shiftproof.base.randomness import generator
from shiftproof.diagnostics.mean_loss import flat_weights, trained_weights


def filter_norms(model: nn.Module, vector: Tensor) -> Tensor:
    """Return for each element of a vector (n,) the norm of the vector over the element's filter, of shape (n,).

    A filter is the slice of a weight that yields one output, along the first dimension. Biases and the factors of
    normalisation layers (parameters with fewer than two dimensions) have no filter, and norm 0 here.

    Args:
        model: the model with the filters, of which n weights train.
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
    """Return the `filter_norms` of the weights that train, of shape (n,).

    Raises:
        ValueError: all are 0, so there is no unit of measurement.
    """
    norms = filter_norms(model, flat_weights(model))
    if not norms.any():
        raise ValueError("there is no filter: no weight that trains has two or more dimensions and is not zero")
    return norms


def units(model: nn.Module, vector: Tensor) -> Tensor:
    """Scale every filter's part of a vector (n,) to length 1; zeros stay zeros, and elements without a filter get 0."""
    norms = filter_norms(model, vector)
    return torch.where(norms > 0, vector / norms, 0)


def random_units(model: nn.Module, *key: int | str) -> Tensor:
    """Draw a uniform direction of length 1 for every filter; return them as one vector of shape (n,).

    Args:
        model: the model with the filters.
        *key: key of the draws.
    """
    like = flat_weights(model)
    normal = generator(*key).standard_normal(len(like), dtype=np.float32)
    return units(model, torch.from_numpy(normal).to(like))


def filter_normalised_directions(model: nn.Module, seed: int, count: int = 2) -> Tensor:
    """Draw Gaussian directions, scaled so that each filter has the norm of the model's own filter.

    Li et al., "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018, section 4: a distance of 1 changes every
    filter by its own size, so nets of different scale can be compared. Biases and the factors of normalisation layers
    do not change, as in the authors' figures. Two directions span the plane ``Plane(flat_weights(model), directions)``.

    Args:
        model: the model whose weights set the scale.
        seed: key of the draws; the first direction does not depend on ``count``.
        count: number of directions, at least 1.

    Returns:
        The directions, of shape (count, n), where n is the number of weights that train.

    Raises:
        ValueError: no weight that trains has a nonzero filter.
    """
    norms = weight_norms(model)
    return torch.stack([norms * random_units(model, seed, "filter-normalised direction", i) for i in range(count)])
