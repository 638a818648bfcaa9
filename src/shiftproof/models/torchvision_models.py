"""Featurizers from torchvision's models, with torchvision's tensor names, so that its weights files load."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from torch import hub, nn

from shiftproof.models.model import Featurizer, Model, Published
from shiftproof.models.normalisation import IMAGENET, Normalisation


def _squeezenet1_1(image_shape: tuple[int, int, int]) -> Featurizer:
    from torchvision.models import squeezenet1_1

    parts = OrderedDict(features=squeezenet1_1().features, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
    return Featurizer(nn.Sequential(parts), IMAGENET, ("classifier",))


def _resnet(name: str, image_shape: tuple[int, int, int]) -> Featurizer:
    from torchvision.models import get_model

    module = get_model(name, weights=None)
    module.fc = nn.Identity()
    return Featurizer(module, IMAGENET, ("fc",))


def _published(name: str) -> Published:
    """Return the first weights that torchvision published for a model, from which benchmarks of the field start."""
    from torchvision.models import get_model_weights

    weights = get_model_weights(name)["IMAGENET1K_V1"]
    images = weights.transforms()
    file = Path(hub.get_dir(), "checkpoints", Path(urlsplit(weights.url).path).name)
    return Published(
        f"torchvision/{weights}",
        None,
        Normalisation(tuple(images.mean), tuple(images.std)),
        weights.url,
        file.is_file,
        partial(weights.get_state_dict, check_hash=True),
    )


def _model(name: str, build: Callable[[tuple[int, int, int]], Featurizer]) -> Model:
    return Model(build, 224, channels=3, published=partial(_published, name))


TORCHVISION_MODELS = {
    "squeezenet1_1": (
        _model("squeezenet1_1", _squeezenet1_1),
        "SqueezeNet 1.1, 512 features: the global mean of its last feature map (Iandola et al., 2016).",
    ),
    "resnet18": (_model("resnet18", partial(_resnet, "resnet18")), "ResNet-18, 512 features (He et al., 2016)."),
    "resnet50": (_model("resnet50", partial(_resnet, "resnet50")), "ResNet-50, 2048 features (He et al., 2016)."),
}
"""Models and their summaries."""
