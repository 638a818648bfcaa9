"""How a study declares its fields, with what the command line, the documentation and tables show of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, field, fields
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

Declared = TypeVar("Declared", bound=type)

GROUPS = ("study", "data", "model", "methods", "protocol", "training")
"""The headings that the fields are grouped under."""

STUDIES = ("compare", "study")
TRACES = ("figure balance", "figure osgr", "figure embedding", "figure landscape")
FIGURES = (*TRACES, "figure agreement", "figure sensitivity")
RUNS = (*STUDIES, "train", *FIGURES)
ALL = (*RUNS, "bench data", "encode")
"""The commands that take fields; "study" is for both `study plan` and `study run`."""
TABLE_FIELDS = ("metadata", "domain", "labels", "task", "features", "image", "group", "id", "missing_labels")
"""The fields of the data set `table`."""


class Term(NamedTuple):
    """How tables show a field that accuracies depend on.

    Attributes:
        label: its name in tables.
        meaning: its explanation for readers of a report.
        always: whether it is shown even with its default.
        texts: texts to show in place of some values.
    """

    label: str
    meaning: str
    always: bool = False
    texts: Mapping[Any, str] = MappingProxyType({})


class One(NamedTuple):
    """The option of commands that take one item where the field has a list.

    Attributes:
        option: its spelling.
        commands: the commands that have it.
        help: its help text.
        joins: whether it takes several values and joins them by "+" into one item.
    """

    option: str
    commands: tuple[str, ...]
    help: str
    joins: bool = False


class FieldInfo(NamedTuple):
    """How a field is documented and shown.

    Attributes:
        help: a description that starts in lower case and has no full stop.
        group: one of `GROUPS`.
        commands: the commands that take the field.
        none: what an empty default means.
        options: spellings of its option besides the field's name.
        metavar: placeholder for a value.
        one: the option of commands that take a single item.
        term: how tables show it; None if they do not.
        repeats: whether its option takes one item and is repeated for more.
    """

    help: str
    group: str
    commands: tuple[str, ...]
    none: str = ""
    options: tuple[str, ...] = ()
    metavar: str = "NAME"
    one: One | None = None
    term: Term | None = None
    repeats: bool = False


def described(default: Any, help: str, group: str, commands: tuple[str, ...], **more: Any) -> Any:  # noqa: A002
    """Declare a field of a dataclass with its default and its `FieldInfo`."""
    metadata = {"info": FieldInfo(help, group, commands, **more)}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def info_of(declared: Field[Any]) -> FieldInfo:
    """Return the `FieldInfo` of a field."""
    info: FieldInfo = declared.metadata["info"]
    return info


def default_of(declared: Field[Any]) -> Any:
    """Return the default of a field."""
    return declared.default if declared.default_factory is MISSING else declared.default_factory()


def option_names(declared: Field[Any]) -> tuple[str, ...]:
    """Return the spellings of a field's option."""
    return (*info_of(declared).options, f"--{declared.name.replace('_', '-')}")


def default_text(default: Any, none: str = "") -> str:
    """Return a default as help texts show it; ``none`` if it is empty."""
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, (tuple, list)):
        return " ".join(map(str, default)) or none
    return none if default is None or default == {} else str(default)


def with_attributes(declared: Declared) -> Declared:
    """Add an "Attributes" section to the docstring of a dataclass, from the `FieldInfo` of its fields."""
    lines = []
    for one in fields(declared):
        none = f" (None: {info_of(one).none})" if default_of(one) is None else ""
        lines.append(f"        {one.name}: {info_of(one).help}{none}.")
    summary, raises, rest = (declared.__doc__ or "").partition("    Raises:")
    declared.__doc__ = f"{summary}    Attributes:\n" + "\n".join(lines) + f"\n\n{raises}{rest}"
    return declared
