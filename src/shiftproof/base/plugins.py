"""Plug-ins: modules and files from outside that register entries, the same ones in every process of a study."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.abc import SourceLoader
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_loader
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from shiftproof.base.files import with_home, write_bytes
from shiftproof.base.registry import Place, Registry, RemovedNameError, UnknownNameError

ENTRY_POINTS = "shiftproof.plugins"
"""The group of entry points by which installed packages name their plug-ins."""
FOLDER = "plugins"
"""The folder of a store that keeps the files of its plug-ins."""


class PluginError(ValueError):
    """A plug-in is missing, cannot be imported, registers nothing or is another than expected."""


@dataclass(frozen=True)
class Plugin:
    """A plug-in that this process has imported.

    Attributes:
        name: a module's name, or a file's name without its folder.
        digest: SHA-256 of its source, as hexadecimal digits; of all Python files of a package.
        path: where its file was; None for a module, which every machine must have.
        source: content of its file; None for a module.
    """

    name: str
    digest: str
    path: str | None = None
    source: bytes | None = field(default=None, repr=False)


def kept_as(name: str, digest: str) -> str:
    """Return the name under which stores keep a plug-in's file."""
    return f"{Path(name).stem}-{digest[:8]}.py"


_imported: dict[str, Plugin] = {}
_owners: dict[tuple[str, str], str] = {}
"""Names of plug-ins, by the kind and the name of an entry that they registered."""


def import_plugins(names: str | Path | Iterable[str | Path] = ()) -> None:
    """Import plug-ins, which register what they add; also those that installed packages name by entry points.

    A plug-in that this process has imported already is not imported again. What it prints goes to the standard error.

    Args:
        names: modules ("my_package.methods") or files ("mine.py"), or one of them. A file must not import other files
            beside it, because it is sent to workers alone.

    Warns:
        UserWarning: a plug-in of an installed package cannot be imported.

    Raises:
        PluginError: one of them is missing, cannot be imported, registers nothing or starts processes; or it has
            changed since this process imported it.
    """
    with _printing_to(sys.stderr, 2):
        _import_installed()
        for name in [names] if isinstance(names, (str, Path)) else names:
            if isinstance(name, Path) or _is_file(name):
                _import_file(with_home(name))
            else:
                _import_module(name)


def adopt_plugins(plugins: Iterable[Plugin]) -> None:
    """Import in a worker the plug-ins that its driver has imported; what they print is dropped.

    Raises:
        PluginError: a module is missing here or is not the driver's, or a plug-in cannot be imported.
    """
    with Path(os.devnull).open("w") as nowhere, _printing_to(nowhere, nowhere.fileno()):
        for plugin in plugins:
            here = _load(plugin) if plugin.source is not None else _import_module(plugin.name)
            if here.digest != plugin.digest:
                raise PluginError(
                    f"the plug-in {plugin.name} differs from the driver's ({here.digest[:8]} here, "
                    f"{plugin.digest[:8]} there); install the same version everywhere and start again"
                )


@contextmanager
def _printing_to(stream: TextIO, descriptor: int) -> Iterator[None]:
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


def imported(names: Iterable[str]) -> tuple[Plugin, ...]:
    """Return plug-ins that this process has imported, by the names that `import_plugins` took or by their own."""
    return tuple(
        _imported[name] for name in dict.fromkeys(Path(name).name if _is_file(name) else name for name in names)
    )


def plugin_of(registry: Registry[Any], name: str) -> Plugin | None:
    """Return the plug-in that registered an entry; None if it is shiftproof's or of a script that imports it."""
    owner = _owners.get((registry.kind, name))
    return None if owner is None else _imported[owner]


def digests(parts: Iterable[tuple[Registry[Any], str]]) -> dict[str, str]:
    """Return the digests of the plug-ins that entries are of, by name, from registries and names of entries."""
    found = [plugin_of(registry, name) for registry, name in parts]
    return {plugin.name: plugin.digest for plugin in found if plugin is not None}


