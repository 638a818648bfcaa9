"""Build networks by the name of their model."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from shiftproof.base.choices import Task
from shiftproof.base.field_error import FieldError
from shiftproof.base.hparams import Hparam
from shiftproof.base.registry import Registry, UnknownNameError, check_callable
from shiftproof.models.mnist_cnn import mnist_cnn
from shiftproof.models.model import Featurizer, Model
from shiftproof.models.network import Network
from shiftproof.models.normalisation import Normalisation
from shiftproof.models.small import small_conv, small_lenet
from shiftproof.models.tasks import Quantity
from shiftproof.models.timm_models import near_timm_names, timm_model
from shiftproof.models.torchvision_models import TORCHVISION_MODELS
from shiftproof.models.vectors import MLP_HPARAMS, linear, mlp
from shiftproof.models.weights import load_weights, stated_normalisation
from shiftproof.models.wide_resnet import wide_resnet_16_2

MODELS: Registry[Model] = Registry("model", instances_of=Model)
"""Our own models, torchvision's and those of plug-ins; any other name is looked up in timm."""


def _small(build: Callable[[int], nn.Module], image_shape: tuple[int, int, int]) -> Featurizer:
    half = (0.5,) * image_shape[0]
    return Featurizer(build(image_shape[0]), Normalisation(half, half))


MODELS.register(
    "small_conv", Model(partial(_small, small_conv), 28), summary="Small convolutional network for images of 28 pixels."
)
MODELS.register(
    "small_lenet", Model(partial(_small, small_lenet), 32), summary="LeNet for images of 28 to 64 pixels, from scratch."
)
MODELS.register(
    "mnist_cnn", Model(mnist_cnn, 28), summary="DomainBed's network for MNIST: four convolutions, 128 features."
)
MODELS.register(
    "wide_resnet_16_2",
    Model(wide_resnet_16_2, 32),
    summary="Wide residual network of 16 layers and twice the width, for images of 32 pixels (Zagoruyko and "
    "Komodakis, 2016).",
)
MODELS.register("linear", Model(linear, kinds=("vectors",)), summary="Linear model of vectors.")
MODELS.register(
    "mlp", Model(mlp, kinds=("vectors",), hparams=MLP_HPARAMS), summary="Layers of rectified units, for vectors."
)
for _name, (_model, _summary) in TORCHVISION_MODELS.items():
    MODELS.register(_name, _model, summary=_summary)

# Errors that modules raise when images are too small, or not of the size that they are built for.
_MISFITS = (ArithmeticError, AssertionError, LookupError, RuntimeError, ValueError)


def build_network(
    model: str,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    dropout: float,
    seed: int,
    weights: Path | None = None,
    freeze_batch_norm: bool = True,
    zero_classifier: bool = True,
    normalisation: str | None = None,
    hparams: Mapping[str, Any] = MappingProxyType({}),
    task: Task = "classification",
    quantity: Quantity | None = None,
    class_vectors: torch.Tensor | None = None,
) -> Network:
    """Build a network on the CPU; its random start is a function of ``seed`` alone.

    ``model`` is ``small_conv``, ``small_lenet``, ``mnist_cnn``, ``wide_resnet_16_2``, one of torchvision's
    ``squeezenet1_1``, ``resnet18`` and ``resnet50``, or any name from timm; for vectors, ``linear`` or ``mlp``. timm
    has two of these names too; add a tag to get its models, as in ``resnet50.a1_in1k``.

    With ``weights``, batch norms keep the file's statistics in training unless ``freeze_batch_norm`` is false. Without,
    their statistics start at mean 0 and variance 1, which are not worth keeping, and follow the batches.

    With ``weights``, the classifier starts at zero unless ``zero_classifier`` is false: features of a trained network
    can be large, and a random classifier on top of them would make the first gradients large and random (measured in
    docs/results/pacs.md).

    Weights expect images normalised as in their training. If ``normalisation`` is None, the weights file may state it
    (see `stated_normalisation`); otherwise the model's own applies.

    Args:
        model: name of the model.
        input_shape: shape of its input, of pictures (channels, height, width) in pixels.
        num_classes: number of outputs: logits, or 1 for a regression.
        dropout: probability of dropping a feature before the classifier.
        seed: seed of the random start.
        weights: file of the featurizer's weights (see `load_weights`); None keeps the random start.
        freeze_batch_norm: whether batch norms keep the statistics of given weights.
        zero_classifier: whether the classifier starts at zero when weights are given.
        normalisation: normalisation of the images, as `Normalisation.parse` reads it; None takes it from the weights
            file or the model.
        hparams: the model's own hyperparameters; those that are not given keep their defaults.
        task: what the outputs are for.
        quantity: mean and standard deviation of a regression's targets, in whose unit the outputs are.
        class_vectors: given vectors (num_classes, features) of the classes, with which the features are compared in
            the place of a classifier that trains (see `CosineClassifier`).

    Raises:
        FieldError: the model is unknown, cannot take inputs of this shape or does not build a `Featurizer`,
            ``dropout`` is not in [0, 1), the normalisation has another number of channels, the class vectors do not
            fit, or the weights file cannot be read or does not fit.
        FileNotFoundError: there is no such weights file.
    """
    entry = find_model(model)
    pictures = takes_pictures(model)
    if pictures and len(input_shape) != 3:
        raise FieldError("model", f"model '{model}' takes pictures, not inputs of shape {input_shape}")
    if entry.channels not in (None, input_shape[0]):
        raise FieldError("model", f"model '{model}' takes images of {entry.channels} channels, not {input_shape[0]}")
    stated = None
    if normalisation is not None:
        if not pictures:
            raise FieldError("normalisation", f"normalisation is for pictures, which model '{model}' does not take")
        stated = Normalisation.parse(normalisation, input_shape[0])
    elif weights is not None and pictures:
        stated = stated_normalisation(weights, input_shape[0])
    # Seed only the CPU's generator, and restore it afterwards: torch.manual_seed would seed the accelerators' too.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        try:
            featurizer, feature_size = _build(model, entry, input_shape, hparams)
        except FieldError:
            raise
        except _MISFITS as error:
            if not pictures:
                raise FieldError("model", f"model '{model}' cannot take inputs of {input_shape}: {error}") from error
            raise FieldError(("image_size", "model"), _misfit(model, input_shape, error)) from error
        network = Network(
            featurizer.module,
            feature_size,
            num_classes,
            stated or featurizer.normalisation,
            dropout,
            freeze_batch_norm and weights is not None,
            (input_shape[0], input_shape[1], input_shape[2]) if pictures else None,
            featurizer.stages,
            task,
            quantity,
            class_vectors,
        )
    if weights is not None:
        load_weights(network.featurizer, weights, classifier=featurizer.classifier)
        if zero_classifier and class_vectors is None:
            for parameter in network.classifier.parameters():
                torch.nn.init.zeros_(parameter)
    return network


