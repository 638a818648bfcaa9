"""Rows of a table with what is right for them, for a model that is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shiftproof.base.choices import MissingLabels, Task
from shiftproof.data.table import LabelledRows, labelled_rows
from shiftproof.data.table_file import column_names, read_columns
from shiftproof.data.table_pictures import picture_files
from shiftproof.data.user_table import naming_file, used_columns


class LabelledTable(NamedTuple):
    """The rows of a table that have a label.

    Attributes:
        rows: the rows by domain, with their targets.
        pictures: the files that the rows of each domain name; None if no column names any.
    """

    rows: LabelledRows
    pictures: tuple[tuple[Path, ...], ...] | None


def labelled_table(
    file: Path,
    *,
    labels: Sequence[str],
    task: Task,
    classes: Sequence[str],
    domain: str | None = None,
    image: str | None = None,
    missing_labels: MissingLabels = "error",
) -> LabelledTable:
    """Read what is right for the rows of a CSV or Parquet file, as training on it would.

    Args:
        file: the file.
        labels: the column of the classes or of the quantity; several, of 0 and 1, for a multilabel task.
        task: what is predicted.
        classes: the names of the model's classes, which targets are indices into.
        domain: the column that names each row's domain; None for one domain, which has the name of the file.
        image: the column of picture files.
        missing_labels: whether rows without a label are an error, or are left out.

    Raises:
        FieldError: a column or a picture is not there, or a label or a domain is missing or has no meaning; the message
            names the file, and of a value its column and row, counted from 1.
    """
    with naming_file(file):
        columns = read_columns(file, used_columns(column_names(file), labels, task, domain=domain, image=image))
        rows = labelled_rows(
            columns, domain=domain, labels=labels, task=task, classes=classes, missing_labels=missing_labels
        )
        if domain is None:
            rows = replace(rows, domains=(file.stem,))
        if image is None:
            return LabelledTable(rows, None)
        paths = [file.parent / one.name for one in picture_files(file.parent, image, columns[image], rows)]
    ends = np.cumsum([0, *map(len, rows.rows)]).tolist()
    return LabelledTable(rows, tuple(tuple(paths[start:end]) for start, end in pairwise(ends)))
