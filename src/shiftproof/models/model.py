"""A model before it is built, and the featurizer that building it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor, nn

from shiftproof.base.choices import PICTURES, Kind
from shiftproof.base.hparams import Hparam
from shiftproof.models.normalisation import Normalisation


class Featurizer(NamedTuple):
    """A featurizer, and how to feed it and load its weights.

    Attributes:
        module: maps images (n, channels, height, width), or other inputs, to features (n, feature_size).
        normalisation: normalisation of the images that it expects; None for inputs that are no pictures.
        classifier: first parts of the names of the classifier's tensors in a weights file ("fc").
        stages: names of the modules whose outputs are its stages, the earliest first, for methods that act on inner
            features (MIRO, MixStyle): feature maps or tokens of one image each. Empty to find them by their resolution.
    """

    module: nn.Module
    normalisation: Normalisation | None
    classifier: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()


class Published(NamedTuple):
    """Weights that are published for a model.

    Attributes:
        name: what they are called where they are published, as in "timm/resnet50.a1_in1k".
        licence: as the publisher states it; None if none is stated with them.
        normalisation: normalisation of the images that they were trained with.
        address: where their file is.
        is_here: returns whether the file was downloaded before, so that reading needs no network.
        read: returns the tensors by the names that the featurizer has for them, with a classifier or without; it
            downloads the file unless it is here.
    """

    name: str
    licence: str | None
    normalisation: Normalisation
    address: str
    is_here: Callable[[], bool]
    read: Callable[[], Mapping[str, Tensor]]


class Model(NamedTuple):
    """A model that can be built by name.

    Attributes:
        build: builds the featurizer for inputs of a shape, of pictures (channels, height, width); hyperparameters are
            further arguments by their names.
        image_size: side in pixels of the images that it is made for; of no meaning for other inputs.
        channels: the only number of channels that it takes; None if it takes any.
        kinds: the kinds of inputs that it takes.
        hparams: its hyperparameters, besides the dropout before the classifier that every network has.
        published: returns what is known of its published weights; None if none are known.
    """

    build: Callable[..., Featurizer]
    image_size: int = 224
    channels: int | None = None
    kinds: tuple[Kind, ...] = PICTURES
    hparams: Mapping[str, Hparam] = MappingProxyType({})
    published: Callable[[], Published] | None = None

    @property
    def documented(self) -> object:
        """What its docstring describes, for `Registry.summary`."""
        return self.build
