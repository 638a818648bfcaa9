"""How a plug-in is imported: its source, what it prints and starts meanwhile, and why it fails."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from importlib.abc import SourceLoader
from importlib.util import module_from_spec, spec_from_loader
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from types import ModuleType
from typing import TextIO

from shiftproof.base.registry import NameTakenError


class _Source(SourceLoader):
    """Loads a module from a text, so that it also works where its file is not; tracebacks show its lines."""

    def __init__(self, path: str, source: bytes) -> None:
        self._path, self._source = path, source

    def get_filename(self, fullname: str) -> str:
        return self._path

    def get_data(self, path: str | bytes) -> bytes:
        if path != self._path:  # a cache of bytecode
            raise FileNotFoundError(path)
        return self._source


def execute_source(name: str, path: str, source: bytes) -> None:
    """Import a source as a module of a name, with the path of the file that it comes from."""
    spec = spec_from_loader(name, _Source(path, source))
    assert spec is not None and spec.loader is not None  # noqa: S101, PT018  (it has the loader above)
    module = module_from_spec(spec)
    sys.modules[name] = module  # as for any module, so that its classes can be found by their names
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


@contextmanager
def printing_to(stream: TextIO, descriptor: int) -> Iterator[None]:
    """Send what Python prints to a stream, and what processes and compiled code print to a file descriptor."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # a process without a standard output
        with redirect_stdout(stream):
            yield
        return
    os.dup2(descriptor, 1)
    try:
        with redirect_stdout(stream):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def running_processes() -> set[int]:
    """Return the ids of the processes that this one has started and that run, without those of multiprocessing."""
    own = {process.pid for process in multiprocessing.active_children() if process.pid is not None}
    helpers = {
        getattr(resource_tracker._resource_tracker, "_pid", None),
        getattr(forkserver._forkserver, "_forkserver_pid", None),
    }
    for children in Path("/proc/self/task").glob("*/children"):  # on Linux
        with suppress(OSError):  # a thread that has ended
            own.update(pid for pid in map(int, children.read_text().split()) if not _is_dead(pid))
    return own - helpers


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def is_part(module: str, package: str) -> bool:
    """Return whether a module is a package or lies in it."""
    return module == package or module.startswith(f"{package}.")


def file_of(module: ModuleType) -> str | None:
    """Return the absolute path of a module's file, None if it has none."""
    file = getattr(module, "__file__", None)
    return os.path.abspath(file) if isinstance(file, str) else None


def source_digest(module: ModuleType) -> str:
    """Return the SHA-256 of a module's source: of all Python files of a package, with their names."""
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    file = file_of(module)
    files = [(path, path.relative_to(folder)) for folder in folders for path in sorted(folder.rglob("*.py"))]
    digest = hashlib.sha256()
    for path, name in files or ([(Path(file), Path(Path(file).name))] if file else []):
        digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def failure(name: str, error: BaseException, is_inside: Callable[[str], bool]) -> str:
    """Return the last line of a traceback, with the last place in the plug-in that it passes."""
    if isinstance(error, NameTakenError):
        return str(error)  # names both places
    if isinstance(error, ModuleNotFoundError) and error.name and is_part(name, error.name):
        return f"there is no module {error.name}; a file is named by its path, as in ./{name}.py"
    if isinstance(error, SyntaxError):
        place = f", in {error.filename}, line {error.lineno}" if error.filename else ""
        return f"{type(error).__name__}: {error.msg}{place}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    frames = [frame for frame in frames if Path(frame.filename).parent != Path(__file__).parent]
    inside = [frame for frame in frames if is_inside(os.path.abspath(frame.filename))] or frames
    place = f", in {inside[-1].filename}, line {inside[-1].lineno}" if inside else ""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{text}{place}"
