"""Predictions as rows of a file: CSV, JSON or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from shiftproof.base.extras import require
from shiftproof.base.files import write_bytes
from shiftproof.base.registry import did_you_mean
from shiftproof.training.predict import Prediction
from shiftproof.training.saved_model import SavedModel

Row = Mapping[str, str | int | float | None]


def as_row(model: SavedModel, prediction: Prediction) -> dict[str, str | int | float | None]:
    """Return a prediction as a row.

    Its columns are ``file`` or ``row``, the input; ``prediction``, the class or the value (not of several labels);
    ``probability_<class>`` for each class or label; and ``error``, None where there is a prediction. Every row of a
    model has the same columns; with an error all but the first and the last are None.
    """
    source = prediction.source
    row: dict[str, str | int | float | None] = {_source(model): source if isinstance(source, int) else _text(source)}
    row |= dict.fromkeys(_numbers(model))
    if prediction.outputs is not None:
        outputs = torch.from_numpy(prediction.outputs).double()
        if model.task == "regression":
            row["prediction"] = float(outputs[0])
        else:
            several = model.task == "multilabel"
            if not several:
                row["prediction"] = model.classes[int(outputs.argmax())]
            shares = (outputs.sigmoid() if several else outputs.softmax(0)).tolist()
            row |= {_share(name): share for name, share in zip(model.classes, shares, strict=True)}
    row["error"] = prediction.error
    return row


def csv_lines(model: SavedModel, rows: Iterable[Row]) -> Iterator[str]:
    """Yield the lines of a CSV file as its rows come; an error or a prediction that is None is an empty field."""
    yield _csv_line([_source(model), *_numbers(model), "error"])
    for row in rows:
        yield _csv_line(["" if value is None else value for value in row.values()])


def check_prediction_file(path: Path) -> None:
    """Check that predictions can be written to a file, before they are made.

    Raises:
        ValueError: the suffix is none of the formats', or a package that it needs is not installed.
        FileNotFoundError: its folder does not exist.
    """
    suffix = path.suffix.lower()
    if suffix not in PREDICTION_FORMATS:
        valid = list(PREDICTION_FORMATS)
        raise ValueError(
            f"predictions cannot be written to {path}: its suffix must be {', '.join(valid[:-1])} or {valid[-1]}."
            f"{did_you_mean(suffix, valid)}"
        )
    if suffix == ".parquet":
        require("pyarrow.parquet", "data")
    if isinstance(path, Path) and not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}")


def write_predictions(model: SavedModel, rows: Sequence[Row], path: Path) -> None:
    """Write rows, as `as_row` returns them, atomically; the suffix of the file tells the format.

    Raises:
        ValueError: as `check_prediction_file`.
        OSError: the file cannot be written.
    """
    check_prediction_file(path)
    write_bytes(path, PREDICTION_FORMATS[path.suffix.lower()](model, rows))


def _csv(model: SavedModel, rows: Sequence[Row]) -> bytes:
    return "".join(csv_lines(model, rows)).encode(errors="backslashreplace")


def _json(model: SavedModel, rows: Sequence[Row]) -> bytes:
    return (json.dumps([dict(row) for row in rows], indent=1, allow_nan=False) + "\n").encode()


def _parquet(model: SavedModel, rows: Sequence[Row]) -> bytes:
    arrow, parquet = require("pyarrow", "data"), require("pyarrow.parquet", "data")
    text, number = arrow.string(), arrow.float64()
    types = {"file": text, "row": arrow.int64(), "error": text}
    types["prediction"] = text if model.task == "classification" else number
    schema = arrow.schema([(name, types.get(name, number)) for name in [_source(model), *_numbers(model), "error"]])
    written = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist([dict(row) for row in rows], schema), written)
    return written.getvalue()


PREDICTION_FORMATS: dict[str, Callable[[SavedModel, Sequence[Row]], bytes]] = {
    ".csv": _csv,
    ".json": _json,
    ".parquet": _parquet,
}
"""What writes predictions, by the suffix of the file."""


def _source(model: SavedModel) -> str:
    return "row" if model.network.normalisation is None else "file"


def _numbers(model: SavedModel) -> list[str]:
    """Return the names of the columns that a prediction fills."""
    if model.task == "regression":
        return ["prediction"]
    return ["prediction"] * (model.task == "classification") + [_share(name) for name in model.classes]


def _share(name: str) -> str:
    return f"probability_{name}"


def _text(path: Path) -> str:
    """Return a path as text of every format; characters that cannot be encoded are escaped."""
    return str(path).encode(errors="backslashreplace").decode()


def _csv_line(fields: Sequence[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(fields)
    return line.getvalue()
