"""A model before it is built, and the featurizer that building it returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from shiftproof.models.normalisation import Normalisation


class Featurizer(NamedTuple):
    """A featurizer, and how to feed it and load its weights.

    Attributes:
        module: maps images (n, channels, height, width) to features (n, feature_size).
        normalisation: normalisation of the images that it expects.
        classifier: first parts of the names of the classifier's tensors in a weights file ("fc").
        stages: names of the modules whose outputs are its stages, the earliest first, for methods that act on inner
            features (MIRO, MixStyle): feature maps or tokens of one image each. Empty to find them by their resolution.
    """

    module: nn.Module
    normalisation: Normalisation
    classifier: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()


class Model(NamedTuple):
    """A model that can be built by name.

    Attributes:
        build: builds the featurizer for images of a shape (channels, height, width).
        image_size: side in pixels of the images that it is made for.
        channels: the only number of channels that it takes; None if it takes any.
    """

    build: Callable[[tuple[int, int, int]], Featurizer]
    image_size: int
    channels: int | None = None

    @property
    def documented(self) -> object:
        """What its docstring describes, for `Registry.summary`."""
        return self.build
