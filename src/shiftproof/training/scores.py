"""How good the model of a run is on labelled pictures, or on the rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shiftproof.algorithms import Batch
from shiftproof.base.choices import MissingLabels
from shiftproof.base.text import one_line
from shiftproof.data import DomainFiles, decode, labelled_files, labelled_images, labelled_table
from shiftproof.training.evaluation import evaluate
from shiftproof.training.inputs import EVALUATION_BATCH
from shiftproof.training.predict import read_rows
from shiftproof.training.saved_model import SavedModel, load


def evaluate_folder(run: str | Path, data_dir: Path, device: str = "cpu") -> dict[str, dict[str, Any]]:
    """Score the model that a run selected on folders of images.

    Args:
        run: the run's folder.
        data_dir: folder of ``<class>/<image>`` or ``<domain>/<class>/<image>``.
        device: the device to evaluate on.

    Returns:
        ``count``, ``accuracy``, ``per_class``, ``loss`` and ``measures`` by domain, as in `evaluate`.

    Raises:
        FileNotFoundError: the run holds no model.
        ValueError: the model is not one of classes of pictures, a file of the run or an image is damaged, or the folder
            does not fit the model.
    """
    model = _classifier(run, device)
    return _scores_of_files(model, labelled_images(data_dir, model.classes))


def evaluate_labelled(
    run: str | Path, data_dir: Path, labels: Path, device: str = "cpu"
) -> tuple[dict[str, dict[str, Any]], int]:
    """Score the model that a run selected on images whose classes a file states.

    Args:
        run: the run's folder.
        data_dir: folder of the images.
        labels: CSV file with the columns `file`, a path from the folder, and `class`.
        device: the device to evaluate on.

    Returns:
        The scores as `evaluate_folder` returns them, and how many images of the folder have no label.

    Raises:
        FileNotFoundError: the run holds no model, or there is no such file.
        ValueError: as `evaluate_folder`, or a row of the file has an unknown class or an image that is missing.
    """
    model = _classifier(run, device)
    files, unlabelled = labelled_files(data_dir, labels, model.classes)
    return _scores_of_files(model, [files]), unlabelled


def evaluate_table(
    run: str | Path,
    file: Path,
    *,
    labels: Sequence[str],
    domain: str | None = None,
    image: str | None = None,
    missing_labels: MissingLabels = "error",
    device: str = "cpu",
) -> tuple[dict[str, dict[str, Any]], int]:
    """Score the model that a run selected on the rows of a table, which are prepared as the run prepared its own.

    Args:
        run: the run's folder.
        file: CSV or Parquet file with the columns that the model was trained on; others are ignored.
        labels: the column of the classes or of the quantity; of a model of several labels, the columns of all of them.
        domain: the column that names each row's domain; None for one domain, which has the name of the file.
        image: the column of picture files, for a model of pictures.
        missing_labels: whether rows without a label are an error ("error"), or are left out ("drop").
        device: the device to evaluate on.

    Returns:
        The scores by domain, as in `evaluate`, and how many rows have no label and were left out.

    Raises:
        FileNotFoundError: the run holds no model.
        ValueError: a file of the run is damaged, the table or a column of it is not there, a picture cannot be read, or
            a row has a value that the model does not take, no label, or one that it does not know; the message names
            file, column and row, counted from 1.
    """
    model = load(run).to(device)
    takes_pictures = model.network.normalisation is not None
    if takes_pictures != (image is not None):
        need = "pictures: name the column of their files as image" if takes_pictures else "no pictures: name no image"
        raise ValueError(f"the model of {run} takes {need}")
    if model.task == "multilabel":
        if {*labels} != {*model.classes}:
            raise ValueError(f"the labels of {run} are {', '.join(model.classes)}, not {', '.join(labels)}")
        labels = model.classes
    rows, pictures = labelled_table(
        file,
        labels=labels,
        task=model.task,
        classes=model.classes,
        domain=domain,
        image=image,
        missing_labels=missing_labels,
    )
    inputs = _vectors(model, file, rows.rows) if pictures is None else [_pixels(model, paths) for paths in pictures]
    return _scores(model, zip(rows.domains, inputs, rows.targets, strict=True)), rows.left_out


def _classifier(run: str | Path, device: str) -> SavedModel:
    model = load(run).to(device)
    model.size_of_pictures()
    if model.task != "classification":
        raise ValueError(f"the task of {run} is {model.task}; only models of classes are scored on folders")
    return model


Read = Callable[[slice], NDArray[Any]]
"""Returns some inputs of a domain as arrays."""


def _pixels(model: SavedModel, paths: Sequence[Path]) -> Read:
    size, channels = model.size_of_pictures()
    return lambda part: np.stack([decode(path, size, channels) for path in paths[part]])


def _vectors(model: SavedModel, file: Path, domains: Sequence[NDArray[np.int64]]) -> list[Read]:
    """Return what reads the rows of each domain, none of which may have an error."""
    vectors, errors, _ = read_rows(model, file)
    if bad := sorted(errors.keys() & set(np.concatenate(domains).tolist())):
        raise ValueError(f"{file}: row {bad[0] + 1}: {one_line(errors[bad[0]])}")
    return [vectors[rows].__getitem__ for rows in domains]


def _scores(model: SavedModel, domains: Iterable[tuple[str, Read, NDArray[Any]]]) -> dict[str, dict[str, Any]]:
    device = next(model.parameters()).device

    def batches(read: Read, targets: NDArray[Any]) -> Iterator[Batch]:
        for start in range(0, len(targets), EVALUATION_BATCH):
            part = slice(start, start + EVALUATION_BATCH)
            inputs = torch.from_numpy(read(part)).to(device)
            yield model.normalise(inputs), torch.from_numpy(targets[part]).to(device)

    network, size = model.network, len(model.classes)
    return {
        name: evaluate(model, batches(read, targets), size, "float32", network.task, network.loss)
        for name, read, targets in domains
    }


def _scores_of_files(model: SavedModel, domains: Iterable[DomainFiles]) -> dict[str, dict[str, Any]]:
    return _scores(model, ((one.name, _pixels(model, one.paths), one.labels) for one in domains))
