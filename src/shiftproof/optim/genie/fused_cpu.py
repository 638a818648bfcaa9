from __future__ import annotations
from collections.abc import Sequence
from shiftproof.optim.genie.rule import Begun, Options, Row


def obstacle(row: Row) -> str | None:
    return "no"


def begin(rows: Sequence[Row], options: Options) -> Begun:
    raise NotImplementedError


def description() -> str:
    return ""
