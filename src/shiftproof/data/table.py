"""Data sets from columns of a table: which column names the domain, which the labels, and which are features."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shiftproof.base.choices import MissingLabels, Task
from shiftproof.base.field_error import FieldError
from shiftproof.base.registry import UnknownNameError
from shiftproof.data.columns import Column
from shiftproof.data.dataset import DomainDataset
from shiftproof.data.domain import Domain
from shiftproof.data.known_texts import KnownTexts

SMALLEST_DOMAIN = 5
"""Rows that a domain needs, so that a split can hold one out."""


class Coded(NamedTuple):
    """A column of texts.

    Attributes:
        texts: the different texts.
        codes: integers, shape (n,): the index of each row's text; -1 where it is missing.
    """

    texts: tuple[str, ...]
    codes: NDArray[Any]


Values = NDArray[Any] | Coded
"""One column: floats with NaN where a value is missing, or texts (`Coded`, or dtype object with None there)."""


@dataclass(frozen=True)
class LabelledRows:
    """The rows of a table by domain, with their targets.

    Attributes:
        domains: names of the domains, sorted.
        rows: int64: the rows of each domain, in the order of the table.
        targets: their targets, as in `Domain`.
        groups: int64: their groups, as in `Domain`; None without any.
        ids: texts: what names them, as in `Domain`.
        classes: as in `DomainDataset`.
        left_out: number of rows that lack a label and were left out.
    """

    domains: tuple[str, ...]
    rows: tuple[NDArray[np.int64], ...]
    targets: tuple[NDArray[Any], ...]
    groups: tuple[NDArray[np.int64], ...] | None
    ids: tuple[NDArray[np.str_], ...]
    classes: tuple[str, ...]
    left_out: int

    def digest(self) -> Any:
        """Return a hash of everything but the inputs, to be continued with them, and the ids."""
        facts = [(name, len(rows)) for name, rows in zip(self.domains, self.rows, strict=True)]
        digest = hashlib.sha256(repr((facts, self.classes, self.groups is not None)).encode())
        for array in (*self.targets, *(self.groups or ())):
            digest.update(array.data)
        return digest


def dataset_of_columns(
    name: str,
    columns: Mapping[str, Values],
    *,
    domain: str,
    labels: Sequence[str],
    task: Task = "classification",
    features: Sequence[str] | None = None,
    group: str | None = None,
    row_id: str | None = None,
    classes: Sequence[str] | None = None,
    root: Path | None = None,
    missing_labels: MissingLabels = "error",
) -> DomainDataset:
    """Return the data set of vectors that a table's columns hold.

    Args:
        name: name of the data set.
        columns: the columns, all of one length.
        domain: the column that names each row's domain. Domains are in the order of their names.
        labels: the column of the classes or of the quantity; several, of 0 and 1, for a multilabel task.
        task: what is predicted.
        features: the columns to predict from; None for all others.
        group: the column whose equal values mark rows of the same thing; None for no groups.
        row_id: the column that names each row, which is no feature; None for the rows' numbers, from 1.
        classes: names of the classes, in order; None for the values of the label's column, sorted.
        root: the folder of the table.
        missing_labels: whether rows without a label are an error, or are left out.

    Raises:
        ValueError: a column is not there, a label, a domain or an id is missing in a row, a label has no meaning for
            the task, two rows have one id, a domain has too few rows, or there is nothing to predict from. Rows are
            counted from 1.
    """
    used = (domain, *labels, group, row_id)
    chosen = [column for column in columns if column not in used] if features is None else list(features)
    check_columns("features", chosen, list(columns))
    if both := [column for column in chosen if column in (domain, *labels)]:
        raise FieldError("features", f"column {both[0]} is a feature, and says the domain or the label too")
    if row_id in chosen:
        raise FieldError("features", f"column {row_id} is a feature, and names the rows too")
    if not chosen:
        raise FieldError("features", "there is no column to predict from")
    labelled = labelled_rows(
        columns,
        domain=domain,
        labels=labels,
        task=task,
        group=group,
        row_id=row_id,
        classes=classes,
        missing_labels=missing_labels,
    )
    check_domain_sizes(labelled, domain)
    inputs = [np.empty((len(rows), len(chosen)), dtype=np.float32) for rows in labelled.rows]
    described = tuple(_fill(inputs, i, column, columns[column], labelled.rows) for i, column in enumerate(chosen))
    digest = labelled.digest()
    digest.update(repr((described, domain, tuple(labels), task)).encode())
    parts = []
    for i, one in enumerate(labelled.domains):
        digest.update(inputs[i].data)
        groups = None if labelled.groups is None else labelled.groups[i]
        parts.append(Domain(one, inputs[i], labelled.targets[i], groups, labelled.ids[i]))
    fingerprint = digest.hexdigest()[:16]
    return DomainDataset(
        name,
        tuple(parts),
        labelled.classes,
        "vectors",
        fingerprint,
        root,
        task,
        described,
        left_out=labelled.left_out,
    )


def labelled_rows(
    columns: Mapping[str, Values],
    *,
    domain: str | None,
    labels: Sequence[str],
    task: Task = "classification",
    group: str | None = None,
    row_id: str | None = None,
    classes: Sequence[str] | None = None,
    missing_labels: MissingLabels = "error",
) -> LabelledRows:
    """Return a table's rows by domain, however few; without a domain's column, all are of one that has no name.

    Other arguments and errors are those of `dataset_of_columns`.
    """
    for field, one in (("domain", domain), ("group", group), ("id", row_id)):
        check_columns(field, [] if one is None else [one], list(columns))
    check_columns("labels", labels, list(columns))
    if domain in labels:
        raise FieldError("labels", f"column {domain} says the domain and the label")
    if row_id is not None and row_id in (domain, *labels):
        raise FieldError("id", f"column {row_id} names the rows, and says the domain or the label too")
    if task != "multilabel" and len(labels) != 1:
        raise FieldError("labels", f"{task} has one column of labels, not {len(labels)}: {', '.join(labels)}")
    kept = _rows_with_labels([columns[label] for label in labels], labels, missing_labels)
    total = _length(columns[labels[0]])
    if not len(kept):
        raise ValueError(f"none of its {total} rows has a label" if total else "it has no rows")
    names, codes = (("",), np.zeros_like(kept)) if domain is None else _codes(domain, columns[domain], "domain", kept)
    order, counts = np.argsort(codes, kind="stable"), np.bincount(codes, minlength=len(names))
    places = np.split(order, np.cumsum(counts)[:-1])
    targets, known = _targets(columns, labels, task, classes, kept)
    groups = None if group is None else _codes(group, columns[group], "group", kept)[1]
    own = tuple(kept[place] for place in places)
    return LabelledRows(
        names,
        own,
        tuple(targets[place] for place in places),
        None if groups is None else tuple(groups[place] for place in places),
        _row_numbers(own, total) if row_id is None else _row_ids(own, row_id, columns[row_id]),
        tuple(known),
        total - len(kept),
    )


def check_domain_sizes(rows: LabelledRows, domain: str) -> None:
    """Raise for a domain that is too small to be split.

    Args:
        rows: the rows.
        domain: the column of their domains.

    Raises:
        FieldError: of the field "domain"; the message has the first row of the domain.
    """
    for name, own in zip(rows.domains, rows.rows, strict=True):
        if len(own) < SMALLEST_DOMAIN:
            count = f"{len(own)} {'rows' if len(own) > 1 else 'row'}"
            raise FieldError(
                "domain",
                f"row {own[0] + 1}: domain {name} of column {domain} has {count}; a domain needs {SMALLEST_DOMAIN} or "
                "more, of which one is held out",
            )


def check_columns(field: str, names: Sequence[str], known: list[str]) -> None:
    """Raise for a name that no column has.

    Raises:
        FieldError: of the field that names it; the message has the near names.
    """
    for name in names:
        if name not in known:
            raise FieldError(field, str(UnknownNameError("column", name, known)))


def _rows_with_labels(
    values: Sequence[Values], labels: Sequence[str], missing_labels: MissingLabels
) -> NDArray[np.int64]:
    missing = [_missing(one) for one in values]
    if missing_labels == "error":
        for label, where in zip(labels, missing, strict=True):
            if where.any():
                raise FieldError(
                    ("missing_labels", "labels"),
                    f"row {where.argmax() + 1} has no label: its column {label} is empty ({where.sum()} such rows, "
                    "which missing_labels drop leaves out)",
                )
    return np.flatnonzero(~np.any(missing, axis=0))


def _length(values: Values) -> int:
    return len(values.codes if isinstance(values, Coded) else values)


def _missing(values: Values) -> NDArray[np.bool_]:
    if isinstance(values, Coded):
        return np.asarray(values.codes < 0)
    if values.dtype == object:
        return np.array([value is None for value in values], dtype=bool)
    return np.isnan(values)


def _coded(values: Values) -> Coded:
    """Return a column as texts; whole numbers are written without a point."""
    if isinstance(values, Coded):
        return values
    missing = _missing(values)
    known = values[~missing]
    distinct, inverse = np.unique(known.astype(str) if known.dtype == object else known, return_inverse=True)
    codes = np.full(len(values), -1, dtype=np.int64)
    codes[~missing] = inverse
    return Coded(tuple(map(text_of, distinct.tolist())), codes)


def text_of(value: object) -> str:
    """Return a value as the name of a class, a domain or a category; whole numbers are written without a point."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _row_numbers(rows: Sequence[NDArray[np.int64]], total: int) -> tuple[NDArray[np.str_], ...]:
    """Return the numbers, from 1, of some of a table's rows as texts."""
    return tuple((some + 1).astype(f"U{len(str(total))}") for some in rows)


