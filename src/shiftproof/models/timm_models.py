"""Featurizers from timm's models, under timm's names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from torch import Tensor

from shiftproof.models.model import Featurizer, Model, Published
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

    return Model(build, config.input_size[-1], published=partial(_published, name) if config.has_weights else None)


def _published(name: str) -> Published:
    """Return the weights that timm has for a model, or for its tag."""
    import timm
    from huggingface_hub import constants, try_to_load_from_cache
    from torch import hub

    config = timm.get_pretrained_cfg(name)
    assert config is not None  # noqa: S101  (the model has weights)
    full = f"{config.architecture}.{config.tag}" if config.tag else str(config.architecture)
    if config.hf_hub_id:
        names = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
        address = f"{constants.ENDPOINT}/{config.hf_hub_id}/resolve/main/{names[0]}"
        kept = [try_to_load_from_cache(config.hf_hub_id, one) for one in names]
    else:
        address = config.url
        kept = [Path(hub.get_dir(), "checkpoints", Path(urlsplit(address).path).name)]
    here = [str(one) for one in kept if isinstance(one, str | Path) and Path(one).is_file()]

    def read() -> Mapping[str, Tensor]:
        # The classifier stays, because timm then checks that the file has every tensor.
        overlay = {"file": here[0]} if here else {}  # without asking the hub for a newer one
        module = timm.create_model(full, pretrained=True, pretrained_cfg_overlay=overlay)
        return dict(module.state_dict())

    normalisation = Normalisation(tuple(config.mean), tuple(config.std))
    return Published(f"timm/{full}", config.license, normalisation, address, lambda: bool(here), read)


def timm_names() -> list[str]:
    """Return the names of timm's models, without tags."""
    import timm

    return list(timm.list_models())


def near_timm_names(name: str) -> list[str]:
    """Return up to three of timm's names close to ``name``, nearest first."""
    return difflib.get_close_matches(name, timm_names(), n=3, cutoff=0.5)