def default_image_size(model: str) -> int:
    """Return the side in pixels of the images that a model is made for (224 for most).

    Raises:
        ValueError: the model is unknown, or its build cannot be called.
    """
    return find_model(model).image_size


def takes_pictures(model: str) -> bool:
    """Return whether a model takes pictures, rather than vectors or other arrays.

    Raises:
        ValueError: the model is unknown, or its build cannot be called.
    """
    return "vectors" not in find_model(model).kinds


def model_hparams(model: str) -> Mapping[str, Hparam]:
    """Return a model's own hyperparameters.

    Raises:
        ValueError: the model is unknown, or its build cannot be called.
    """
    return find_model(model).hparams


def find_model(model: str) -> Model:
    """Return a model by its name.

    Raises:
        ValueError: the model is unknown, or its build cannot be called.
    """
    entry = MODELS[model] if model in MODELS else timm_model(model)
    if entry is None:
        names = dict.fromkeys([*MODELS, *near_timm_names(model)])
        raise UnknownNameError("model", model, [*names, "any other of timm's models"])
    check_callable(f"build of model '{model}'", entry.build, 1 + len(entry.hparams))
    return entry


def _build(
    name: str, entry: Model, input_shape: tuple[int, ...], hparams: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Featurizer, int]:
    """Return a model's featurizer and its number of features, measured on one input.

    Raises:
        FieldError: the model is not written as it must be, whatever the size of the images.
    """
    defaults = {key: hparam.default for key, hparam in entry.hparams.items()}
    featurizer = entry.build(input_shape, **{**defaults, **{key: hparams[key] for key in defaults if key in hparams}})
    if not isinstance(featurizer, Featurizer):
        raise _faulty(name, f"must build a shiftproof.models.Featurizer, not {type(featurizer).__name__}")
    if not isinstance(featurizer.module, nn.Module):
        raise _faulty(name, f"must build a Featurizer of a torch module, not of {type(featurizer.module).__name__}")
    if "vectors" not in entry.kinds and not isinstance(featurizer.normalisation, Normalisation):
        raise _faulty(
            name, f"must state a shiftproof.models.Normalisation, not {type(featurizer.normalisation).__name__}"
        )
    parts = dict(featurizer.module.named_modules())
    if unknown := [stage for stage in featurizer.stages if stage not in parts]:
        raise _faulty(name, f"has no module {unknown[0]}, which is named as a stage")
    featurizer.module.eval()
    with torch.no_grad():
        features = featurizer.module(torch.zeros(1, *input_shape))
    if not isinstance(features, torch.Tensor):
        raise _faulty(name, f"must return a tensor of features, not {type(features).__name__}")
    if features.ndim != 2 or features.numel() == 0:
        raise ValueError(f"its features have shape {tuple(features.shape)}")
    return featurizer, features.shape[1]


def _faulty(name: str, text: str) -> FieldError:
    return FieldError("model", f"model '{name}' {text}")


def _misfit(model: str, image_shape: tuple[int, ...], error: Exception) -> str:
    """Return the message that a model cannot take images of a shape, with the size that it can take."""
    channels, height, width = image_shape
    entry = find_model(model)

    def fits(side: int) -> bool:
        try:
            with torch.device("meta"):  # shapes only: quick for large models too
                _build(model, entry, (channels, side, side))
        except _MISFITS:
            return False
        return True

    # The least size; for models that take only multiples of a number, some size that fits.
    least = 1 + bisect_left(range(1, entry.image_size), True, key=fits)
    return (
        f"model '{model}' cannot take images of {height} x {width} pixels: it takes {least} x {least} "
        f"and is made for {entry.image_size} x {entry.image_size} ({type(error).__name__}: {error})"
    )
