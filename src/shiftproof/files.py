"""Files that are either whole or absent."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote


class DamagedFileError(ValueError):
    """A file of ours cannot be read back; the message names it and says what to do."""

    def __init__(self, path: Path, reason: str, remedy: str) -> None:
        super().__init__(f"{path} is damaged ({reason}); {remedy}")


def output_path(text: str) -> Path:
    """Return the place that a text names: a path, or `scheme://...` of any file system that fsspec knows.

    The latter is a `UPath`, not a `Path` by inheritance; it has what runs and the store use of one.

    Raises:
        ValueError: there is no such scheme, or what it needs is not installed.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(text)
    if scheme == "file":
        if not rest.startswith("/"):
            raise ValueError(f"{text} is not of the form file:///folder")
        return Path(unquote(rest))
    try:
        from upath import UPath
    except ImportError as error:
        raise ValueError(f"{text} needs a package that is not installed: pip install 'shiftproof[remote]'") from error
    try:
        place = UPath(text, use_listings_cache=False)  # what other processes write is seen
        _ = place.fs  # imports the scheme's own package
    except (ImportError, ValueError) as error:
        raise ValueError(f"{text} cannot be used: {error}") from error
    return cast(Path, place)


def is_local(path: Path) -> bool:
    """Return whether a path is one of the operating system's, which has locks, and not of another file system."""
    return isinstance(path, Path)


def cache_folder() -> Path:
    """Return where caches are: `SHIFTPROOF_CACHE`, else `shiftproof` in the user's cache folder."""
    if chosen := os.environ.get("SHIFTPROOF_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "shiftproof"


@contextmanager
def locked(file: Path, waiting: str | None = None) -> Iterator[None]:
    """Hold a lock between processes, which the operating system releases when a process dies.

    Args:
        file: what is locked; made if need be, and left.
        waiting: said on the standard error when another process holds it, which is waited for; None to raise then.

    Raises:
        TimeoutError: another process holds it.
        OSError: the file cannot be made, or its file system has no locks.
    """
    from filelock import FileLock, Timeout  # torch needs it too, so it is always there

    lock = FileLock(file, fallback_to_soft=False)  # a file in place of a lock would outlive its process
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if waiting is None:
                raise
            print(waiting, file=sys.stderr)
            lock.acquire()
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise OSError(error.errno, f"the file system of {file.parent} has no locks") from error
        raise
    try:
        yield
    finally:
        lock.release()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: a reader, or a run started after a crash, sees the old content or the new."""
    if not is_local(path):  # an object store's put is atomic
        place = cast(Any, path)
        place.fs.pipe_file(place.path, content)
        return
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
