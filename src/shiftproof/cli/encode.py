"""The command that turns pictures into features: encode."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from shiftproof.cli.fields import add_fields, study_of
from shiftproof.cli.options import folder

if TYPE_CHECKING:
    from shiftproof.cli.command import Command, Commands


def add_commands(commands: Commands) -> None:
    """Add the commands of this file."""
    commands.add_parser(
        "encode",
        help="write the features of a model, to compare methods on them",
        description="Write the features that a model computes of a data set's pictures. "
        "`compare --dataset features --data-dir SET` compares methods on them, in seconds.",
        add=_add_encode,
        run=_encode,
    )


def _add_encode(parser: Command) -> None:
    add_fields(parser, "encode", required=("datasets", "model"))
    parser.add_argument(
        "--output", type=folder, required=True, metavar="SET", help="folder to write, which must not exist"
    )


def _encode(options: argparse.Namespace) -> int:
    from shiftproof.studies import encode

    try:
        written = encode(study_of(options), options.output)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; nothing was written") from None
    rows, [size] = sum(map(len, written.domains)), written.input_shape
    print(f"{written.name}: {rows} rows of {size} features in {len(written.domains)} domains")
    print(f"written: {options.output}")
    return 0
