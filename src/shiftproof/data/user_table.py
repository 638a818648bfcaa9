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
from shiftproof.data.cache import FileState, UnreadableImagesError, cached_images
from shiftproof.data.dataset import DATASETS, DatasetEntry, DomainDataset
from shiftproof.data.domain import Domain
from shiftproof.data.folder import IMAGE_SIZE
from shiftproof.data.kinds import Look, look_at
from shiftproof.data.table import LabelledRows, Values, check_columns, dataset_of_columns, labelled_rows
from shiftproof.data.table_file import column_names, read_columns

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
    """

    file: Path
    domain: str
    labels: tuple[str, ...]
    task: Task = "classification"
    features: tuple[str, ...] = ()
    image: str | None = None
    group: str | None = None
    missing_labels: MissingLabels = "error"


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
    with _naming_file(table):
        columns, features = _read(table)
        if table.image is not None:
            dataset = _pictures(table, columns, image_size, kind)
        else:
            dataset = dataset_of_columns(
                table.file.stem,
                columns,
                domain=table.domain,
                labels=table.labels,
                task=table.task,
                features=features,
                group=table.group,
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
    with _naming_file(table):
        columns, _ = _read(table)
        return look_at([table.file.parent / name for name in _picture_names(table, columns, _labelled(table, columns))])


@contextmanager
def _naming_file(table: TableFile) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        fields = error.fields if isinstance(error, FieldError) else ()
        raise FieldError((*fields, "metadata"), f"{table.file}: {error}") from error


def _read(table: TableFile) -> tuple[dict[str, Values], list[str]]:
    """Read the columns in use; return them, and the names of those to predict from."""
    known = column_names(table.file)
    others = {"domain": [table.domain], "labels": table.labels}
    others |= {"image": [table.image] if table.image else [], "group": [table.group] if table.group else []}
    for field, names in others.items():
        check_columns(field, names, known)
    used = list(chain.from_iterable(others.values()))
    wanted = {} if table.image else _typed(table.features, known)
    if not wanted and not table.image:
        wanted = {name: None for name in known if name not in used}
    features = list(wanted)
    of_label: ColumnType = "category" if table.task == "classification" else "number"
    for name in used:
        wanted.setdefault(name, of_label if name in table.labels else "category")
    return read_columns(table.file, wanted), features


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
    return labelled_rows(
        columns,
        domain=table.domain,
        labels=table.labels,
        task=table.task,
        group=table.group,
        missing_labels=table.missing_labels,
    )


# Pictures


def _pictures(
    table: TableFile, columns: Mapping[str, Values], image_size: int | None, kind: Kind | None
) -> DomainDataset:
    labelled = _labelled(table, columns)
    names = _picture_names(table, columns, labelled)
    root = table.file.parent
    if kind is None or image_size is None:
        look = look_at([root / name for name in names])
        kind = look.kind if kind is None else kind
        if image_size is None:
            image_size = IMAGE_SIZE if kind == "photographs" else look.small_size
    numbers = [int(row) + 1 for row in chain.from_iterable(labelled.rows)]
    states = []
    for name, number in zip(names, numbers, strict=True):
        try:
            status = (root / name).stat()
        except OSError as error:
            raise FieldError(
                "image", f"row {number}: there is no picture {root / name}, which column {table.image} names"
            ) from error
        states.append(FileState(name, status.st_size, status.st_mtime_ns))
    try:
        images, fingerprint = cached_images(root, states, image_size, listed_in=table.file)
    except UnreadableImagesError as error:
        first = error.errors[0]
        row = next(n for name, n in zip(names, numbers, strict=True) if (root.resolve() / name) == first.path)
        more = f"; {len(error.errors) - 1} more cannot be used either" if len(error.errors) > 1 else ""
        raise FieldError("image", f"row {row}, column {table.image}: {first}{more}") from error
    digest = labelled.digest()
    digest.update(repr((fingerprint, table.domain, table.labels, table.image, table.task)).encode())
    parts = np.split(images, np.cumsum([len(rows) for rows in labelled.rows])[:-1])
    domains = tuple(
        Domain(name, part, labelled.targets[i], None if labelled.groups is None else labelled.groups[i])
        for i, (name, part) in enumerate(zip(labelled.domains, parts, strict=True))
    )
    return DomainDataset(
        table.file.stem,
        domains,
        labelled.classes,
        kind,
        digest.hexdigest()[:16],
        root,
        table.task,
        left_out=labelled.left_out,
    )


def _picture_names(table: TableFile, columns: Mapping[str, Values], labelled: LabelledRows) -> list[str]:
    """Return the files that the rows name, domain by domain."""
    [column] = [values for name, values in columns.items() if name == table.image]
    texts, codes = column
    names = []
    for row in chain.from_iterable(labelled.rows):
        if codes[row] < 0:
            raise FieldError("image", f"row {row + 1} names no picture: its column {table.image} is empty")
        names.append(texts[codes[row]])
    return names


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
