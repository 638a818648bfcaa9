"""Marks for the best entries of a column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from shiftproof.tables.table import Cell

Mark = Literal["best", "second"]


def marks(cells: Sequence[Cell]) -> list[Mark | None]:
    """Mark the highest and the second highest of the cells that finished every trial, if there are several."""
    means = [cell.accuracy.mean if cell.accuracy and cell.trials == cell.planned else None for cell in cells]
    finished = [mean for mean in means if mean is not None]
    highest = sorted(set(finished), reverse=True)[:2] if len(finished) > 1 else []
    found: dict[float | None, Mark] = dict(zip(highest, ("best", "second"), strict=False))
    return [found.get(mean) for mean in means]
