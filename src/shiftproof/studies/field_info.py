"""What is said of a study's field where it is declared: for the command line, the documentation and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, field, fields
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

Declared = TypeVar("Declared", bound=type)

GROUPS = ("study", "data", "model", "methods", "protocol", "training")
"""The headings that fields stand under."""

STUDIES = ("compare", "study")
TRACES = ("figure balance", "figure osgr", "figure embedding", "figure landscape")
FIGURES = (*TRACES, "figure agreement", "figure sensitivity")
RUNS = (*STUDIES, "train", *FIGURES)
ALL = (*RUNS, "bench data")
"""The commands that take fields; "study" is for both `study plan` and `study run`."""


class Term(NamedTuple):
    """How tables show a field that accuracies depend on.

    Attributes:
        label: what they call it.
        meaning: the same in plain words, for readers of a report.
        always: whether it is shown where it has its default or stands for nothing.
        texts: what is shown in place of some values.
    """

    label: str
    meaning: str
    always: bool = False
    texts: Mapping[Any, str] = MappingProxyType({})


class One(NamedTuple):
    """The option of commands that take a single one of what a field lists.

    Attributes:
        option: its spelling.
        commands: those that have it.
        help: what it is.
        joins: whether several values are joined by "+" to one.
    """

    option: str
    commands: tuple[str, ...]
    help: str
    joins: bool = False


class FieldInfo(NamedTuple):
    """What is said of a field.

    Attributes:
        help: what it is, in a sentence without a capital and a stop.
        group: of `GROUPS`.
        commands: those that take it.
        none: what its default stands for, where that is empty.
        options: spellings of its option besides the field's name.
        metavar: what stands for a value.
        one: the option of commands that take a single one.
        term: how tables show it; None if they do not.
    """

    help: str
    group: str
    commands: tuple[str, ...]
    none: str = ""
    options: tuple[str, ...] = ()
    metavar: str = "NAME"
    one: One | None = None
    term: Term | None = None


def described(default: Any, help: str, group: str, commands: tuple[str, ...], **more: Any) -> Any:  # noqa: A002
    """Declare a field of a dataclass with its default and its `FieldInfo`."""
    metadata = {"info": FieldInfo(help, group, commands, **more)}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def info_of(declared: Field[Any]) -> FieldInfo:
    """Return what is said of a field."""
    info: FieldInfo = declared.metadata["info"]
    return info


def default_of(declared: Field[Any]) -> Any:
    """Return the default of a field."""
    return declared.default if declared.default_factory is MISSING else declared.default_factory()


def option_names(declared: Field[Any]) -> tuple[str, ...]:
    """Return the spellings of a field's option."""
    return (*info_of(declared).options, f"--{declared.name.replace('_', '-')}")


def default_text(default: Any, none: str = "") -> str:
    """Return a default as a person reads it; ``none`` where it is empty."""
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, (tuple, list)):
        return " ".join(map(str, default)) or none
    return none if default is None or default == {} else str(default)


def with_attributes(declared: Declared) -> Declared:
    """Add a section on its attributes to the docstring of a dataclass, from what is said of its fields."""
    lines = []
    for one in fields(declared):
        none = f" (None: {info_of(one).none})" if default_of(one) is None else ""
        lines.append(f"        {one.name}: {info_of(one).help}{none}.")
    summary, raises, rest = (declared.__doc__ or "").partition("    Raises:")
    declared.__doc__ = f"{summary}    Attributes:\n" + "\n".join(lines) + f"\n\n{raises}{rest}"
    return declared
