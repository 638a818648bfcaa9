"""Rows of a table for a model that was trained on columns of another one."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shiftproof.base.extras import require
from shiftproof.base.registry import did_you_mean
from shiftproof.data.columns import Column

TABLE_SUFFIXES = (".csv", ".parquet")
"""Suffixes of the tables that `read_new_rows` reads, in lower or upper case."""
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
    values = (_from_parquet if path.suffix.lower() == ".parquet" else read_csv)(path, names)
    count = len(values[names[0]])
    if not count:
        raise ValueError(f"{path} has no rows")
    vectors = np.empty((count, len(columns)), dtype=np.float32)
    errors: dict[int, str] = {}
    unseen: dict[str, Counter[str]] = {}
    for place, column in enumerate(columns):
        if column.categories:
            vectors[:, place], new = _codes(column, values[column.name])
            if new:
                unseen[column.name] = new
        else:
            vectors[:, place] = _numbers(column.name, values[column.name], errors)
    return NewRows(vectors, errors, unseen)


def read_csv(path: Path, names: Sequence[str]) -> dict[str, list[str | None]]:
    """Read some columns of a CSV file, whose first line names its columns; an empty field is None.

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
            columns: list[list[str | None]] = [[] for _ in names]
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise ValueError(
                        f"{path}, line {reader.line_num}: {len(fields)} fields, but the first line names {len(header)}"
                    )
                for column, place in zip(columns, places, strict=True):
                    column.append(fields[place] or None)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, after line {reader.line_num}: {error}") from error
    return dict(zip(names, columns, strict=True))


def _from_parquet(path: Path, names: Sequence[str]) -> Mapping[str, Sequence[Any]]:
    parquet = require("pyarrow.parquet", "data")
    arrow = require("pyarrow", "data")
    path.stat()
    try:
        file = parquet.ParquetFile(path)
        _places(path, names, file.schema_arrow.names)
        table = file.read(columns=list(names))
    except (arrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error
    return {name: table.column(name).to_pylist() for name in names}


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


def _numbers(name: str, values: Iterable[Any], errors: dict[int, str]) -> list[float]:
    numbers = []
    for row, value in enumerate(values):
        number = math.nan if value is None else _number(value)
        if number is None or abs(number) > _GREATEST:
            errors.setdefault(row, f"column {name} is {value!r}, and must be a finite number")
            number = math.nan
        numbers.append(number)
    return numbers


def _codes(column: Column, values: Iterable[Any]) -> tuple[list[float], Counter[str]]:
    """Return the numbers of categories, NaN where a value is missing, and the categories that are not known."""
    by_text = {category: code for code, category in enumerate(column.categories)}
    by_number = {number: code for text, code in by_text.items() if (number := _number(text)) is not None}
    codes: list[float] = []
    unseen: Counter[str] = Counter()
    for value in values:
        if value is None or value != value:  # Parquet holds NaN too
            codes.append(math.nan)
            continue
        code = by_text.get(str(value))
        if code is None and (number := _number(value)) is not None:
            code = by_number.get(number)
        if code is None:
            unseen[str(value)] += 1
            code = len(by_text)
        codes.append(code)
    return codes, unseen


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None
