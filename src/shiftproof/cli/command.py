"""The parser class of every command."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction["Command"]


IMPORT_HELP = "module or file (mine.py) to import first, which adds what the command needs; may be repeated"


class Command(argparse.ArgumentParser):
    """The parser of one command. It adds its options only when used, because a call parses one command of many.

    Every command that runs something takes ``--import``.

    Args:
        add: adds the options or the subcommands.
        run: runs the command on the parsed options and returns the exit status; None for a command with subcommands.
        **how: other arguments of `argparse.ArgumentParser`.
    """

    def __init__(
        self,
        *,
        add: Callable[[Command], None] = lambda command: None,
        run: Callable[[argparse.Namespace], int] | None = None,
        **how: Any,
    ) -> None:
        super().__init__(**how)
        self._add = add
        self._is_complete = False
        self._runs = run is not None
        if run is not None:
            self.set_defaults(command=run)

    def complete(self) -> Command:
        """Add the options, unless that was done before."""
        if not self._is_complete:
            self._is_complete = True
            self._add(self)
            if self._runs and not any(action.dest == "imports" for action in self._actions):
                self.add_argument("--import", dest="imports", action="append", metavar="PLUGIN", help=IMPORT_HELP)
        return self

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse arguments, as argparse does."""
        return super(Command, self.complete()).parse_known_args(args, namespace)

    def add_commands(self, metavar: str) -> Commands:
        """Return the object to add subcommands to."""
        return self.add_subparsers(required=True, metavar=metavar, parser_class=Command)
