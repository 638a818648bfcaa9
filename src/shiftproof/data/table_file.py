"""Reads columns of a CSV or Parquet file, block by block or column by column, so that large files fit in memory."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftproof.base.choices import ColumnType
from shiftproof.base.extras import require
from shiftproof.data.table import Coded, Values, text_of

TABLE_SUFFIXES = (".csv", ".parquet", ".pq")
"""Suffixes of the files that are read as tables."""
_BLOCK_BYTES = 1 << 20  # several blocks are read ahead
_ROWS_IN_BLOCK = 64


def column_names(file: Path) -> list[str]:
    """Return the names of a file's columns.

    Columns without a name, as pandas writes its index, are left out.

    Raises:
        ValueError: the file is not CSV in UTF-8 or Parquet, or two columns have one name.
    """
    names = _header(file) if _is_csv(file) else _parquet(file).schema_arrow.names
    names = [name for name in names if name and not name.startswith("__index_level_")]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"it has {names.count(repeated)} columns called {repeated}; give every column its own name")
    return names


def read_columns(file: Path, wanted: Mapping[str, ColumnType | None]) -> dict[str, Values]:
    """Read columns of a CSV or Parquet file.

    In CSV, empty text is missing, and a column is of numbers if all its other values are. A Parquet column has its
    type; truth values are numbers, 1 and 0. Rows are counted from 1, without the header.

    Args:
        file: the file, which has the columns.
        wanted: the columns, each with its type; None for that of its values.

    Returns:
        The columns in the order wanted: numbers as float32 with NaN where one is missing, the others as texts.

    Raises:
        ValueError: the file is damaged, a column is of another type, or a value is no number where its column must be
            of numbers.
    """
    read = _read_csv if _is_csv(file) else _read_parquet
    columns = read(file, wanted)
    return {name: columns[name] for name in wanted}


def _is_csv(file: Path) -> bool:
    """Return whether a file is CSV rather than Parquet.

    Raises:
        ValueError: there is no such file, or it has another suffix.
    """
    if not file.is_file():
        raise ValueError("there is no such file")
    if file.suffix.lower() not in TABLE_SUFFIXES:
        raise ValueError(f"a table is a file in {' '.join(TABLE_SUFFIXES)}, not in {file.suffix or 'none of them'}")
    return file.suffix.lower() == ".csv"


# CSV


def _header(file: Path) -> list[str]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            if header := next(csv.reader(stream), None):
                return header
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"it is not CSV in UTF-8: {error}") from error
    raise ValueError("its first line names no columns")


def _read_csv(file: Path, wanted: Mapping[str, ColumnType | None]) -> dict[str, Values]:
    columns: dict[str, Values] = {}
    left = dict(wanted)
    while left:  # columns that turn out to be no numbers late in the file are read again
        again: dict[str, ColumnType | None] = {}
        grown: dict[str, _Numbers | _Texts] = {
            name: _Texts() if k == "category" else _Numbers() for name, k in left.items()
        }
        row = 0
        for block in _blocks(file, list(left)):
            for name, kind in list(left.items()):
                texts = block[name]
                numbers = None if kind == "category" else _as_numbers(texts)
                if numbers is None and kind == "number":
                    raise _no_number(name, texts, row)
                if numbers is None and kind is None:
                    left[name], grown[name] = "category", _Texts()
                    if row:
                        again[name] = "category"
                        del left[name], grown[name]
                        continue
                grown[name].add(texts if numbers is None else numbers)
            row += block.num_rows
        columns |= {name: one.values() for name, one in grown.items()}
        left = again
    return columns


class _Numbers:
    """A column of numbers that grows block by block, without a second copy of it."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def add(self, numbers: NDArray[np.float32]) -> None:
        self._bytes += numbers.data

    def values(self) -> NDArray[np.float32]:
        return np.frombuffer(self._bytes, dtype=np.float32)


