"""Completion of the command line in a shell."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from shiftproof.base.extras import require
from shiftproof.base.registry import UnknownNameError
from shiftproof.cli import options as types
from shiftproof.cli.command import Command

SHELLS = ("bash", "zsh", "tcsh")


class PrintCompletion(argparse.Action):
    """Print a shell script that completes commands, options and the names that fields take.

    Raises:
        ValueError: the shell is unknown, or shtab, which makes the script, is not installed.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Print the script and exit."""
        if values not in SHELLS:
            raise UnknownNameError("shell", str(values), list(SHELLS))
        shtab = require("shtab", "bench")
        from shiftproof.studies import names_by_field

        assert isinstance(parser, Command)  # noqa: S101  (all parsers here are)
        for action in _actions(parser):
            if action.dest in names_by_field() and action.option_strings:
                action.choices = list(names_by_field()[action.dest])
            elif action.type in (types.path, types.place, types.file):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif action.type is types.folder:
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        print(shtab.complete(parser, str(values)))
        parser.exit()


def _actions(command: Command) -> Iterator[argparse.Action]:
    """Yield the arguments of a command and of its subcommands."""
    for action in command.complete()._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from _actions(one)
