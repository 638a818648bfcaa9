"""Registries of named entries, one per axis, with errors that suggest near matches."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import ClassVar, Generic, NamedTuple, TypeVar
from weakref import WeakSet

from shiftproof.base.hparams import check_hparams

Entry = TypeVar("Entry")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


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


def did_you_mean(name: str, valid: Sequence[str]) -> str:
    """Return the question for the end of an error about a name, with up to three near ones; empty if none is near.

    Examples:
        >>> did_you_mean("genei", ["adam", "genie"])
        ' Did you mean genie?'
    """
    import difflib  # slow to import, for errors only

    near = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(near)}?" if near else ""


class UnknownNameError(ValueError):
    """A name that is not registered; the message lists the near matches and all valid names.

    Attributes:
        kind: what has the name ("optimizer").
        name: the name.
    """

    def __init__(self, kind: str, name: str, valid: list[str]) -> None:
        self.kind, self.name = kind, name
        super().__init__(f"unknown {kind} '{name}'.{did_you_mean(name, valid)} Valid names: {', '.join(valid)}")


class NameTakenError(ValueError):
    """A name is registered a second time; the message names both places."""


class RemovedNameError(UnknownNameError):
    """A name that is not registered any more; the message says why, and what replaces it."""

    def __init__(self, kind: str, name: str, reason: str) -> None:
        ValueError.__init__(self, f"{kind} '{name}' was removed: {reason}")
        self.kind, self.name = kind, name


class Registry(Generic[Entry]):
    """Entries of one kind by name, in order of registration.

    Args:
        kind: word for an entry in error messages ("optimizer").
        instances_of: class that every entry must be an instance of; None to check nothing.
        subclasses_of: class that every entry must be a subclass of; None to check nothing.
        removed: names from earlier versions, each with the reason for its removal and its replacement.
    """

    every: ClassVar[WeakSet[Registry[object]]] = WeakSet()
    """All registries of this process."""

    def __init__(
        self,
        kind: str,
        *,
        instances_of: type | None = None,
        subclasses_of: type | None = None,
        removed: Mapping[str, str] = {},
    ) -> None:
        self.kind = kind
        self.instances_of = instances_of
        self.subclasses_of = subclasses_of
        self.removed = removed
        self._entries: dict[str, Entry] = {}
        self._summaries: dict[str, str] = {}
        self._places: dict[str, Place] = {}
        Registry.every.add(self)  # type: ignore[arg-type]

    def register(self, name: str, entry: Entry, *, summary: str = "") -> Entry:
        """Add an entry and return it.

        Args:
            name: its name, as the command line and study files will spell it: letters from a to z in upper or lower
                case, digits, "_", "." and "-", of which the last two do not come first.
            entry: the entry.
            summary: what `shiftproof list` says about it; if empty, the first line of its docstring.

        Raises:
            NameTakenError: the name is taken; the message names both places.
            ValueError: the name has other characters, or the entry is not what the registry holds.
        """
        self._check(name, entry, summary)
        frame = sys._getframe(1)
        place = Place(frame.f_globals.get("__name__", ""), frame.f_code.co_filename, frame.f_lineno)
        if name in self._entries:
            raise NameTakenError(
                f"{self.kind} '{name}' is registered already, in {self._places[name]}; {place} registers it again"
            )
        self._entries[name] = entry
        self._summaries[name] = summary
        self._places[name] = place
        return entry

    def _check(self, name: object, entry: object, summary: object) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"the name of {_with_article(self.kind)} must be made of letters from a to z in upper or lower case, "
                f"digits, _, . and -, and begin with a letter, a digit or _, not {name!r}"
            )
        what = f"{self.kind} '{name}'"
        if self.instances_of is not None and not isinstance(entry, self.instances_of):
            raise ValueError(f"{what} must be an instance of {_public(self.instances_of)}, not {_described(entry)}")
        if self.subclasses_of is not None and not (isinstance(entry, type) and issubclass(entry, self.subclasses_of)):
            raise ValueError(f"{what} must be a subclass of {_public(self.subclasses_of)}, not {_described(entry)}")
        if not isinstance(summary, str):
            raise ValueError(f"the summary of {what} must be a text, not {summary!r}")  # noqa: TRY004
        for attribute in ("hparams", "short_hparams"):
            check_hparams(f"{attribute} of {what}", getattr(entry, attribute, {}))

    def withdraw(self, name: str) -> None:
        """Remove an entry: that of a plug-in that cannot be imported to its end."""
        del self._entries[name], self._summaries[name], self._places[name]

    def place(self, name: str) -> Place:
        """Return where an entry was registered."""
        self[name]  # an unknown name is an error
        return self._places[name]

    def summary(self, name: str) -> str:
        """Return what an entry is, in one line: the first one of its summary, else of its docstring."""
        entry = self[name]
        documented = getattr(entry, "documented", entry)
        while isinstance(documented, partial):  # whose own docstring is that of every partial
            documented = documented.func
        text = self._summaries[name].strip() or (getattr(documented, "__doc__", None) or "").strip()
        return text.splitlines()[0] if text else "(no description)"

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


def check_callable(what: str, function: object, arguments: int) -> None:
    """Check that something can be called with a number of positional arguments.

    Args:
        what: what it is, for the error.
        function: the function or class; one that does not tell its arguments passes.
        arguments: the number of arguments.

    Raises:
        ValueError: it cannot be called, or not with so many arguments.
    """
    if not callable(function):
        raise ValueError(f"{what} must be a function or a class, not {function!r}")  # noqa: TRY004
    try:
        signature = inspect.signature(function)
    except ValueError:
        return
    try:
        signature.bind(*range(arguments))
    except TypeError as error:
        number = "1 argument" if arguments == 1 else f"{arguments} arguments"
        raise ValueError(f"{what} must take {number} ({error})") from error


def _public(kind: type) -> str:
    """Return a class's name in the package that exports it, which is the one that its module is in."""
    return f"{kind.__module__.rpartition('.')[0]}.{kind.__qualname__}"


def _described(entry: object) -> str:
    if isinstance(entry, type):
        return f"the class {entry.__qualname__}"
    return _with_article(type(entry).__name__)


def _with_article(word: str) -> str:
    return f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}"
