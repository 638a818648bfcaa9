"""What the columns of vectors are, and how they are prepared for a network: fitted on some rows, applied to any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

RARE = 5
"""Categories with fewer rows than this share a place, which those that training has not seen get too."""
_ROWS_AT_ONCE = 65536
_COLUMNS_AT_ONCE = 16


@dataclass(frozen=True)
class Column:
    """One column of vectors.

    Attributes:
        name: its name.
        categories: names of its values, which the vectors hold as numbers from 0; empty for a column of numbers.
    """

    name: str
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Number:
    """A prepared column of numbers: missing values are filled in, then the column is centred and scaled.

    Attributes:
        indicates: whether a second column tells which values were missing.
    """

    name: str
    fill: float
    mean: float
    scale: float
    indicates: bool

    @property
    def names(self) -> list[str]:
        return [self.name, f"{self.name} is missing"] if self.indicates else [self.name]

    def __call__(self, values: NDArray[np.float32]) -> Iterator[NDArray[Any]]:
        missing = np.isnan(values)
        yield (np.where(missing, self.fill, values.astype(np.float64)) - self.mean) / self.scale
        if self.indicates:
            yield missing


@dataclass(frozen=True)
class _Categories:
    """A prepared column of categories: a column each for those that training saw often enough.

    Attributes:
        places: for every category of the data set, which of the columns is 1; -1 for none.
        missing: the same for a missing value.
        unseen: the same for a category that the data set does not have, as a new table may.
        names: names of the columns.
    """

    name: str
    categories: tuple[str, ...]
    places: tuple[int, ...]
    missing: int
    unseen: int
    names: tuple[str, ...]

    def __call__(self, values: NDArray[np.float32]) -> Iterator[NDArray[Any]]:
        missing = np.isnan(values)
        known = ~missing & (values >= 0) & (values < len(self.places))
        codes = np.where(known, values, 0).astype(np.int64)
        place = np.where(known, np.array(self.places, dtype=np.int64)[codes], self.unseen)
        place[missing] = self.missing
        for number in range(len(self.names)):
            yield place == number


@dataclass(frozen=True)
class Preparation:
    """Turns rows of numbers and categories into what a network takes, with numbers fitted on training rows alone.

    A missing number becomes the median, with a column that tells so if training rows lacked it too; numbers are centred
    and scaled to unit variance. Every category that at least `RARE` training rows have gets a column; the others and
    those that training has not seen share one, if there are any.

    Attributes:
        parts: the prepared columns, one for each column of the rows.
    """

    parts: tuple[_Number | _Categories, ...]

    @classmethod
    def fit(cls, columns: Sequence[Column], rows: NDArray[np.float32]) -> Self:
        """Fit a preparation with scikit-learn's parts.

        Args:
            columns: the columns.
            rows: float32, shape (n, columns), NaN where a value is missing.
        """
        numbers = [i for i, column in enumerate(columns) if not column.categories]
        parts: dict[int, _Number | _Categories] = {}
        for start in range(0, len(numbers), _COLUMNS_AT_ONCE):
            some = numbers[start : start + _COLUMNS_AT_ONCE]
            parts.update(zip(some, _fitted_numbers([columns[i] for i in some], rows[:, some]), strict=True))
        for i, column in enumerate(columns):
            if column.categories:
                parts[i] = _fitted_categories(column, rows[:, i])
        return cls(tuple(parts[i] for i in range(len(columns))))

    @classmethod
    def unchanged(cls, columns: Sequence[Column]) -> Self:
        """Return a preparation that leaves columns of numbers as they are; a missing one becomes 0."""
        return cls(tuple(_Number(column.name, fill=0.0, mean=0.0, scale=1.0, indicates=False) for column in columns))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the prepared columns."""
        return tuple(name for part in self.parts for name in part.names)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of the rows that it takes."""
        return tuple(Column(part.name, part.categories if isinstance(part, _Categories) else ()) for part in self.parts)

    def __call__(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Prepare rows: float32, shape (n, columns) to (n, prepared columns)."""
        prepared = np.empty((len(rows), len(self.names)), dtype=np.float32)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            some = rows[start : start + _ROWS_AT_ONCE]
            columns = (column for i, part in enumerate(self.parts) for column in part(some[:, i]))
            for number, column in enumerate(columns):
                prepared[start : start + _ROWS_AT_ONCE, number] = column
        return prepared

    def as_json(self) -> list[dict[str, Any]]:
        """Return it as plain values, which `from_json` reads."""
        return [{key: list(v) if isinstance(v, tuple) else v for key, v in asdict(part).items()} for part in self.parts]

    @classmethod
    def from_json(cls, values: Sequence[Mapping[str, Any]]) -> Self:
        """Return what `as_json` described.

        Raises:
            ValueError: the values describe no preparation.
        """
        parts: list[_Number | _Categories] = []
        for value in values:
            given: dict[str, Any] = {k: tuple(one) if isinstance(one, list) else one for k, one in value.items()}
            try:
                parts.append(_Categories(**given) if "places" in given else _Number(**given))
            except TypeError as error:
                raise ValueError(f"no preparation of a column: {value!r}") from error
        return cls(tuple(parts))


def number_columns(size: int) -> tuple[Column, ...]:
    """Return columns of numbers that have no names."""
    return tuple(Column(f"x{i}") for i in range(size))


def _fitted_numbers(columns: Sequence[Column], rows: NDArray[np.float32]) -> Iterator[_Number]:
    """Fit several columns together, because every call of scikit-learn takes milliseconds."""
    from sklearn.preprocessing import StandardScaler

    # column by column in memory: so a column's sum is rounded as if it were alone
    values = np.asarray(rows, dtype=np.float64, order="F")
    missing = np.isnan(values)
    fills = [_median(one[~lacking]) for one, lacking in zip(values.T, missing.T, strict=True)]
    scaler = StandardScaler().fit(np.asfortranarray(np.where(missing, fills, values)))
    for i, column in enumerate(columns):
        yield _Number(column.name, fills[i], float(scaler.mean_[i]), float(scaler.scale_[i]), bool(missing[:, i].any()))


def _median(known: NDArray[np.float64]) -> float:
    return float(np.median(known)) if len(known) else 0.0


def _fitted_categories(column: Column, values: NDArray[np.float32]) -> _Categories:
    from sklearn.preprocessing import OneHotEncoder

    encoder = OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=RARE, sparse_output=False)
    encoder.fit(values[:, None].astype(np.float64))
    # Every category, a missing value and one that nobody has seen, as the encoder places them.
    asked = np.array([*range(len(column.categories)), np.nan, -1.0])[:, None]
    rows = encoder.transform(asked)
    places = np.where(rows.any(axis=1), rows.argmax(axis=1), -1).tolist()
    own = encoder.categories_[0]
    if (infrequent := encoder.infrequent_categories_[0]) is not None:
        shared = np.isin(own, infrequent) | (np.isnan(own) & np.isnan(infrequent).any())
        own = own[~shared]
    names = [f"{column.name} is rare or unseen"] * rows.shape[1]
    for code in own[~np.isnan(own)].astype(np.int64).tolist():
        names[places[code]] = f"{column.name} is {column.categories[code]}"
    if np.isnan(own).any():
        names[places[-2]] = f"{column.name} is missing"
    return _Categories(column.name, column.categories, tuple(places[:-2]), places[-2], places[-1], tuple(names))
