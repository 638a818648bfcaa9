"""The command that lists what has a name: list."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shiftproof.base.hparams import Hparam
    from shiftproof.cli.command import Command, Commands
    from shiftproof.studies import Listed


def add_commands(commands: Commands) -> None:
    """Add the commands of this file."""
    commands.add_parser(
        "list",
        help="list algorithms, optimizers, data sets and everything else that has a name",
        description="List what has a name: what it is, its hyperparameters and where it comes from.",
        add=_add_list,
        run=_list,
    )


def _add_list(parser: Command) -> None:
    parser.add_argument(
        "kind",
        nargs="?",
        metavar="KIND",
        help="algorithms, optimizers, annealers, datasets, models, rules, trackers or studies; all if left out, or if "
        "a pattern with * or ? stands in its place",
    )
    parser.add_argument(
        "pattern",
        nargs="?",
        metavar="PATTERN",
        help="only names that contain or match it, as in 'genie*'; models then include timm's",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _list(options: argparse.Namespace) -> int:
    from shiftproof.base.plugins import import_plugins
    from shiftproof.studies import list_names

    import_plugins()
    kind, pattern = options.kind, options.pattern
    if pattern is None and kind is not None and ("*" in kind or "?" in kind):
        kind, pattern = None, kind
    found = list_names(kind, pattern)
    details = kind is not None or pattern is not None
    if options.json:
        print(json.dumps({kind: [one.as_json() for one in listed] for kind, listed in found.items()}, indent=1))
        return 0
    parts = []
    for kind, listed in found.items():
        width = max(len(one.name) for one in listed)
        lines = [line for one in listed for line in _lines(one, width, details=details)]
        parts.append("\n".join([f"{kind}{_search(listed) if details else ''}", *lines]))
    print("\n\n".join(parts))
    return 0


def _search(listed: list[Listed]) -> str:
    """Return which search the hyperparameters below are of, if there are any."""
    if not any(one.hparams for one in listed):
        return ""
    start = ", from a random start" if any(one.start for one in listed) else ""
    return f" (with the defaults and ranges of the short search{start})"


def _lines(one: Listed, width: int, *, details: bool) -> Iterator[str]:
    origin = "" if one.origin == "shiftproof" else f"  [{one.origin}]"
    yield f"  {one.name:{width}}  {one.summary}{origin}".rstrip()
    if details:
        for name, hparam in one.hparams.items():
            searched = f"; searched {hparam.range}" if hparam.range else ""
            yield f"  {'':{width}}    {name}: {hparam.default}{searched}{_elsewhere(hparam)}"


def _elsewhere(hparam: Hparam) -> str:
    """Return its defaults in the protocol's dialects that have another."""
    values = dict.fromkeys(hparam.in_dialects.values())
    having = {value: [name for name, own in hparam.in_dialects.items() if own == value] for value in values}
    return "".join(f"; {value} in {', '.join(names)}" for value, names in having.items())
