"""Writes docs/reference/command_line.md from the parser: `python -m benchmarks.command_line_page`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from shiftproof.cli.command import IMPORT_HELP, Command
from shiftproof.cli.fields import Taken
from shiftproof.cli.parser import make_parser
from shiftproof.studies import default_text

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "command_line.md"
INTRODUCTION = f"""<!-- written by `python -m benchmarks.command_line_page` -->

# Command line

`shiftproof COMMAND --help` prints all options of a command with their defaults. This page lists the options that are
not fields of a study; [the table of fields](study_fields.md) has those, with the commands that take them.

Every command takes `--import PLUGIN`: {IMPORT_HELP}.
A command exits with 0, with 1 for bad input or a failure, with 2 for options that cannot be parsed, and with 130 if
interrupted. `shiftproof --print-completion SHELL` prints a script that completes commands in bash, zsh or tcsh."""
COMMON = {"help", "imports"}
"""Arguments that the introduction describes."""


def page() -> str:
    """Return the page as of today's parser."""
    return "\n\n".join([INTRODUCTION, *(_section(*found) for found in commands(make_parser()))]) + "\n"


def commands(command: Command, summary: str = "") -> Iterator[tuple[Command, str]]:
    """Yield every command that runs something, with its line of help."""
    groups = [action for action in command.complete()._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield command, summary
    for group in groups:
        for choice in group._choices_actions:
            yield from commands(group.choices[choice.dest], choice.help or "")


def _section(command: Command, summary: str) -> str:
    taken: Taken | None = command.get_default("taken")
    fields = {*taken.options, "batch_size"} if taken else set()
    own = [action for action in command._actions if action.dest not in fields | COMMON]
    needed = [_with_value(action) for action in command._actions if action.required]
    for group in command._mutually_exclusive_groups:
        if group.required:
            first, *others = map(_with_value, group._group_actions)
            needed += [first, *(f"[or {other}]" for other in others)]
    parts = [
        f"## {command.prog}",
        f"{summary[0].upper()}{summary[1:]}.",
        f"    {' '.join([command.prog, *needed])} [OPTIONS]",
    ]
    if own:
        rows = [f"| {_names(action)} | {_text(action)} |" for action in own]
        parts.append("\n".join(["| argument | what it is |", "|---|---|", *rows]))
    if taken:
        parts.append(_fields(taken))
    if command.epilog:
        parts.append(command.epilog)
    return "\n\n".join(parts)


def _fields(taken: Taken) -> str:
    text = "It also takes the options of the [fields of a study](study_fields.md) whose rows name it."
    defaults = [
        f"`{taken.options[name]}` {default_text(value, '')}"
        for name, value in taken.defaults.items()
        if name in taken.options and name != "fixed"
    ]
    return f"{text} Defaults of its own: {', '.join(defaults)}." if defaults else text


def _with_value(action: argparse.Action) -> str:
    value = str(action.metavar or (",".join(action.choices) if action.choices else action.dest))
    value = f"{value}..." if action.nargs in ("+", "*") else value
    return f"{action.option_strings[0]} {value}" if action.option_strings else value


def _names(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{_with_value(action)}`"
    value = "" if action.nargs == 0 else " " + _with_value(action).split(" ", 1)[1]
    return ", ".join(f"`{name}{value}`" for name in action.option_strings)


def _text(action: argparse.Action) -> str:
    return (action.help or "").replace("%%", "%").replace("|", r"\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
