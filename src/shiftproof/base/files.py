"""Paths, locks, and files that are written as a whole or not at all."""

from __future__ import annotations

import errno
import getpass
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from stat import S_ISDIR
from typing import Any, BinaryIO, cast
from urllib.parse import unquote


class DamagedFileError(ValueError):
    """A file that shiftproof wrote cannot be read back; the message names it and says what to do."""

    def __init__(self, path: Path, reason: str, remedy: str) -> None:
        super().__init__(f"{path} is damaged ({reason}); {remedy}")


def output_path(text: str) -> Path:
    """Return the path that a text names: a local one, or `scheme://...` on any file system that fsspec knows.

    The latter is a `UPath`. It does not inherit from `Path`, but has all the methods of one that runs and stores use.

    Raises:
        ValueError: the scheme is unknown, or a package that it needs is not installed.
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
        place = UPath(text, use_listings_cache=False)  # so that files of other processes are seen
        _ = place.fs  # imports the scheme's own package
    except (ImportError, ValueError) as error:
        raise ValueError(f"{text} cannot be used: {error}") from error
    return cast(Path, place)


def is_local(path: Path) -> bool:
    """Return whether a path belongs to the operating system, which has locks, rather than to a remote file system."""
    return isinstance(path, Path)


def with_home(path: str | Path) -> Path:
    """Replace a leading ``~`` of a path by the user's home folder.

    If no home is known the ``~`` stays, and the path simply does not exist.
    """
    return Path(os.path.expanduser(path))  # Path.expanduser would raise


def cache_folder(holding: str | None = None) -> Path:
    """Return the folder for caches: `SHIFTPROOF_CACHE` if set, else ``shiftproof`` in the user's cache folder.

    If the user's cache folder is missing or read-only, for example because there is no home, a private folder among the
    temporary files takes its place, with a message once. `SHIFTPROOF_CACHE` itself is not checked.

    Args:
        holding: name of a wanted file; a read-only cache folder will do if it already holds this file.

    Raises:
        OSError: no private temporary folder can be had, or `SHIFTPROOF_CACHE` names an unknown user's home.
    """
    if chosen := os.environ.get("SHIFTPROOF_CACHE"):
        try:
            return Path(chosen).expanduser()
        except RuntimeError as error:
            raise OSError(f"SHIFTPROOF_CACHE is {chosen}: {error}") from error
    try:
        folder = _users_cache_folder()
    except RuntimeError:
        return _temporary_cache_folder("there is no home folder")
    if _can_write(folder) or (holding is not None and os.path.exists(folder / holding)):
        return folder
    return _temporary_cache_folder(f"{folder} cannot be written")


def _users_cache_folder() -> Path:
    try:
        from platformdirs import user_cache_path
    except ImportError:  # the optimizers work without platformdirs
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shiftproof"
    return user_cache_path("shiftproof", appauthor=False)


@cache
def _temporary_cache_folder(reason: str) -> Path:
    advice = "set SHIFTPROOF_CACHE to a folder that can be written"
    user = os.getuid() if sys.platform != "win32" else getpass.getuser()
    folder = Path(tempfile.gettempdir()) / f"shiftproof-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    # Code compiled there is loaded into the process, so nobody else may write to it.
    if sys.platform != "win32" and (status.st_uid != user or not S_ISDIR(status.st_mode) or status.st_mode & 0o022):
        raise OSError(f"there is no safe folder for caches: {reason}, and {folder} is not this user's alone; {advice}")
    print(f"shiftproof: {reason}, so caches are in {folder}; {advice} for another place", file=sys.stderr)
    return folder


def _can_write(folder: Path) -> bool:
    """Return whether files can be created in a folder, or the folder itself if it does not exist."""
    there = folder.absolute()
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)


@contextmanager
def locked(file: Path, waiting: str | None = None) -> Iterator[None]:
    """Hold a lock between processes, which the operating system releases if a process dies.

    Args:
        file: the file to lock; created if it does not exist, and not removed.
        waiting: if another process holds the lock, print this to standard error and wait; None raises instead.

    Raises:
        TimeoutError: another process holds the lock, and ``waiting`` is None.
        OSError: the file cannot be created, or its file system has no locks.
    """
    from filelock import FileLock, Timeout  # torch needs it too, so it is always there

    lock = FileLock(file, fallback_to_soft=False)  # a soft lock, a mere file, would outlive its process
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
    try:
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a local file to write, which appears when the ``with`` block ends, and does not if it raises."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; raise ValueError for NaN and infinities, which JSON does not have."""
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
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(path, str(error), remedy) from error
