"""Registries of named entries, one per axis, with errors that suggest near matches."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import ClassVar, Generic, NamedTuple, TypeVar
from weakref import WeakSet

Entry = TypeVar("Entry")


class Place(NamedTuple):
    """Where an entry was registered.

    Attributes:
        module: name of the module.
        file: its file, as Python knows it.
        line: the line.
    """

    module: str
    file: str
    line: int

    @property
    def is_ours(self) -> bool:
        """Whether the module is a part of shiftproof."""
        return self.module.partition(".")[0] == "shiftproof"

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}"


class UnknownNameError(ValueError):
    """A name that is not registered; the message lists the near matches and all valid names.

    Attributes:
        kind: what has the name ("optimizer").
        name: the name.
    """

    def __init__(self, kind: str, name: str, valid: list[str]) -> None:
        import difflib  # slow to import, for errors only

        self.kind, self.name = kind, name
        near = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        super().__init__(f"unknown {kind} '{name}'.{hint} Valid names: {', '.join(valid)}")


class RemovedNameError(UnknownNameError):
    """A name that is not registered any more; the message says why, and what replaces it."""

    def __init__(self, kind: str, name: str, reason: str) -> None:
        ValueError.__init__(self, f"{kind} '{name}' was removed: {reason}")
        self.kind, self.name = kind, name


class Registry(Generic[Entry]):
    """Entries of one kind by name, in order of registration.

    Args:
        kind: word for an entry in error messages ("optimizer").
        removed: names from earlier versions, each with the reason for its removal and its replacement.
    """

    every: ClassVar[WeakSet[Registry[object]]] = WeakSet()
    """All registries of this process."""

    def __init__(self, kind: str, removed: Mapping[str, str] = {}) -> None:
        self.kind = kind
        self.removed = removed
        self._entries: dict[str, Entry] = {}
        self._summaries: dict[str, str] = {}
        self._places: dict[str, Place] = {}
        Registry.every.add(self)  # type: ignore[arg-type]

    def register(self, name: str, entry: Entry, *, summary: str = "") -> Entry:
        """Add an entry and return it.

        Args:
            name: its name, as the command line and study files will spell it.
            entry: the entry.
            summary: what `shiftproof list` says about it; if empty, the first line of its docstring.

        Raises:
            ValueError: the name is taken; the message names both places.
        """
        frame = sys._getframe(1)
        place = Place(frame.f_globals.get("__name__", ""), frame.f_code.co_filename, frame.f_lineno)
        if name in self._entries:
            raise ValueError(
                f"{self.kind} '{name}' is registered already, in {self._places[name]}; {place} registers it again"
            )
        self._entries[name] = entry
        self._summaries[name] = summary
        self._places[name] = place
        return entry

    def withdraw(self, name: str) -> None:
        """Remove an entry: that of a plug-in that cannot be imported to its end."""
        del self._entries[name], self._summaries[name], self._places[name]

    def place(self, name: str) -> Place:
        """Return where an entry was registered."""
        self[name]  # an unknown name is an error
        return self._places[name]

    def summary(self, name: str) -> str:
        """Return what an entry is, in one line: its summary, else the first line of its docstring."""
        entry = self[name]
        documented = getattr(entry, "documented", entry)
        text = (getattr(documented, "__doc__", None) or "").strip().partition("\n")[0]
        return self._summaries[name] or text

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries:
            raise self.error(name)
        return self._entries[name]

    def error(self, name: str) -> UnknownNameError:
        """Return the error to raise for a name that has no entry."""
        if name in self.removed:
            return RemovedNameError(self.kind, name, self.removed[name])
        return UnknownNameError(self.kind, name, list(self._entries))

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)
