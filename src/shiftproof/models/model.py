"""What a model is before it is built, and the featurizer that building it gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from shiftproof.models.normalisation import Normalisation


class Featurizer(NamedTuple):
    """A featurizer with what its model knows about it.

    Attributes:
        module: maps images (n, channels, height, width) to features (n, feature_size).
        normalisation: of the images it expects.
        classifier: first parts of the names that a weights file has for the classifier's tensors ("fc").
    """

    module: nn.Module
    normalisation: Normalisation
    classifier: tuple[str, ...] = ()


class Model(NamedTuple):
    """A model by name.

    Attributes:
        build: called with the shape of an image (channels, height, width).
        image_size: side in pixels of the images that it is made for.
        channels: the only number of channels that it takes; None where it takes any.
    """

    build: Callable[[tuple[int, int, int]], Featurizer]
    image_size: int
    channels: int | None = None
