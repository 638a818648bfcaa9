"""Registries of named entries, one per axis, with errors that suggest near matches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

Entry = TypeVar("Entry")


class UnknownNameError(ValueError):
    """A name that is not registered; the message lists the near matches and all valid names."""

    def __init__(self, kind: str, name: str, valid: list[str]) -> None:
        import difflib  # slow to import, for errors only

        near = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        super().__init__(f"unknown {kind} '{name}'.{hint} Valid names: {', '.join(valid)}")


class RemovedNameError(UnknownNameError):
    """A name that is not registered any more; the message says why, and what replaces it."""

    def __init__(self, kind: str, name: str, reason: str) -> None:
        ValueError.__init__(self, f"{kind} '{name}' was removed: {reason}")


class Registry(Generic[Entry]):
    """Entries of one kind by name, in order of registration.

    Args:
        kind: word for an entry in error messages ("optimizer").
        removed: names from earlier versions, each with the reason for its removal and its replacement.
    """

    def __init__(self, kind: str, removed: Mapping[str, str] = {}) -> None:
        self.kind = kind
        self.removed = removed
        self._entries: dict[str, Entry] = {}

    def register(self, name: str, entry: Entry) -> Entry:
        """Add an entry and return it.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._entries:
            raise ValueError(f"{self.kind} '{name}' is registered already")
        self._entries[name] = entry
        return entry

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
