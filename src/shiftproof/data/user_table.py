"""The data set `table`: a user's own CSV or Parquet file, whose rows are vectors or name pictures."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from shiftproof.base.choices import COLUMN_TYPES, ColumnType, Kind, MissingLabels, Task
from shiftproof.base.field_error import FieldError
from shiftproof.data.cache import UnreadableImagesError, cached_images
from shiftproof.data.dataset import DATASETS, DatasetEntry, DomainDataset
from shiftproof.data.domain import Domain
from shiftproof.data.folder import IMAGE_SIZE
from shiftproof.data.kinds import Look, look_at
from shiftproof.data.table import (
    LabelledRows,
    Values,
    check_columns,
    check_domain_sizes,
    dataset_of_columns,
    labelled_rows,
)
from shiftproof.data.table_file import column_names, read_columns
from shiftproof.data.table_pictures import picture_files

_LISTED = 5


@dataclass(frozen=True)
class TableFile:
    """A table and what its columns mean.

    Attributes:
        file: a CSV or Parquet file.
        domain: the column that names each row's domain.
        labels: the column of the classes or of the quantity; several, of 0 and 1, for a multilabel task.
        task: what is predicted.
        features: the columns to predict from, which may end in ":number" or ":category"; empty for all others.
        image: the column of picture files, in place of features; None for vectors.
        group: the column whose equal values mark rows of the same thing; None for no groups.
        missing_labels: whether rows without a label are an error, or are left out.
        id: the column that names each row, which is no feature; None for the rows' numbers, from 1.
    """

    file: Path
    domain: str
    labels: tuple[str, ...]
    task: Task = "classification"
    features: tuple[str, ...] = ()
    image: str | None = None
    group: str | None = None
    missing_labels: MissingLabels = "error"
    id: str | None = None


def open_table(table: TableFile, image_size: int | None = None, kind: Kind | None = None) -> DomainDataset:
    """Open a table, which is named after its file.

    Args:
        table: the file and what its columns mean.
        image_size: side to which pictures are resized, in pixels; None as for a folder of pictures.
        kind: kind of the pictures; None to infer it from the files.

    Raises:
        FieldError: a column is not there or a value cannot be used; the message names file, column and row.
        CacheError: decoded pictures cannot be stored.
    """
    with naming_file(table.file):
        columns, features = _read(table)
        if table.image is not None:
            dataset = _pictures(table, table.image, columns, image_size, kind)
        else:
            dataset = dataset_of_columns(
                table.file.stem,
                columns,
                domain=table.domain,
                labels=table.labels,
                task=table.task,
                features=features,
                group=table.group,
                row_id=table.id,
                root=table.file.parent,
                missing_labels=table.missing_labels,
            )
        if len(dataset.domains) == 1:
            raise FieldError(
                "domain", f"column {table.domain} names one domain, {dataset.domain_names[0]}; two are needed or more"
            )
    _warn_of_lone_classes(table, dataset)
    return dataset


def look_at_table(table: TableFile) -> Look:
    """Infer the kind of a table's pictures, as `look_at_folder` does.

    Raises:
        FieldError: as `open_table`.
    """
    assert table.image is not None  # noqa: S101  (else there is nothing to look at)
    with naming_file(table.file):
        columns, _ = _read(table)
        root = table.file.parent
        files = picture_files(root, table.image, columns[table.image], _labelled(table, columns))
        return look_at([root / file.name for file in files])


@contextmanager
def naming_file(file: Path) -> Iterator[None]:
    """Name the table in errors.

    Raises:
        FieldError: a ValueError was raised inside; it is of that error's fields, and of "metadata".
    """
    try:
        yield
    except ValueError as error:
        fields = error.fields if isinstance(error, FieldError) else ()
        raise FieldError((*fields, "metadata"), f"{file}: {error}") from error


def used_columns(
    known: list[str], labels: Sequence[str], task: Task, **others: str | None
) -> dict[str, ColumnType | None]:
    """Return the columns that have a meaning beside that of a feature, each with the type that it is read as.

    Args:
        known: names of all columns.
        labels: the columns of the labels.
        task: what is predicted.
        **others: the column of another meaning, by the field that names it; None for none.

    Raises:
        FieldError: a column is not there.
    """
    for field, name in others.items():
        check_columns(field, [] if name is None else [name], known)
    check_columns("labels", labels, known)
    types: dict[str, ColumnType | None] = {name: "category" for name in others.values() if name is not None}
    return types | dict.fromkeys(labels, "category" if task == "classification" else "number")


def _read(table: TableFile) -> tuple[dict[str, Values], list[str]]:
    """Read the columns in use; return them, and the names of those to predict from."""
    known = column_names(table.file)
    used = used_columns(
        known, table.labels, table.task, domain=table.domain, image=table.image, group=table.group, id=table.id
    )
    features = {} if table.image else _typed(table.features, known)
    if not features and not table.image:
        features = {name: None for name in known if name not in used}
    return read_columns(table.file, used | features), list(features)


def _typed(features: Sequence[str], known: list[str]) -> dict[str, ColumnType | None]:
    """Return the columns that features name, each with its declared type; None for that of its values."""
    types: dict[str, ColumnType | None] = {}
    for feature in features:
        name, _, last = feature.rpartition(":")
        declared = next((one for one in COLUMN_TYPES if one == last), None)
        if feature in known or declared is None:
            name, declared = feature, None
        if name in types:
            raise FieldError("features", f"column {name} is named twice")
        check_columns("features", [name], known)
        types[name] = declared
    return types


def _labelled(table: TableFile, columns: Mapping[str, Values]) -> LabelledRows:
    labelled = labelled_rows(
        columns,
        domain=table.domain,
        labels=table.labels,
        task=table.task,
        group=table.group,
        row_id=table.id,
        missing_labels=table.missing_labels,
    )
    check_domain_sizes(labelled, table.domain)
    return labelled


def _pictures(
    table: TableFile, column: str, columns: Mapping[str, Values], image_size: int | None, kind: Kind | None
) -> DomainDataset:
    labelled, root = _labelled(table, columns), table.file.parent
    files = picture_files(root, column, columns[column], labelled)
    if kind is None or image_size is None:
        look = look_at([root / file.name for file in files])
        kind = look.kind if kind is None else kind
        if image_size is None:
            image_size = IMAGE_SIZE if kind == "photographs" else look.small_size
    try:
        images, fingerprint = cached_images(root, files, image_size, listed_in=table.file)
    except UnreadableImagesError as error:
        first = error.errors[0]
        rows = zip(files, chain.from_iterable(labelled.rows), strict=True)
        row = next(row + 1 for file, row in rows if (root.resolve() / file.name) == first.path)
        more = f"; {len(error.errors) - 1} more cannot be used either" if len(error.errors) > 1 else ""
        raise FieldError("image", f"row {row}, column {column}: {first}{more}") from error
    digest = labelled.digest()
    digest.update(repr((fingerprint, table.domain, table.labels, column, table.task)).encode())
    parts = np.split(images, np.cumsum([len(rows) for rows in labelled.rows])[:-1])
    groups = labelled.groups or (None,) * len(parts)
    facts = zip(labelled.domains, parts, labelled.targets, groups, labelled.ids, strict=True)
    return DomainDataset(
        table.file.stem,
        tuple(Domain(*one) for one in facts),
        labelled.classes,
        kind,
        digest.hexdigest()[:16],
        root,
        table.task,
        left_out=labelled.left_out,
    )


def _warn_of_lone_classes(table: TableFile, dataset: DomainDataset) -> None:
    """Say which classes occur in one domain only: where that is left out, nobody can learn them."""
    if dataset.task != "classification":
        return
    size = len(dataset.classes)
    present = np.array([np.bincount(domain.targets, minlength=size) > 0 for domain in dataset.domains])
    lone = np.flatnonzero(present.sum(axis=0) == 1).tolist()
    if lone:
        named = [f"{dataset.classes[i]} in {dataset.domain_names[int(present[:, i].argmax())]}" for i in lone]
        more = f" and {len(lone) - _LISTED} more" if len(lone) > _LISTED else ""
        warnings.warn(
            f"{table.file}: classes of column {table.labels[0]} that occur in one domain only cannot be learned where "
            f"that domain is left out: {', '.join(named[:_LISTED])}{more}",
            stacklevel=3,
        )


DATASETS.register(
    "table",
    DatasetEntry(open_table, kind=None, table=True),
    summary="Your own rows: a CSV or Parquet file, of numbers and categories or of pictures' names.",
)
