"""Opens the data sets of a study, and finds the model and image size for their kind of images."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from shiftproof.base.choices import Kind
from shiftproof.base.field_error import FieldError
from shiftproof.base.files import with_home
from shiftproof.data import (
    DATASETS,
    DomainDataset,
    Look,
    TableFile,
    is_feature_set,
    look_at_folder,
    look_at_table,
    read_class_vectors,
)
from shiftproof.models import (
    HUB,
    LICENCE,
    Normalisation,
    default_image_size,
    stated_facts,
    stated_normalisation,
    weights_name,
)
from shiftproof.protocol import PROTOCOLS
from shiftproof.studies.study import Study
from shiftproof.training import RunSpec

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
    table = table_of(study, dataset)
    folder, vectors = data_folder(study, dataset), class_vectors_of(study)
    opened = open_dataset(dataset, folder, image_size_of(study, dataset), kind, table, vectors)
    if table is not None:
        say(_table_text(table, opened))
    return opened


def table_of(study: Study, dataset: str) -> TableFile | None:
    """Return the table of a data set of a study; None if it is not opened from one."""
    if not DATASETS[dataset].table:
        return None
    assert study.metadata is not None and study.domain is not None  # noqa: S101, PT018  (checked with the study)
    return TableFile(
        with_home(study.metadata).absolute(),
        study.domain,
        study.labels,
        study.task or ("multilabel" if len(study.labels) > 1 else "classification"),
        study.features,
        study.image,
        study.group,
        study.missing_labels,
        study.id,
    )


def _table_text(table: TableFile, dataset: DomainDataset) -> str:
    """Return what a table was taken for, in one line."""
    rows = sum(len(domain) for domain in dataset.domains)
    left_out = f"; {dataset.left_out} without a label are left out" if dataset.left_out else ""
    text = f"{table.file}: {rows} rows in {len(dataset.domains)} domains{left_out}"
    if dataset.columns is None:
        return text
    categories = [column.name for column in dataset.columns if column.categories]
    named = f": {', '.join(categories)}" if categories else ""
    return (
        f"{text}; {len(dataset.columns) - len(categories)} columns of numbers, {len(categories)} of categories{named}"
    )


def data_folder(study: Study, dataset: str) -> Path | None:
    """Return the folder that holds a data set of a study; None for one that needs none, among others."""
    without = {name for name in study.datasets if DATASETS[name].embedded or DATASETS[name].table}
    if study.data_dir is None or DATASETS[dataset].table or (dataset in without and without != {*study.datasets}):
        return None
    return with_home(study.data_dir).absolute()


def class_vectors_of(study: Study) -> Path | None:
    """Return the file of the vectors of a study's classes, if there is one."""
    return None if study.class_vectors is None else with_home(study.class_vectors).absolute()


def open_data_of(
    place: Path,
    spec: RunSpec,
    data_dir: Path | None,
    table: TableFile | None,
    class_vectors: Path | None = None,
) -> DomainDataset:
    """Open the data set that a run was trained on, of which its spec knows the name and not the place.

    Args:
        place: the folder that holds the run, or its study, for errors.
        spec: the run's spec.
        data_dir: folder that holds the data set, unless embedded.
        table: the table that it was trained on, if any, with the same meaning of its columns.
        class_vectors: file of the vectors of its classes, if they are needed.

    Raises:
        ValueError: it is one of vectors and no place is named, or it cannot be opened.
    """
    folder = None if data_dir is None else with_home(data_dir).absolute()
    encoded = folder is not None and is_feature_set(folder)
    if spec.kind == "vectors" and table is None and not encoded:
        raise ValueError(
            f"{place} was trained on the table {spec.dataset}: name its file and columns as in training, by "
            "--metadata, --domain, --label, ..."
        )
    own = "table" if table is not None else "features" if encoded else "folder"
    key = spec.dataset if own == "folder" and spec.dataset in DATASETS else own
    vectors = None if class_vectors is None else with_home(class_vectors).absolute()
    return open_dataset(key, folder, spec.image_size, spec.kind or "photographs", table, vectors)


@lru_cache(maxsize=2)
def open_dataset(
    name: str,
    data_dir: Path | None,
    image_size: int | None,
    kind: Kind | None,
    table: TableFile | None = None,
    class_vectors: Path | None = None,
) -> DomainDataset:
    """Open a data set by name, once per process; ``kind`` is for unpublished images, ``table`` for a user's table.

    Raises:
        FieldError: what the entry opens is no data set, or the class vectors are not of its classes.
        ValueError: it cannot be opened.
    """
    entry = DATASETS[name]
    source = table if entry.table else data_dir
    dataset: object = entry.open(source, image_size) if entry.kind else entry.open(source, image_size, kind)
    if not isinstance(dataset, DomainDataset):
        returned = type(dataset).__name__
        raise FieldError("datasets", f"open of data set '{name}' must return a DomainDataset, not {returned}")
    if class_vectors is None:
        return dataset
    _check_comparable(dataset)
    return replace(dataset, class_vectors=read_class_vectors(class_vectors).of(dataset.classes))


