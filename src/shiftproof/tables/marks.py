"""Marks for the best entries of a column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from shiftproof.protocol import Unit
from shiftproof.tables.table import Cell

Mark = Literal["best", "second"]


def marks(cells: Sequence[Cell], unit: Unit) -> list[Mark | None]:
    """Mark the best and the second best of the cells that finished every trial, if there are several."""
    means = [cell.score.mean if cell.score and cell.trials == cell.planned else None for cell in cells]
    finished = [mean for mean in means if mean is not None]
    best = sorted(set(finished), reverse=unit.sign > 0)[:2] if len(finished) > 1 else []
    found: dict[float | None, Mark] = dict(zip(best, ("best", "second"), strict=False))
    return [found.get(mean) for mean in means]
