"""Featurizers from torchvision's models, with torchvision's tensor names, so that its weights files load."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from torch import nn

from shiftproof.models.model import Featurizer, Model
from shiftproof.models.normalisation import IMAGENET


def _squeezenet1_1(image_shape: tuple[int, int, int]) -> Featurizer:
    from torchvision.models import squeezenet1_1

    parts = OrderedDict(features=squeezenet1_1().features, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
    return Featurizer(nn.Sequential(parts), IMAGENET, ("classifier",))


def _resnet(name: str, image_shape: tuple[int, int, int]) -> Featurizer:
    from torchvision.models import get_model

    module = get_model(name, weights=None)
    module.fc = nn.Identity()
    return Featurizer(module, IMAGENET, ("fc",))


TORCHVISION_MODELS = {
    "squeezenet1_1": (
        Model(_squeezenet1_1, 224, channels=3),
        "SqueezeNet 1.1, 512 features: the global mean of its last feature map (Iandola et al., 2016).",
    ),
    "resnet18": (Model(partial(_resnet, "resnet18"), 224, channels=3), "ResNet-18, 512 features (He et al., 2016)."),
    "resnet50": (Model(partial(_resnet, "resnet50"), 224, channels=3), "ResNet-50, 2048 features (He et al., 2016)."),
}
"""Models and their summaries."""
