"""What the model of a run predicts for pictures or rows that have no labels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shiftproof.base.text import one_line
from shiftproof.data import ImageError, NewRows, decode, read_new_rows
from shiftproof.training.inputs import EVALUATION_BATCH
from shiftproof.training.saved_model import SavedModel

_NOT_FINITE = "the model's output is not finite"
_SHOWN = 3


class Prediction(NamedTuple):
    """What a model predicts for one picture or row.

    Attributes:
        source: the picture's file, or the row's number, from 1.
        outputs: float32, one for each of the model's classes: logits, or a quantity; None if there is an error.
        error: why there is no prediction; None if there is one.
    """

    source: Path | int
    outputs: NDArray[np.float32] | None
    error: str | None = None


def predict_pictures(
    model: SavedModel, paths: Sequence[Path], batch_size: int = EVALUATION_BATCH
) -> Iterator[Prediction]:
    """Yield a prediction for every picture, in order; one that cannot be read gets an error.

    Args:
        model: the model, on its device and in evaluation mode.
        paths: the files.
        batch_size: number of pictures in a forward pass. The default is that of `evaluate_folder`, whose predictions
            these are; a transductive model predicts otherwise with another.

    Raises:
        ValueError: the model takes no pictures.
    """
    size, channels = model.size_of_pictures()
    read = partial(_pixels, size=size, channels=channels)
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), batch_size):
            batch = paths[start : start + batch_size]
            pictures = list(pool.map(read, batch))
            good = [picture for picture in pictures if not isinstance(picture, ImageError)]
            outputs = iter(_outputs(model, torch.from_numpy(np.stack(good))) if good else ())
            for path, picture in zip(batch, pictures, strict=True):
                if isinstance(picture, ImageError):
                    yield Prediction(path, None, one_line(picture.reason))
                else:
                    yield _checked(path, next(outputs))


def read_rows(model: SavedModel, path: Path) -> NewRows:
    """Read the columns that a model was trained on from a CSV or Parquet file; other columns are ignored.

    Categories that training has not seen take the place for such ones, with a warning if its data set had none of them.

    Raises:
        ValueError: the model takes no rows of a table, the file cannot be read, or it lacks a column.
        OSError: the file is missing.
    """
    if model.preparation is None:
        raise ValueError(f"the model takes inputs of shape {model.input_shape}, not rows of a table")
    rows = read_new_rows(path, model.preparation.columns)
    for column, new in rows.unseen.items():
        named = ", ".join(category for category, _ in new.most_common(_SHOWN)) + ", ..." * (len(new) > _SHOWN)
        warnings.warn(
            f"{path}: {new.total()} of {len(rows.vectors)} rows have in column {column} what the data set of training "
            f"did not have: {named}",
            stacklevel=2,
        )
    return rows


def predict_rows(model: SavedModel, rows: NewRows, batch_size: int = EVALUATION_BATCH) -> Iterator[Prediction]:
    """Yield a prediction for every row, in order; one that holds no number where one must be gets an error.

    Args:
        model: the model, on its device and in evaluation mode.
        rows: the rows, as `read_rows` returns them for this model.
        batch_size: number of rows in a forward pass.
    """
    for start in range(0, len(rows.vectors), batch_size):
        numbers = range(start, min(start + batch_size, len(rows.vectors)))
        good = [number for number in numbers if number not in rows.errors]
        outputs = iter(_outputs(model, torch.from_numpy(rows.vectors[good])) if good else ())
        for number in numbers:
            if number in rows.errors:
                yield Prediction(number + 1, None, one_line(rows.errors[number]))
            else:
                yield _checked(number + 1, next(outputs))


def _pixels(path: Path, size: int, channels: Literal[1, 3]) -> NDArray[np.uint8] | ImageError:
    try:
        return decode(path, size, channels)
    except ImageError as error:
        return error
    except OSError as error:
        return ImageError(path, error.strerror or str(error))


@torch.inference_mode()
def _outputs(model: SavedModel, inputs: Tensor) -> NDArray[np.float32]:
    device = next(model.parameters()).device
    outputs: Tensor = model(model.normalise(inputs.to(device)))
    return outputs.float().cpu().numpy()


def _checked(source: Path | int, outputs: NDArray[np.float32]) -> Prediction:
    if np.isfinite(outputs).all():
        return Prediction(source, outputs)
    return Prediction(source, None, _NOT_FINITE)
