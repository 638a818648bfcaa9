"""The parser of the command line: every command with its options."""

from __future__ import annotations

from shiftproof import __version__
from shiftproof.cli import bench, data, encode, figures, listing, models, runs, study
from shiftproof.cli.command import Command
from shiftproof.cli.completion import PrintCompletion


def make_parser() -> Command:
    """Return the parser of `shiftproof`; call the ``command`` of the options it parsed with these options."""
    return Command(
        prog="shiftproof",
        description="Train models that hold up on domains they have never seen, and compare training methods fairly.",
        add=_add,
    )


def _add(parser: Command) -> None:
    parser.add_argument("--version", action="version", version=f"shiftproof {__version__}")
    parser.add_argument(
        "--print-completion",
        action=PrintCompletion,
        metavar="SHELL",
        help="print a script that completes commands and options in a shell: bash, zsh or tcsh",
    )
    commands = parser.add_commands("command")
    for part in (runs, models, study, data, encode, listing, bench, figures):
        part.add_commands(commands)
