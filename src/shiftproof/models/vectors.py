"""Featurizers of vectors: none for a linear model, or layers of rectified units."""

from __future__ import annotations

from torch import nn

from shiftproof.base.hparams import Hparam, choice, log2_int
from shiftproof.models.model import Featurizer

MLP_HPARAMS = {"width": Hparam(64, log2_int(4, 8)), "depth": Hparam(2, choice(1, 2, 3))}


def linear(input_shape: tuple[int, ...]) -> Featurizer:
    """Build a featurizer that returns vectors (n, size) as they are, so that the network is linear."""
    _size(input_shape)
    return Featurizer(nn.Identity(), None)


def mlp(input_shape: tuple[int, ...], width: int, depth: int) -> Featurizer:
    """Build layers of rectified linear units.

    Args:
        input_shape: shape (size,) of a vector.
        width: units of each layer.
        depth: number of layers, the classifier apart.

    Raises:
        ValueError: the inputs are no vectors, or a number is below 1.
    """
    if width < 1 or depth < 1:
        raise ValueError(f"an mlp has at least one layer of one unit, not {depth} of {width}")
    layers: list[nn.Module] = []
    size = _size(input_shape)
    for _ in range(depth):
        layers += [nn.Linear(size, width), nn.ReLU()]
        size = width
    return Featurizer(nn.Sequential(*layers), None)


def _size(input_shape: tuple[int, ...]) -> int:
    if len(input_shape) != 1:
        raise ValueError(f"it takes vectors of shape (size,), not {input_shape}")
    return input_shape[0]