def _row_ids(rows: Sequence[NDArray[np.int64]], name: str, values: Values) -> tuple[NDArray[np.str_], ...]:
    """Return the ids of some of a table's rows, all of which must have one of their own."""
    texts, codes = _coded(values)
    if (place := _place(codes < 0)) is not None:
        raise FieldError("id", f"row {place + 1} has no id: its column {name} is empty")
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    if (place := _place(first[inverse] != np.arange(len(codes)))) is not None:
        same = first[inverse[place]]
        raise FieldError("id", f"rows {same + 1} and {place + 1} have one id in column {name}: {texts[codes[place]]!r}")
    return tuple(np.array(texts)[codes[some]] for some in rows)


def _occurring(coded: Coded, rows: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
    """Return the texts of some rows, sorted, and for every code of the column the index of its text; -1 for none."""
    codes = coded.codes[rows]
    present = np.unique(codes[codes >= 0])
    ranked = sorted(present.tolist(), key=lambda code: coded.texts[code])
    places = np.full(len(coded.texts) + 1, -1, dtype=np.int64)  # the last is of a missing value, whose code is -1
    places[ranked] = np.arange(len(ranked))
    return [coded.texts[code] for code in ranked], places


def _codes(name: str, values: Values, what: str, rows: NDArray[np.int64]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the sorted texts of a column's rows, and the number of each row's text."""
    coded = _coded(values)
    if (row := _first(coded.codes[rows] < 0, rows)) is not None:
        raise FieldError(what, f"row {row} has no {what}: its column {name} is empty")
    texts, places = _occurring(coded, rows)
    return tuple(texts), places[coded.codes[rows]]


def _fill(
    inputs: Sequence[NDArray[np.float32]],
    place: int,
    name: str,
    values: Values,
    rows: Sequence[NDArray[np.int64]],
) -> Column:
    """Write a column's values into every domain's inputs, and return what the column is."""
    if isinstance(values, Coded) or values.dtype == object:
        coded = _coded(values)
        categories, places = _occurring(coded, np.concatenate(rows))
        vector = np.where(places < 0, np.nan, places).astype(np.float32)
        for part, of in zip(inputs, rows, strict=True):
            part[:, place] = vector[coded.codes[of]]
        return Column(name, tuple(categories))
    for part, of in zip(inputs, rows, strict=True):
        with np.errstate(over="ignore"):
            part[:, place] = values[of]
        if (row := _first(np.isinf(part[:, place]), of)) is not None:
            raise FieldError(
                "features",
                f"row {row}: column {name} is infinite or beyond the range of float32; leave a missing value empty",
            )
    return Column(name)


def _targets(
    columns: Mapping[str, Values],
    labels: Sequence[str],
    task: Task,
    classes: Sequence[str] | None,
    rows: NDArray[np.int64],
) -> tuple[NDArray[Any], Sequence[str]]:
    if task == "multilabel":
        return np.stack([_truths(label, columns[label], rows) for label in labels], axis=1), labels
    [label] = labels
    values = columns[label]
    if task == "regression":
        return _numbers(label, values, rows).astype(np.float32), labels
    texts, codes = _codes(label, values, "label", rows)
    named = sorted(texts, key=_in_order) if classes is None else list(classes)
    known = KnownTexts(named)
    places = [known.place(text) for text in texts]
    if (first := _place(np.array([place is None for place in places])[codes])) is not None:
        unknown = UnknownNameError("class", texts[codes[first]], named)
        raise FieldError("labels", f"row {rows[first] + 1}: column {label}: {unknown}")
    return np.array(places, dtype=np.int64)[codes], named


def _in_order(text: str) -> tuple[float, str]:
    """Return a key that sorts numbers by size, before other texts."""
    try:
        number = float(text)
    except ValueError:
        return math.inf, text
    return (number if math.isfinite(number) else math.inf), text


def _numbers(name: str, values: Values, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    numbers: NDArray[np.float64]
    if isinstance(values, Coded) or values.dtype == object:
        coded = _coded(values)
        number = np.array([_in_order(text)[0] for text in coded.texts], dtype=np.float64)
        codes = coded.codes[rows]
        numbers = number[codes]
        if (place := _place(np.isinf(numbers))) is not None:
            text = coded.texts[codes[place]]
            raise FieldError("labels", f"row {rows[place] + 1}: column {name} is {text!r}, and must be a number")
        return numbers
    numbers = values[rows].astype(np.float64)
    if (place := _place(~np.isfinite(numbers))) is not None:
        raise FieldError("labels", f"row {rows[place] + 1} has no finite label: its column {name} is {numbers[place]}")
    return numbers


def _truths(name: str, values: Values, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    numbers = _numbers(name, values, rows)
    if (place := _place((numbers != 0) & (numbers != 1))) is not None:
        raise FieldError(
            "labels",
            f"row {rows[place] + 1}: column {name} is {numbers[place]:g}, and must be 1 where it applies, else 0",
        )
    return numbers.astype(np.int64)


def _place(where: NDArray[np.bool_]) -> int | None:
    """Return the first place where an array is true; None if there is none."""
    return int(where.argmax()) if where.any() else None


def _first(where: NDArray[np.bool_], rows: NDArray[np.int64]) -> int | None:
    """Return the number, from 1, of the first row where an array is true; None if there is none."""
    return None if (place := _place(where)) is None else int(rows[place]) + 1
