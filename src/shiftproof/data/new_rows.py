"""Rows of a table for a model that was trained on columns of another one."""

from __future__ import annotations

import csv
import math
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shiftproof.base.extras import require
from shiftproof.base.registry import did_you_mean
from shiftproof.data.columns import Column
from shiftproof.data.known_texts import KnownTexts, number_of

_GREATEST = float(np.finfo(np.float32).max)


class NewRows(NamedTuple):
    """Rows as a `Preparation` takes them.

    Attributes:
        vectors: float32, shape (n, columns): numbers, numbers of categories, and NaN where a value is missing.
        errors: what is wrong with a row, by its index. Its vector has no meaning.
        unseen: by column, how often each category occurs that the data set of training did not have. Such a category
            has a number that is none of theirs.
    """

    vectors: NDArray[np.float32]
    errors: dict[int, str]
    unseen: dict[str, Counter[str]]


def read_new_rows(path: Path, columns: Sequence[Column]) -> NewRows:
    """Read a CSV file, whose first line names its columns, or a Parquet file.

    An empty field and a null are missing values. Categories are compared as texts, and if that finds none as numbers:
    1.0 is the category 1. Columns that are not asked for are ignored.

    Args:
        path: the file.
        columns: the columns to read.

    Raises:
        ValueError: the file cannot be read or is empty, or a column is not there or there twice.
        OSError: the file is missing.
    """
    names = [column.name for column in columns]
    coded = {place: _Codes(column.categories) for place, column in enumerate(columns) if column.categories}
    values = array("f")
    errors: dict[int, str] = {}
    for row, record in enumerate((_parquet_rows if path.suffix.lower() != ".csv" else csv_rows)(path, names)):
        for place, value in enumerate(record):
            number = coded[place](value) if place in coded else number_of(value)
            if number is None or abs(number) > _GREATEST:
                errors.setdefault(row, f"column {names[place]} is {value!r}, and must be a finite number")
                number = math.nan
            values.append(number)
    if not values:
        raise ValueError(f"{path} has no rows")
    vectors = np.frombuffer(values, dtype=np.float32).reshape(-1, len(columns))
    return NewRows(vectors, errors, {names[place]: codes.unseen for place, codes in coded.items() if codes.unseen})


def csv_rows(path: Path, names: Sequence[str]) -> Iterator[list[str | None]]:
    """Yield some columns of every row of a CSV file, whose first line names its columns; an empty field is None.

    Raises:
        ValueError: the file is not UTF-8 or not CSV, a line has another number of fields than the first, or a column is
            not there or there twice.
        OSError: the file is missing.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        try:
            header = next(reader, [])
            places = _places(path, names, header)
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise ValueError(
                        f"{path}, line {reader.line_num}: {len(fields)} fields, but the first line names {len(header)}"
                    )
                yield [fields[place] or None for place in places]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, after line {reader.line_num}: {error}") from error


def _parquet_rows(path: Path, names: Sequence[str]) -> Iterator[Sequence[Any]]:
    parquet, arrow = require("pyarrow.parquet", "data"), require("pyarrow", "data")
    path.stat()
    try:
        with parquet.ParquetFile(path) as file:
            _places(path, names, file.schema_arrow.names)
            for batch in file.iter_batches(columns=list(names)):
                yield from zip(*(batch.column(name).to_pylist() for name in names), strict=True)
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error


def _places(path: Path, names: Sequence[str], there: Sequence[str]) -> list[int]:
    """Return where columns are among those of a file.

    Raises:
        ValueError: one is not there, or there twice.
    """
    if missing := [name for name in names if name not in there]:
        lines = " ".join(f"No column '{name}'.{did_you_mean(name, there)}" for name in missing)
        raise ValueError(f"{path}: {lines} Its columns are {', '.join(there) or 'none'}")
    if repeated := [name for name in names if there.count(name) > 1]:
        raise ValueError(f"{path}: column '{repeated[0]}' is there {there.count(repeated[0])} times")
    return [there.index(name) for name in names]


class _Codes:
    """Turns categories into their numbers, and missing values into NaN; one that is not known gets the next number.

    Args:
        categories: the known categories.
    """

    def __init__(self, categories: Sequence[str]) -> None:
        self._known, self._next = KnownTexts(categories), len(categories)
        self.unseen: Counter[str] = Counter()

    def __call__(self, value: Any) -> float:
        if value is None or value != value:  # Parquet has NaN too
            return math.nan
        code = self._known.place(value)
        if code is None:
            self.unseen[str(value)] += 1
            code = self._next
        return float(code)