def keep_sources(plugins: Iterable[Plugin], root: Path) -> None:
    """Keep the files of plug-ins in a store, each version once."""
    for plugin in plugins:
        if plugin.source is not None and not (kept := root / FOLDER / kept_as(plugin.name, plugin.digest)).exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(kept, plugin.source)


@contextmanager
def naming_plugins(names: Iterable[str]) -> Iterator[None]:
    """Name the plug-ins that something needs, instead of the valid names, in errors about names that are unknown.

    Args:
        names: names of the plug-ins; if there are none, errors stay as they are.

    Raises:
        PluginError: an `UnknownNameError` was raised inside.
    """
    try:
        yield
    except UnknownNameError as error:
        needed = list(names)
        if not needed or isinstance(error, RemovedNameError):
            raise
        options = " ".join(f"--import {name}" for name in needed)
        raise PluginError(
            f"{error.kind} '{error.name}' comes from a plug-in that was not imported: give {options}, or call "
            f"shiftproof.import_plugins({needed!r}) first"
        ) from error


def _is_file(name: str) -> bool:
    return name.endswith(".py") or "/" in name or os.sep in name


@cache
def _import_installed() -> None:
    for point in entry_points(group=ENTRY_POINTS):
        try:
            _import_module(point.module)
        except PluginError as error:
            package = point.dist.name if point.dist else "an installed package"
            warnings.warn(f"plug-in of {package}: {error}", stacklevel=2)


def _import_file(path: Path) -> Plugin:
    try:
        source = path.read_bytes()
    except OSError as error:
        raise PluginError(f"the plug-in {path.absolute()} cannot be read: {error.strerror}") from error
    # as Python names the files of modules, which this may be one of
    return _load(Plugin(path.name, hashlib.sha256(source).hexdigest(), os.path.abspath(path), source))


def _load(plugin: Plugin) -> Plugin:
    """Import a file, unless it is imported already, as a script or by a statement for example."""
    assert plugin.path is not None  # noqa: S101  (it is a file)
    held = _imported.get(plugin.name)
    if held is not None:
        if held.digest == plugin.digest:
            return held
        if held.path == plugin.path:
            raise PluginError(f"the plug-in {plugin.path} has changed since this process imported it; start again")
        raise PluginError(f"two plug-ins are called {plugin.name}: {held.path} and {plugin.path}; rename one")
    with _importing(plugin.name, lambda file: file == plugin.path):
        if not any(_file_of(module) == plugin.path for module in list(sys.modules.values())):
            _execute(plugin)
    _imported[plugin.name] = plugin
    return plugin


class _Source(SourceLoader):
    """Loads a module from a text, so that it also works where its file is not; tracebacks show its lines."""

    def __init__(self, plugin: Plugin) -> None:
        self._path, self._source = plugin.path or "", plugin.source or b""

    def get_filename(self, fullname: str) -> str:
        return self._path

    def get_data(self, path: str | bytes) -> bytes:
        if path != self._path:  # a cache of bytecode
            raise FileNotFoundError(path)
        return self._source


def _execute(plugin: Plugin) -> None:
    name = f"shiftproof_plugin_{Path(kept_as(plugin.name, plugin.digest)).stem}"
    spec = spec_from_loader(name, _Source(plugin))
    assert spec is not None and spec.loader is not None  # noqa: S101, PT018  (it has the loader above)
    module = module_from_spec(spec)
    sys.modules[name] = module  # as for any module, so that its classes can be found by their names
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _import_module(name: str) -> Plugin:
    if not name:
        raise PluginError("the name of a plug-in is empty")
    if name in _imported:
        return _imported[name]

    def is_inside(file: str) -> bool:
        return any(_file_of(module) == file for key, module in list(sys.modules.items()) if _is_part(key, name))

    with _importing(name, is_inside):
        module = import_module(name)
    package = sys.modules.get(name.partition(".")[0], module)  # the module may import others beside it
    _imported[name] = Plugin(name, _digest(package))
    return _imported[name]


