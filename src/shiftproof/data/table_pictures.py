"""The pictures that the rows of a table name."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from shiftproof.base.field_error import FieldError
from shiftproof.data.cache import FileState
from shiftproof.data.table import Coded, LabelledRows, Values


def picture_files(root: Path, column: str, names: Values, labelled: LabelledRows) -> list[FileState]:
    """Return the files that the rows name, domain by domain.

    Args:
        root: the folder of the table, where relative names begin.
        column: the column that names them.
        names: its values, read as texts.
        labelled: the rows.

    Raises:
        FieldError: a row names no file, or one that is not there.
    """
    assert isinstance(names, Coded)  # noqa: S101  (as columns of texts are)
    files = []
    for row in chain.from_iterable(labelled.rows):
        if names.codes[row] < 0:
            raise FieldError("image", f"row {row + 1} names no picture: its column {column} is empty")
        name = names.texts[names.codes[row]]
        try:
            status = (root / name).stat()
        except OSError as error:
            raise FieldError(
                "image", f"row {row + 1}: there is no picture {root / name}, which column {column} names"
            ) from error
        files.append(FileState(name, status.st_size, status.st_mtime_ns))
    return files
