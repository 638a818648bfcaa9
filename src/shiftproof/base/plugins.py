"""Plug-ins: modules and files from outside that register entries, the same ones in every process of a study."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import warnings
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from shiftproof.base.files import with_home, write_bytes
from shiftproof.base.plugin_source import (
    execute_source,
    failure,
    file_of,
    is_part,
    printing_to,
    running_processes,
    source_digest,
)
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
    wanted = [names] if isinstance(names, (str, Path)) else list(names)
    if not wanted and _import_installed.cache_info().currsize:
        return  # as in most calls; the output of the process stays as it is
    with printing_to(sys.stderr, 2):
        _import_installed()
        for name in wanted:
            if isinstance(name, Path) or _is_file(name):
                _import_file(with_home(name))
            else:
                _import_module(name)


def adopt_plugins(plugins: Iterable[Plugin]) -> None:
    """Import in a worker the plug-ins that its driver has imported; what they print is dropped.

    Raises:
        PluginError: a module is missing here or is not the driver's, or a plug-in cannot be imported.
    """
    with Path(os.devnull).open("w") as nowhere, printing_to(nowhere, nowhere.fileno()):
        for plugin in plugins:
            here = _load(plugin) if plugin.source is not None else _import_module(plugin.name)
            if here.digest != plugin.digest:
                raise PluginError(
                    f"the plug-in {plugin.name} differs from the driver's ({here.digest[:8]} here, "
                    f"{plugin.digest[:8]} there); install the same version everywhere and start again"
                )


def imported(names: Iterable[str]) -> tuple[Plugin, ...]:
    """Return plug-ins that this process has imported, by the names that `import_plugins` took or by their own."""
    return tuple(
        _imported[name] for name in dict.fromkeys(Path(name).name if _is_file(name) else name for name in names)
    )


def is_of_a_script(registry: Registry[Any], name: str) -> bool:
    """Return whether a name was registered by code of which no digest tells when it changes."""
    return name in registry and plugin_of(registry, name) is None and not registry.place(name).is_ours


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
        if not any(file_of(module) == plugin.path for module in list(sys.modules.values())):
            stem = Path(kept_as(plugin.name, plugin.digest)).stem
            execute_source(f"shiftproof_plugin_{stem}", plugin.path, plugin.source or b"")
    _imported[plugin.name] = plugin
    return plugin


def _import_module(name: str) -> Plugin:
    if not name:
        raise PluginError("the name of a plug-in is empty")
    if name in _imported:
        return _imported[name]

    def is_inside(file: str) -> bool:
        return any(file_of(module) == file for key, module in list(sys.modules.items()) if is_part(key, name))

    with _importing(name, is_inside):
        module = import_module(name)
    package = sys.modules.get(name.partition(".")[0], module)  # the module may import others beside it
    _imported[name] = Plugin(name, source_digest(package))
    return _imported[name]


@contextmanager
def _importing(name: str, is_inside: Callable[[str], bool]) -> Iterator[None]:
    """Note the entries that are registered inside as those of a plug-in; withdraw them if it cannot be used.

    Args:
        name: name of the plug-in.
        is_inside: whether a file is part of it; entries that such a file registered earlier are the plug-in's too.
    """
    before, modules, running = set(_entries()), set(sys.modules), running_processes()
    try:
        yield
        _check_started(name, running_processes() - running)
        own = _own(before, is_inside)
        _check_registered(name, own)
    except BaseException as error:
        _withdraw(before, modules)
        if isinstance(error, (PluginError, KeyboardInterrupt)):
            raise
        raise PluginError(f"the plug-in {name} cannot be imported: {failure(name, error, is_inside)}") from error
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
