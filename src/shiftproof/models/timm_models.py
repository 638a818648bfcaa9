"""Featurizers from timm's models, under timm's names."""

from __future__ import annotations

import difflib

from shiftproof.models.model import Featurizer, Model
from shiftproof.models.normalisation import Normalisation, default_normalisation


def timm_model(name: str) -> Model | None:
    """Look up one of timm's models, with or without a tag ("resnet26.bt_in1k", "resnet26"); None if there is none."""
    import timm

    if not timm.is_model(name):
        return None
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # timm has the architecture, but not the tag
        return None
    assert config is not None  # noqa: S101  # every model in timm's registry has one

    def build(image_shape: tuple[int, int, int]) -> Featurizer:
        channels, height, width = image_shape
        # Models with a fixed input size must be told it when they are built.
        size = {"img_size": height if height == width else (height, width)} if config.fixed_input_size else {}
        module = timm.create_model(name, pretrained=False, num_classes=0, in_chans=channels, **size)
        normalisation = (
            Normalisation(tuple(config.mean), tuple(config.std))
            if len(config.mean) == channels
            else default_normalisation(channels)
        )
        # The configuration names only the last layer ("head.fc"); the classifier's other tensors share its first part.
        layers = (config.classifier,) if isinstance(config.classifier, str) else config.classifier or ()
        return Featurizer(module, normalisation, tuple(layer.partition(".")[0] for layer in layers))

    return Model(build, config.input_size[-1])


def timm_names() -> list[str]:
    """Return the names of timm's models, without tags."""
    import timm

    return list(timm.list_models())


def near_timm_names(name: str) -> list[str]:
    """Return up to three of timm's names close to ``name``, nearest first."""
    return difflib.get_close_matches(name, timm_names(), n=3, cutoff=0.5)