class _Texts:
    """A column of texts that grows block by block. Empty texts and NaN are missing, and equal texts are one."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._bytes = bytearray()

    def add(self, values: Any) -> None:
        encoded = values.dictionary_encode()
        codes = []
        for value in encoded.dictionary.to_pylist():
            missing = value in ("", None) or (isinstance(value, float) and math.isnan(value))
            codes.append(-1 if missing else self._places.setdefault(text_of(value), len(self._places)))
        index = encoded.indices.fill_null(len(codes)).to_numpy(zero_copy_only=False)
        self._bytes += np.array([*codes, -1], dtype=np.int32)[index].data

    def values(self) -> Coded:
        return Coded(tuple(self._places), np.frombuffer(self._bytes, dtype=np.int32))


def _blocks(file: Path, names: list[str]) -> Iterator[Any]:
    """Yield the rows of some columns as texts, in blocks."""
    arrow, arrow_csv = require("pyarrow", "data"), require("pyarrow.csv", "data")
    row_bytes = len(",".join(_header(file)).encode())  # of very wide tables, no row may be longer than a block
    options = {
        "read_options": arrow_csv.ReadOptions(block_size=max(_BLOCK_BYTES, _ROWS_IN_BLOCK * row_bytes)),
        "parse_options": arrow_csv.ParseOptions(newlines_in_values=True),
        "convert_options": arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(names, arrow.string()),
            include_columns=names,
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
        ),
    }
    try:
        with arrow_csv.open_csv(file, **options) as reader:
            yield from reader
    except arrow.ArrowInvalid as error:
        raise ValueError(_damage(file) or f"it is not CSV in UTF-8: {str(error).partition(chr(10))[0]}") from error


def _damage(file: Path) -> str:
    """Return that there is no row, or which is the first that is not as long as the header; empty for neither."""
    columns, number = len(_header(file)), -1
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            for number, row in enumerate(filter(None, csv.reader(stream))):
                if len(row) != columns:
                    return f"row {number} has {len(row)} values, and the header {columns} columns"
    except (UnicodeDecodeError, csv.Error):
        return ""
    return "" if number else "it has no rows"


def _as_numbers(texts: Any) -> NDArray[np.float32] | None:
    """Return texts as numbers, NaN where one is missing; None if they are not all numbers."""
    arrow, compute = require("pyarrow", "data"), require("pyarrow.compute", "data")
    trimmed = compute.utf8_trim_whitespace(texts)
    empty = compute.equal(trimmed, "")
    try:
        return _floats(compute.if_else(empty, None, trimmed).cast(arrow.float64()))
    except arrow.ArrowInvalid:
        return None


def _floats(numbers: Any) -> NDArray[np.float32]:
    """Return numbers as numpy has them, infinite where they are beyond the range of float32."""
    with np.errstate(over="ignore"):
        return np.asarray(numbers.to_numpy(zero_copy_only=False)).astype(np.float32)


def _no_number(name: str, texts: Any, before: int) -> ValueError:
    place = next(i for i in range(len(texts)) if _as_numbers(texts[i : i + 1]) is None)
    return ValueError(f"row {before + place + 1}: column {name} is {texts[place].as_py()!r}, and must be a number")


# Parquet


def _parquet(file: Path) -> Any:
    arrow, parquet = require("pyarrow", "data"), require("pyarrow.parquet", "data")
    try:
        return parquet.ParquetFile(file)
    except arrow.ArrowInvalid as error:
        raise ValueError(f"it is not Parquet: {error}") from error


def _read_parquet(file: Path, wanted: Mapping[str, ColumnType | None]) -> dict[str, Values]:
    arrow = require("pyarrow", "data")
    columns = {}
    with _parquet(file) as opened:
        for name, kind in wanted.items():
            try:
                columns[name] = _parquet_column(name, opened.read(columns=[name])[name], kind)
            except (arrow.ArrowException, OSError) as error:
                raise ValueError(f"column {name} cannot be read: {str(error).partition(chr(10))[0]}") from error
    return columns


def _parquet_column(name: str, column: Any, kind: ColumnType | None) -> Values:
    arrow = require("pyarrow", "data")
    types = arrow.types
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    of = column.type
    textual = types.is_string(of) or types.is_large_string(of) or types.is_string_view(of)
    numeric = types.is_integer(of) or types.is_floating(of) or types.is_decimal(of) or types.is_boolean(of)
    if not textual and not numeric and not types.is_null(of):
        raise ValueError(
            f"column {name} is of type {of}, and must be of numbers or texts; convert it, or choose other columns"
        )
    if types.is_float16(of):
        column = column.cast(arrow.float32())
    if types.is_null(of):
        return Coded((), np.full(len(column), -1)) if kind == "category" else np.full(len(column), np.nan, np.float32)
    if kind == "category" or (textual and kind is None):
        texts = _Texts()
        for chunk in column.chunks:
            texts.add(chunk)
        return texts.values()
    if not textual:
        return _floats(column.cast(arrow.float32() if types.is_boolean(of) else arrow.float64(), safe=False))
    numbers, row = _Numbers(), 0
    for chunk in column.cast(arrow.string()).chunks:
        if (some := _as_numbers(chunk)) is None:
            raise _no_number(name, chunk, row)
        numbers.add(some)
        row += len(chunk)
    return numbers.values()
