"""Files that are either whole or absent."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class DamagedFileError(ValueError):
    """A file of ours cannot be read back; the message names it and says what to do."""

    def __init__(self, path: Path, reason: str, remedy: str) -> None:
        super().__init__(f"{path} is damaged ({reason}); {remedy}")


def cache_folder() -> Path:
    """Return where caches are: `SHIFTPROOF_CACHE`, else `shiftproof` in the user's cache folder."""
    if chosen := os.environ.get("SHIFTPROOF_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "shiftproof"


@contextmanager
def locked(file: Path, waiting: str) -> Iterator[None]:
    """Hold a lock between processes; say ``waiting`` on the standard error when another one holds it."""
    from filelock import FileLock, Timeout  # torch needs it too, so it is always there

    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(waiting, file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: a reader, or a run started after a crash, sees the old content or the new."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; NaN and infinities are refused, because JSON has none."""
    write_bytes(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    write_bytes(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode())


def read_json(path: Path, remedy: str) -> Any:
    """Read JSON.

    Raises:
        DamagedFileError: the file is not JSON; the message ends in ``remedy``.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedFileError(path, str(error), remedy) from error
