"""Completion of the command line in a shell."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from shiftproof.base.extras import require
from shiftproof.base.registry import UnknownNameError
from shiftproof.cli import options as types
from shiftproof.cli.command import Command

SHELLS = ("bash", "zsh", "tcsh")


class PrintCompletion(argparse.Action):
    """Print a shell script that completes commands, options, files and the names that arguments take.

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
        assert isinstance(parser, Command)  # noqa: S101  (all parsers here are)
        options, positionals = _names()
        # The script needs what follows; nothing is parsed afterwards.
        for action in _actions(parser):
            names = (options if action.option_strings else positionals).get(action.dest)
            if names is not None:
                action.choices = list(names)
            elif action.type is types.study_file:
                action.complete = _study_files()  # type: ignore[attr-defined]
            elif action.dest == "imports" or action.type in (types.path, types.place, types.file):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif action.type is types.folder:
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        print(shtab.complete(parser, str(values)))
        parser.exit()


def _names() -> tuple[Mapping[str, Collection[str]], Mapping[str, Collection[str]]]:
    """Return the names that options take, and those that positional arguments take, both by destination."""
    from shiftproof.data.downloads import SOURCES
    from shiftproof.models import MODELS
    from shiftproof.protocol import RULES
    from shiftproof.studies import LISTED, SCALES, names_by_field
    from shiftproof.tables import FORMATS
    from shiftproof.training import EXPORT_FORMATS
    from shiftproof.training.tracking import TRACKERS

    options: dict[str, Collection[str]] = {
        **names_by_field(),
        "dataset": SOURCES,
        "export_format": EXPORT_FORMATS,
        "format": FORMATS,
        "model": MODELS,
        "rule": RULES,
        "scale": SCALES,
        "track": TRACKERS,
    }
    return options, {"kind": LISTED, "name": SOURCES}


def _study_files() -> dict[str, Any]:
    """Return what completes the name or the file of a study, in shtab's form; tcsh completes files alone."""
    from shiftproof.studies import named_studies

    names, function = " ".join(named_studies()), "_shiftproof_study_files"
    return {
        "preamble": {
            "bash": f'{function}() {{\n  compgen -W "{names}" -- "$1"\n  compgen -f -- "$1"\n}}',
            "zsh": f"{function}() {{\n  _alternative 'names:study:({names})' 'files:file:_files'\n}}",
        },
        "bash": function,
        "zsh": function,
        "tcsh": "f",
    }


def _actions(command: Command) -> Iterator[argparse.Action]:
    """Yield the arguments of a command and of its subcommands."""
    for action in command.complete()._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from _actions(one)
