"""Pictures whose classes are in a file beside them, and not in the names of their folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shiftproof.base.registry import UnknownNameError
from shiftproof.data.folder import DomainFiles, pictures_below
from shiftproof.data.new_rows import csv_rows

FILE, CLASS = "file", "class"
_SHOWN = 5


def labelled_files(root: Path, labels: Path, classes: Sequence[str]) -> tuple[DomainFiles, int]:
    """List the pictures of a folder whose classes a CSV file states.

    Args:
        root: the folder; it is the name of the one domain, too.
        labels: CSV file with the columns `file`, a path from the folder, and `class`.
        classes: the model's class names; labels are indices into them.

    Returns:
        The files, ordered as `pictures_below` orders them, and how many pictures of the folder have no label.

    Raises:
        FolderError: the folder cannot be listed or holds no pictures.
        ValueError: the file cannot be read or lacks a column, a row lacks a value, has an unknown class or names a
            picture a second time, or pictures are missing. Rows are counted from 1, without the line of names.
        OSError: there is no such file.
    """
    index = {name: label for label, name in enumerate(classes)}
    rows: dict[Path, tuple[int, int]] = {}
    for row, (name, label) in enumerate(csv_rows(labels, (FILE, CLASS)), 1):
        if name is None or label is None:
            raise ValueError(f"{labels}, row {row}: no {FILE if name is None else CLASS}")
        if label not in index:
            raise ValueError(f"{labels}, row {row}: {UnknownNameError('class', label, list(classes))}")
        path = root / name
        if path in rows:
            raise ValueError(f"{labels}, row {row}: {name} has a class already, from row {rows[path][0]}")
        rows[path] = (row, index[label])
    if not rows:
        raise ValueError(f"{labels} has no rows")
    there = pictures_below(root)
    missing = [f"{path} (row {row})" for path, (row, _) in rows.items() if not path.is_file()]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise ValueError(f"{labels} names pictures that are missing: {', '.join(missing[:_SHOWN])}{more}")
    paths = tuple(sorted(rows, key=lambda path: (str(path.parent), path.name)))
    found = np.array([rows[path][1] for path in paths], dtype=np.int64)
    return DomainFiles(root.absolute().name, paths, found), len(set(there) - rows.keys())
