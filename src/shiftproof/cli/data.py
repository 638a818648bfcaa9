"""The commands of data sets: data get, check."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from shiftproof.cli.fields import add_table_fields, given_table
from shiftproof.cli.options import add_option, folder

if TYPE_CHECKING:
    from shiftproof.cli.command import Command, Commands


def add_commands(commands: Commands) -> None:
    """Add the commands of this file."""
    commands.add_parser("data", help="download data sets, or check those on disk", add=_add_data)


def _add_data(parser: Command) -> None:
    commands = parser.add_commands("what")
    commands.add_parser(
        "get", help="download a published data set, continuing an interrupted download", add=_add_get, run=_get
    )
    commands.add_parser(
        "check", help="count images, and find unreadable and duplicate ones", add=_add_check, run=_check
    )


def _add_get(parser: Command) -> None:
    parser.add_argument(
        "name",
        metavar="NAME",
        help="data set: pacs, vlcs, officehome, terraincognita, domainnet, rotated_mnist or colored_mnist",
    )
    add_option(parser, "--output", type=folder, default=Path("data"), metavar="DIR", help="folder of data sets")


def _add_check(parser: Command) -> None:
    parser.add_argument(
        "folder",
        type=folder,
        metavar="DIR",
        help="folder of <domain>/<class>/<image> or of MNIST, a table, or a set of features",
    )
    add_option(
        parser, "--dataset", none="the one that the folder is named after", metavar="NAME",
        help="published data set to compare with, as `data get` names it",
    )  # fmt: skip
    add_table_fields(parser)


def _get(options: argparse.Namespace) -> int:
    from shiftproof.data.downloads import SOURCES, get_dataset

    print(SOURCES[options.name].text(), flush=True)
    obtained = get_dataset(options.name, options.output)
    print(obtained.text())
    return 1 if obtained.differences else 0


def _check(options: argparse.Namespace) -> int:
    from shiftproof.data import check_data, check_features, check_table, is_feature_set

    if options.dataset is not None and (options.folder.is_file() or is_feature_set(options.folder)):
        raise ValueError("--dataset is of folders of images, and of nothing else")
    if is_feature_set(options.folder):
        print(check_features(options.folder).text())
        return 0
    if options.folder.is_file():
        print(check_table(given_table(options, options.folder)).text())
        return 0
    checked = check_data(options.folder, options.dataset)
    print(checked.text())
    return 0 if checked.ok else 1
