"""The commands that measure what runs cost: bench data, optimizer."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiftproof.cli.fields import BATCH_SIZE, add_fields, study_of
from shiftproof.cli.options import add_device, add_option, cores, file

if TYPE_CHECKING:
    from shiftproof.cli.command import Command, Commands

_ONE_METHOD = {"optimizers": ("adam",)}


def add_commands(commands: Commands) -> None:
    """Add the commands of this file."""
    commands.add_parser("bench", help="measure what runs cost in time and memory", add=_add_bench)


def _add_bench(parser: Command) -> None:
    commands = parser.add_commands("what")
    commands.add_parser("data", help="time data loading against the usual way", add=_add_data, run=_data)
    commands.add_parser(
        "optimizer",
        help="time the step of every optimizer against fused AdamW",
        add=_add_optimizer,
        run=_optimizer,
    )


def _add_data(parser: Command) -> None:
    defaults = {"datasets": ("folder",), "model": "resnet18", "fixed": {BATCH_SIZE: 32}}
    add_fields(
        parser, "bench data", defaults={**_ONE_METHOD, **defaults, "trials": 1}, required=("data_dir", "targets")
    )
    add_option(parser, "--steps", type=int, default=20, metavar="N", help="steps timed per round")
    _add_output(parser)


def _add_optimizer(parser: Command) -> None:
    add_option(parser, "--model", default="resnet18", metavar="NAME", help="model whose parameters are stepped")
    parser.add_argument("--elements", type=int, metavar="N", help="step one tensor of N elements instead of a model")
    add_device(parser)
    add_option(parser, "--rounds", type=int, default=15, metavar="N", help="measurements of each")
    _add_output(parser)


def _add_output(parser: Command) -> None:
    parser.add_argument("--output", type=file, metavar="FILE", help="file to write all numbers to, as JSON")


def _shown(result: dict[str, Any], table: str, output: Path | None) -> int:
    """Print the table of a benchmark, and write its numbers to the file if one is given."""
    from shiftproof.base.files import write_json

    print(table)
    if output is not None:
        write_json(output, result)
    return 0


def _data(options: argparse.Namespace) -> int:
    from shiftproof.bench import bench_data, data_table

    result = bench_data(study_of(options), workers=cores(), steps=options.steps)
    return _shown(result, data_table(result), options.output)


def _optimizer(options: argparse.Namespace) -> int:
    from shiftproof.bench import bench_optimizer, optimizer_table

    result = bench_optimizer(options.model, elements=options.elements, device=options.device, rounds=options.rounds)
    return _shown(result, optimizer_table(result), options.output)
