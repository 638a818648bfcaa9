"""How good the model of a run is on labelled pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shiftproof.algorithms import Batch
from shiftproof.data import DomainFiles, decode, labelled_files, labelled_images
from shiftproof.training.evaluation import evaluate
from shiftproof.training.inputs import EVALUATION_BATCH
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
    return _scores(model, labelled_images(data_dir, model.classes))


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
    return _scores(model, [files]), unlabelled


def _classifier(run: str | Path, device: str) -> SavedModel:
    model = load(run).to(device)
    model.size_of_pictures()
    if model.task != "classification":
        raise ValueError(f"the task of {run} is {model.task}; only models of classes are scored on pictures")
    return model


def _scores(model: SavedModel, domains: Iterable[DomainFiles]) -> dict[str, dict[str, Any]]:
    size, channels = model.size_of_pictures()
    device = next(model.parameters()).device

    def batches(paths: Sequence[Path], labels: NDArray[np.int64]) -> Iterator[Batch]:
        for start in range(0, len(paths), EVALUATION_BATCH):
            part = slice(start, start + EVALUATION_BATCH)
            pixels = np.stack([decode(path, size, channels) for path in paths[part]])
            yield model.normalise(torch.from_numpy(pixels).to(device)), torch.from_numpy(labels[part]).to(device)

    return {
        domain.name: evaluate(model, batches(domain.paths, domain.labels), len(model.classes), "float32")
        for domain in domains
    }
