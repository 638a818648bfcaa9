"""Opens the data sets of a study, and finds the model and image size for their kind of images."""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from pathlib import Path

from shiftproof.base.choices import Kind
from shiftproof.base.field_error import FieldError
from shiftproof.base.files import with_home
from shiftproof.data import DATASETS, DomainDataset, Look, look_at_folder
from shiftproof.models import Normalisation, default_image_size, stated_normalisation
from shiftproof.studies.study import Study

VECTOR_MODEL = "mlp"
"""The default model for vectors."""
SMALL_MODEL = "small_lenet"
"""The default model for a folder of small images."""


FIXED_SIZE = ("small_images", "vectors")
"""Kinds of inputs that published data sets have in one size."""


def open_data(study: Study, dataset: str) -> DomainDataset:
    """Open one of the data sets of a study.

    Raises:
        FieldError: its images are photographs and no model is named, or weights are given without their model.
        ValueError: it cannot be opened.
    """
    kind = None if DATASETS[dataset].kind else kind_of(study, dataset)
    return open_dataset(dataset, data_folder(study, dataset), image_size_of(study, dataset), kind)


def data_folder(study: Study, dataset: str) -> Path | None:
    """Return the folder that holds a data set of a study; None for an embedded data set among others."""
    embedded = DATASETS[dataset].embedded
    if study.data_dir is None or (embedded and not all(DATASETS[name].embedded for name in study.datasets)):
        return None
    return with_home(study.data_dir).absolute()


@lru_cache(maxsize=2)
def open_dataset(name: str, data_dir: Path | None, image_size: int | None, kind: Kind | None) -> DomainDataset:
    """Open a data set by name, once per process; ``kind`` is for folders of unpublished images.

    Raises:
        FieldError: what the entry opens is no data set.
        ValueError: it cannot be opened.
    """
    entry = DATASETS[name]
    dataset: object = entry.open(data_dir, image_size) if entry.kind else entry.open(data_dir, image_size, kind)
    if not isinstance(dataset, DomainDataset):
        returned = type(dataset).__name__
        raise FieldError("datasets", f"open of data set '{name}' must return a DomainDataset, not {returned}")
    return dataset


def kind_of(study: Study, dataset: str) -> Kind:
    """Return the kind of a data set's images: its own, else the study's, else inferred from the files.

    Raises:
        FolderError: the folder to infer it from is missing or not laid out as a data set.
    """
    return DATASETS[dataset].kind or study.kind or _look(data_folder(study, dataset)).kind


def model_of(study: Study, dataset: str) -> str:
    """Return the name of the model that is trained on a data set.

    Raises:
        FieldError: its images are photographs and no model is named, or weights are given without their model.
    """
    known = study.model or DATASETS[dataset].model
    if known is not None:
        return known
    if study.weights is not None:
        raise FieldError("model", f"no model is named: name the one whose weights {study.weights.name} holds")
    kind = kind_of(study, dataset)
    if kind == "vectors":
        return VECTOR_MODEL
    if kind == "photographs":
        folder, advice = data_folder(study, dataset), ""
        name = dataset
        if DATASETS[dataset].kind is None:  # a folder, whose kind can be stated
            name = dataset if folder is None else os.path.basename(os.path.abspath(folder))
            advice = ". If they are digits, characters or spectrograms, set kind to small_images"
        raise FieldError(
            "model",
            f"the images of {name} are photographs, and no model is named. Give one with weights to start from (model "
            "resnet18 and a file of weights from torchvision or timm). A model alone is trained from scratch, "
            f"which takes far more images and steps{advice}",
        )
    return SMALL_MODEL


def image_size_of(study: Study, dataset: str) -> int | None:
    """Return the side in pixels to which a data set's images are resized; None for data sets of a fixed size.

    Unless the study states a size, it is the model's for photographs and the images' own for small images.
    """
    fixed_size = DATASETS[dataset].kind in FIXED_SIZE
    if study.image_size is not None:
        beside = fixed_size and any(DATASETS[name].kind not in FIXED_SIZE for name in study.datasets)
        return None if beside else study.image_size
    if fixed_size:
        return None
    if kind_of(study, dataset) == "photographs":
        return default_image_size(model_of(study, dataset))
    return _look(data_folder(study, dataset)).small_size


def normalisation_of(study: Study, channels: int) -> Normalisation | None:
    """Return the normalisation of images that a study or its weights file states; None to use the model's.

    Raises:
        FieldError: it does not fit the number of channels, or the weights file cannot be read.
        FileNotFoundError: the weights file does not exist.
    """
    if study.normalisation is not None:
        return Normalisation.parse(study.normalisation, channels)
    return None if study.weights is None else stated_normalisation(study.weights, channels)


def say_normalisation(study: Study, model: str, normalisation: Normalisation) -> None:
    """Print how images are normalised for given weights, and where the normalisation comes from."""
    if study.weights is None:
        return
    if study.normalisation is not None:
        source = "as stated"
    elif stated_normalisation(study.weights, len(normalisation.mean)) is not None:
        source = "as the file states; set normalisation to override this"
    else:
        source = f"the default of model {model}; set normalisation if the weights were trained with another"
    _say(f"{study.weights.name}: normalisation {normalisation}, {source}")


@lru_cache(maxsize=16)
def _say(line: str) -> None:
    """Print a line, once per process."""
    print(line, file=sys.stderr)


@lru_cache(maxsize=2)
def _look(folder: Path | None) -> Look:
    """Infer the kind of images in a folder, once per process, and print the result."""
    look = look_at_folder(folder)
    size = f" of {look.small_size} x {look.small_size} pixels" if look.kind == "small_images" else ""
    print(f"{folder}: treated as {look.kind}{size} ({look.text}); set kind to override this", file=sys.stderr)
    return look