def _check_comparable(dataset: DomainDataset) -> None:
    """Raise FieldError unless a data set's inputs, or features of them, can be compared with vectors of its classes."""
    name = dataset.name
    if dataset.task != "classification":
        raise FieldError("class_vectors", f"class vectors are for classification, and {name} for {dataset.task}")
    if dataset.kind != "vectors":
        return
    categories = any(column.categories for column in dataset.columns or ())
    if categories or any(np.isnan(domain.inputs).any() for domain in dataset.domains):
        raise FieldError("class_vectors", f"{name} has categories or lacks values, and class vectors are of numbers")


def kind_of(study: Study, dataset: str) -> Kind:
    """Return the kind of a data set's images: its own, else the study's, else inferred from the files.

    Raises:
        FolderError: the folder to infer it from is missing or not laid out as a data set.
    """
    if DATASETS[dataset].table and study.image is None:
        return "vectors"
    return DATASETS[dataset].kind or study.kind or _look_at(study, dataset).kind


def model_of(study: Study, dataset: str) -> str:
    """Return the name of the model that is trained on a data set: the study's, its protocol's, the data set's or ours.

    Raises:
        FieldError: its images are photographs and no model is named, or weights are given without their model.
        ValueError: the data set cannot be opened.
    """
    own = DATASETS[dataset].model
    if study.model is not None:
        return study.model
    if own is not None:
        return _published_model(study, dataset) or own
    if study.weights is not None:
        raise FieldError("model", f"no model is named: name the one whose weights {study.weights.name} holds")
    kind = kind_of(study, dataset)
    if kind == "vectors":
        return VECTOR_MODEL
    if kind == "photographs":
        folder, advice = data_folder(study, dataset), ""
        name = dataset
        if DATASETS[dataset].kind is None:  # a folder or table, whose kind can be stated
            name = dataset if folder is None else os.path.basename(os.path.abspath(folder))
            if study.metadata is not None and DATASETS[dataset].table:
                name = study.metadata.name
            advice = ". If they are digits, characters or spectrograms, set kind to small_images"
        raise FieldError(
            "model",
            f"the images of {name} are photographs, and no model is named. Give one with weights to start from (model "
            "resnet18 and weights hub, or a file from torchvision or timm). A model alone is trained from scratch, "
            f"which takes far more images and steps{advice}",
        )
    return _published_model(study, dataset) or SMALL_MODEL


def _published_model(study: Study, dataset: str) -> str | None:
    """Return the model that the study's protocol has for small images of a data set's size; None if it has none."""
    models = PROTOCOLS[study.protocol].small_models
    if not models or kind_of(study, dataset) != "small_images":
        return None
    _, height, width = open_data(study, dataset).input_shape
    return models.get(height) if height == width else None


def image_size_of(study: Study, dataset: str) -> int | None:
    """Return the side in pixels to which a data set's images are resized; None for data sets of a fixed size.

    Unless the study states a size, it is the model's for photographs and the images' own for small images.
    """
    fixed_size = _has_fixed_size(study, dataset)
    if study.image_size is not None:
        beside = fixed_size and not all(_has_fixed_size(study, name) for name in study.datasets)
        return None if beside else study.image_size
    if fixed_size:
        return None
    if kind_of(study, dataset) == "photographs":
        return default_image_size(model_of(study, dataset))
    return _look_at(study, dataset).small_size


def _has_fixed_size(study: Study, dataset: str) -> bool:
    entry = DATASETS[dataset]
    return entry.kind in FIXED_SIZE or (entry.table and study.image is None)


def normalisation_of(study: Study, channels: int) -> Normalisation | None:
    """Return the normalisation of images that a study or its weights file states; None to use the model's.

    Raises:
        FieldError: it does not fit the number of channels, or the weights file cannot be read.
        FileNotFoundError: the weights file does not exist.
    """
    if study.normalisation is not None:
        return Normalisation.parse(study.normalisation, channels)
    return None if study.weights_file is None else stated_normalisation(study.weights_file, channels)


def say_normalisation(study: Study, model: str, normalisation: Normalisation) -> None:
    """Print how images are normalised for given weights, and where the normalisation comes from.

    Of published weights, the licence is printed too.
    """
    file = study.weights_file
    if file is None:
        return
    if study.weights == HUB:
        say(f"{weights_name(file)}: licence {stated_facts(file).get(LICENCE, 'not stated')}; kept in {file}")
    if study.normalisation is not None:
        source = "as stated"
    elif stated_normalisation(file, len(normalisation.mean)) is not None:
        source = "as the file states; set normalisation to override this"
    else:
        source = f"the default of model {model}; set normalisation if the weights were trained with another"
    say(f"{weights_name(file)}: normalisation {normalisation}, {source}")


@lru_cache(maxsize=16)
def say(line: str) -> None:
    """Print a line, once per process."""
    print(line, file=sys.stderr)


def _look_at(study: Study, dataset: str) -> Look:
    return _look(table_of(study, dataset) or data_folder(study, dataset))


@lru_cache(maxsize=2)
def _look(source: Path | TableFile | None) -> Look:
    """Infer the kind of images in a folder or of a table, once per process, and print the result."""
    place = source.file if isinstance(source, TableFile) else source
    look = look_at_table(source) if isinstance(source, TableFile) else look_at_folder(source)
    size = f" of {look.small_size} x {look.small_size} pixels" if look.kind == "small_images" else ""
    print(f"{place}: treated as {look.kind}{size} ({look.text}); set kind to override this", file=sys.stderr)
    return look
