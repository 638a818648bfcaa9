"""Data sets from columns of a table: which column names the domain, which the labels, and which are features."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftproof.base.choices import Task
from shiftproof.base.registry import UnknownNameError
from shiftproof.data.columns import Column
from shiftproof.data.dataset import DomainDataset
from shiftproof.data.domain import Domain

Values = NDArray[Any]
"""One column: floats with NaN where a value is missing, or texts (dtype object) with None there."""


def dataset_of_columns(
    name: str,
    columns: Mapping[str, Values],
    *,
    domain: str,
    labels: Sequence[str],
    task: Task = "classification",
    features: Sequence[str] | None = None,
    group: str | None = None,
    classes: Sequence[str] | None = None,
    root: Path | None = None,
) -> DomainDataset:
    """Return the data set that a table's columns hold.

    Args:
        name: name of the data set.
        columns: the columns, all of one length.
        domain: the column that names each row's domain. Domains are in the order of their names.
        labels: the column of the classes or of the quantity; several, of 0 and 1, for a multilabel task.
        task: what is predicted.
        features: the columns to predict from; None for all others.
        group: the column whose equal values mark rows of the same thing; None for no groups.
        classes: names of the classes, in order; None for the values of the label's column, sorted.
        root: the folder of the table.

    Raises:
        ValueError: a column is not there, a label or a domain is missing in a row, a label has no meaning for the task,
            or there is nothing to predict from. Rows are counted from 1.
    """
    known = list(columns)
    used = [domain, *labels, *([] if group is None else [group])]
    for column in (*used, *(features or ())):
        if column not in columns:
            raise UnknownNameError("column", column, known)
    chosen = [column for column in known if column not in used] if features is None else list(features)
    if both := [column for column in chosen if column in (domain, *labels)]:
        raise ValueError(f"column {both[0]} is a feature, and says the domain or the label too")
    if not chosen:
        raise ValueError("there is no column to predict from")
    domains = _texts(domain, columns[domain], "domain")
    names = tuple(sorted(set(domains.tolist())))
    targets, classes = _targets(columns, labels, task, classes)
    groups = None if group is None else np.unique(_texts(group, columns[group], "group"), return_inverse=True)[1]
    described, vectors = zip(*(_feature(column, columns[column]) for column in chosen), strict=True)
    inputs = np.stack(vectors, axis=1)
    digest = hashlib.sha256(repr((chosen, described, domain, labels, task, classes)).encode())
    parts = []
    for one in names:
        rows = np.flatnonzero(domains == one)
        part = Domain(one, inputs[rows], targets[rows], None if groups is None else groups[rows].astype(np.int64))
        for array in (part.inputs, part.targets):
            digest.update(array.tobytes())
        parts.append(part)
    return DomainDataset(
        name, tuple(parts), tuple(classes), "vectors", digest.hexdigest()[:16], root, task, tuple(described)
    )


def _feature(name: str, values: Values) -> tuple[Column, NDArray[np.float32]]:
    if values.dtype != object:
        if (row := _first(np.isinf(values))) is not None:
            raise ValueError(f"row {row}: column {name} is infinite; leave a missing value empty")
        return Column(name), values.astype(np.float32)
    missing = np.array([value is None for value in values])
    categories, codes = np.unique(values[~missing].astype(str), return_inverse=True)
    vector = np.full(len(values), np.nan, dtype=np.float32)
    vector[~missing] = codes
    return Column(name, tuple(categories.tolist())), vector


def _targets(
    columns: Mapping[str, Values], labels: Sequence[str], task: Task, classes: Sequence[str] | None
) -> tuple[NDArray[Any], Sequence[str]]:
    if task == "multilabel":
        return np.stack([_truths(label, columns[label]) for label in labels], axis=1), labels
    if len(labels) != 1:
        raise ValueError(f"{task} has one column of labels, not {len(labels)}: {', '.join(labels)}")
    [label] = labels
    values = columns[label]
    if task == "regression":
        return _numbers(label, values).astype(np.float32), labels
    texts = _texts(label, values, "label")
    found = sorted(set(texts.tolist()), key=_in_order)
    named = found if classes is None else list(classes)
    if unknown := [text for text in found if text not in named]:
        raise UnknownNameError("class", unknown[0], named)
    numbers = {text: number for number, text in enumerate(named)}
    return np.array([numbers[text] for text in texts.tolist()], dtype=np.int64), named


def _in_order(text: str) -> tuple[float, str]:
    """Return a key that sorts numbers by size, before other texts."""
    try:
        return float(text), text
    except ValueError:
        return math.inf, text


def _texts(name: str, values: Values, what: str) -> NDArray[np.object_]:
    """Return a column as texts; whole numbers are written without a point."""
    missing = np.array([value is None for value in values]) if values.dtype == object else np.isnan(values)
    if (row := _first(missing)) is not None:
        raise ValueError(f"row {row} has no {what}: its column {name} is empty")
    texts = [str(int(v)) if isinstance(v, float) and v.is_integer() else str(v) for v in values.tolist()]
    return np.array(texts, dtype=object)


def _numbers(name: str, values: Values) -> NDArray[np.float64]:
    if values.dtype == object:
        text = next(i for i, value in enumerate(values, 1) if value is None or _in_order(value)[0] == math.inf)
        raise ValueError(f"row {text}: column {name} is {values[text - 1]!r}, and must be a number")
    if (row := _first(~np.isfinite(values))) is not None:
        raise ValueError(f"row {row} has no finite label: its column {name} is {values[row - 1]}")
    return values


def _truths(name: str, values: Values) -> NDArray[np.int64]:
    numbers = _numbers(name, values)
    if (row := _first((numbers != 0) & (numbers != 1))) is not None:
        raise ValueError(
            f"row {row}: column {name} is {numbers[row - 1]:g}, and must be 1 where the label applies, else 0"
        )
    return numbers.astype(np.int64)


def _first(where: NDArray[np.bool_]) -> int | None:
    """Return the number, from 1, of the first row where an array is true; None if there is none."""
    return int(where.argmax()) + 1 if where.any() else None