def _is_part(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def _file_of(module: ModuleType) -> str | None:
    file = getattr(module, "__file__", None)
    return os.path.abspath(file) if isinstance(file, str) else None


def _digest(module: ModuleType) -> str:
    """Return the SHA-256 of a module's source: of all Python files of a package, with their names."""
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    file = _file_of(module)
    files = [(path, path.relative_to(folder)) for folder in folders for path in sorted(folder.rglob("*.py"))]
    digest = hashlib.sha256()
    for path, name in files or ([(Path(file), Path(Path(file).name))] if file else []):
        digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


@contextmanager
def _importing(name: str, is_inside: Callable[[str], bool]) -> Iterator[None]:
    """Note the entries that are registered inside as those of a plug-in; withdraw them if it cannot be used.

    Args:
        name: name of the plug-in.
        is_inside: whether a file is part of it; entries that such a file registered earlier are the plug-in's too.
    """
    before, modules, running = set(_entries()), set(sys.modules), _processes()
    try:
        yield
        _check_started(name, _processes() - running)
        own = _own(before, is_inside)
        _check_registered(name, own)
    except BaseException as error:
        _withdraw(before, modules)
        if isinstance(error, (PluginError, KeyboardInterrupt)):
            raise
        raise PluginError(f"the plug-in {name} cannot be imported: {_reason(name, error, is_inside)}") from error
    _owners.update(dict.fromkeys(own, name))


def _withdraw(before: Container[tuple[str, str]], modules: Container[str]) -> None:
    """Remove the entries that a plug-in has registered, and the new modules that did, so that it can be imported again.

    Args:
        before: kinds and names of the entries before it.
        modules: names of the modules before it.
    """
    for registry in Registry.every:
        for entry in list(registry):
            place = registry.place(entry)
            if (registry.kind, entry) not in before and not place.is_ours:
                registry.withdraw(entry)
                if place.module not in modules:
                    sys.modules.pop(place.module, None)


def _processes() -> set[int]:
    """Return the ids of the processes that this one has started and that run, without those of multiprocessing."""
    own = {process.pid for process in multiprocessing.active_children() if process.pid is not None}
    helpers = {resource_tracker._resource_tracker._pid, forkserver._forkserver._forkserver_pid}
    for children in Path("/proc/self/task").glob("*/children"):  # on Linux
        with suppress(OSError):  # a thread that has ended
            own.update(pid for pid in map(int, children.read_text().split()) if not _is_dead(pid))
    return own - helpers


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _check_started(name: str, processes: Collection[int]) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    if processes:
        raise PluginError(
            f"the plug-in {name} starts processes when it is imported, and every worker imports it: start them in a "
            "function"
        )


def _check_registered(name: str, own: Collection[tuple[str, str]]) -> None:
    if not own:
        raise PluginError(
            f"the plug-in {name} registers nothing: add what it defines to a registry, as in "
            'ALGORITHMS.register("mine", Mine)'
        )


def _own(before: Container[tuple[str, str]], is_inside: Callable[[str], bool]) -> list[tuple[str, str]]:
    """Return the kinds and names of a plug-in's entries.

    They are those that its files have registered, now or earlier, and new ones that modules it imports have registered.
    """
    return [
        entry
        for entry, place in _entries().items()
        if not place.is_ours
        and (is_inside(os.path.abspath(place.file)) or (entry not in before and entry not in _owners))
    ]


def _entries() -> dict[tuple[str, str], Place]:
    return {(registry.kind, name): registry.place(name) for registry in Registry.every for name in registry}


def _reason(name: str, error: BaseException, is_inside: Callable[[str], bool]) -> str:
    """Return the last line of a traceback, with the last place in the plug-in that it passes."""
    if isinstance(error, ModuleNotFoundError) and error.name and _is_part(name, error.name):
        return f"there is no module {error.name}; a file is named by its path, as in ./{name}.py"
    if isinstance(error, SyntaxError):
        place = f", in {error.filename}, line {error.lineno}" if error.filename else ""
        return f"{type(error).__name__}: {error.msg}{place}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    frames = [frame for frame in frames if frame.filename != __file__]
    inside = [frame for frame in frames if is_inside(os.path.abspath(frame.filename))] or frames
    place = f", in {inside[-1].filename}, line {inside[-1].lineno}" if inside else ""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{text}{place}"
