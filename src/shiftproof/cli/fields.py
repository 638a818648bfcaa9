"""The options that set fields of a study, made from the `FieldInfo` that `Study` declares with each field."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import Field, fields
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_origin

from shiftproof.base.field_error import FieldError
from shiftproof.base.hparams import Value, parse_value
from shiftproof.cli.command import Command
from shiftproof.cli.options import path, with_default
from shiftproof.studies import GROUPS, TABLE_FIELDS, One, Study, default_of, field_types, info_of, option_names

if TYPE_CHECKING:
    from shiftproof.data import TableFile

BATCH_SIZE = "data.batch_size"
"""The hyperparameter that the option --batch-size sets."""


class Taken(NamedTuple):
    """The fields of a study that a command takes.

    Attributes:
        options: the option that sets each field, by the field's name.
        defaults: this command's defaults, where they differ from those of `Study`.
    """

    options: Mapping[str, str]
    defaults: Mapping[str, Any]


def add_fields(
    parser: Command,
    command: str,
    *,
    defaults: Mapping[str, Any] = {},
    none: Mapping[str, str] = {},
    required: Collection[str] = (),
) -> None:
    """Add options for the fields of a study that a command takes, in groups.

    Args:
        parser: the command's parser.
        command: the command's name, as in `FieldInfo.commands`.
        defaults: the command's defaults, where they differ from those of `Study`.
        none: what an empty field means to the command, by field, where that differs from `Study`.
        required: fields that must be given.
    """
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    taken = {}
    for declared in fields(Study):
        info, name = info_of(declared), declared.name
        one = info.one if info.one is not None and command in info.one.commands else None
        if one is None and command not in info.commands:
            continue
        text = one.help if one else info.help
        how = _how(declared, one)
        if how.get("action") == "append":
            text = f"{text}; may be repeated"
        if name in required:
            how["required"] = True
        else:
            text = with_default(text, defaults.get(name, default_of(declared)), none.get(name, info.none))
        names = (one.option,) if one else option_names(declared)
        taken[name] = names[0]
        groups[info.group].add_argument(*names, dest=name, default=None, help=text, **how)
    batch_size = defaults.get("fixed", {}).get(BATCH_SIZE)
    if "fixed" in taken or batch_size is not None:
        text = with_default("images per source domain and step", batch_size, "the search's")
        groups["training"].add_argument("--batch-size", type=int, metavar="N", help=text)
    parser.set_defaults(taken=Taken(taken, defaults))


def add_table_fields(parser: Command) -> None:
    """Add options for the fields that say what the columns of a table mean, to a command that takes no study."""
    group = parser.add_argument_group("table")
    declared = {one.name: one for one in fields(Study)}
    for name in TABLE_FIELDS:
        if name != "metadata":
            info = info_of(declared[name])
            text = with_default(info.help, default_of(declared[name]), info.none)
            group.add_argument(*option_names(declared[name]), dest=name, help=text, **_how(declared[name], None))


def given_table(options: argparse.Namespace, file: Path) -> TableFile:
    """Return a table with what the options of `add_table_fields` say of its columns.

    Raises:
        FieldError: a field is missing, or cannot have its value.
    """
    from shiftproof.studies import table_of

    given = {name: value for name in TABLE_FIELDS if (value := getattr(options, name, None)) is not None}
    values: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in given.items()}
    table = table_of(Study(**{**values, "datasets": ("table",), "metadata": file}), "table")
    assert table is not None  # noqa: S101  (it is of the data set table)
    return table


def _how(declared: Field[Any], one: One | None) -> dict[str, Any]:
    """Return how argparse reads the values of a field."""
    kind, metavar = field_types()[declared.name], info_of(declared).metavar
    if NoneType in get_args(kind):
        [kind] = [of for of in get_args(kind) if of is not NoneType]
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is dict:
        return {"action": "append", "type": assignment, "metavar": metavar}
    if info_of(declared).repeats:
        return {"action": "append", "metavar": metavar}
    if get_origin(kind) is tuple:
        several = {"nargs": "+", "action": _Joined} if one and one.joins else {"nargs": 1 if one else "+"}
        return {**several, "metavar": metavar}
    return {"type": {int: int, float: float, Path: path}.get(kind, str), "metavar": metavar}


class _Joined(argparse.Action):
    """Store all values as one, joined by "+"."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, ["+".join(values or ())])


def assignment(text: str) -> tuple[str, Value]:
    """Return the name and the value of a hyperparameter that an option fixes."""
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form part.name=value, such as optimizer.lr=0.03")
    return name, parse_value(value)


def given_fields(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of a study that the options set.

    Raises:
        ValueError: a hyperparameter is fixed twice.
    """
    taken = options.taken.options
    given = {name: value for name, value in vars(options).items() if name in taken and value is not None}
    batch_size = getattr(options, "batch_size", None)
    fixed: dict[str, Value] = {}
    for name, value in [*given.pop("fixed", []), *([] if batch_size is None else [(BATCH_SIZE, batch_size)])]:
        if name in fixed:
            raise ValueError(f"{name} is set twice, to {fixed[name]} and to {value}")
        fixed[name] = value
    if fixed:
        given["fixed"] = fixed
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


@contextmanager
def naming_options(options: argparse.Namespace) -> Iterator[None]:
    """Name the option in errors about a field that was set by one.

    Raises:
        ValueError: a `FieldError` was raised inside, for a field that was given; the message begins with the option.
        FieldError: one was raised inside, for fields that were not given.
    """
    try:
        yield
    except FieldError as error:
        given = given_fields(options).get(error.field)
        names_path = isinstance(given, Path) and str(given) in str(error)  # which is as good as the option
        option = next(filter(None, (_option_of(options, field) for field in error.fields)), None)
        if option is None or names_path:
            raise
        raise ValueError(f"{option}: {error}") from error


def _option_of(options: argparse.Namespace, field: str) -> str | None:
    """Return the option that set a field or a hyperparameter; None if none did."""
    given = given_fields(options)
    if field == BATCH_SIZE and options.batch_size is not None:
        return "--batch-size"
    name = "fixed" if field in given.get("fixed", {}) else field
    option: str | None = options.taken.options[name] if name in given else None
    return option


def study_of(options: argparse.Namespace, **changes: Any) -> Study:
    """Return the study that the options of a command describe.

    Args:
        options: the parsed options.
        **changes: fields that override the options.

    Raises:
        ValueError: a field cannot have its value.
    """
    return Study(**{**options.taken.defaults, **given_fields(options), **changes})
