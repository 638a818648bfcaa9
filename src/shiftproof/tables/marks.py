"""Marks for the entries of a column that the trials show to be the best."""

from __future__ import annotations

from collections.abc import Sequence

from shiftproof.protocol import Unit
from shiftproof.tables.statistics import paired_difference
from shiftproof.tables.table import Cell

MARK_NOTE = "Bold: the best of a column, if the 95 % interval of its paired difference from every other excludes 0."
"""What bold means in every table."""


def marks(cells: Sequence[Cell], unit: Unit) -> list[bool]:
    """Mark the best of the cells that finished every trial, if it is told apart from every other cell with a score.

    It is if the 95 % interval of the difference, paired by trial, excludes 0. One trial has no interval, so that
    nothing is marked then.
    """
    scored = [cell for cell in cells if cell.score]
    finished = [cell for cell in scored if cell.trials == cell.planned]
    best = max(finished, key=lambda cell: unit.sign * _mean(cell), default=None)
    if best is None or len(scored) == 1 or not all(_better(best, cell, unit) for cell in scored if cell is not best):
        return [False] * len(cells)
    return [cell is best for cell in cells]


def _mean(cell: Cell) -> float:
    assert cell.score is not None  # noqa: S101  (asked before)
    return cell.score.mean


def _better(cell: Cell, other: Cell, unit: Unit) -> bool:
    """Return whether the interval of the difference lies on the better side of 0."""
    both = sorted(cell.scores.keys() & other.scores.keys())
    if not both:
        return False
    difference = paired_difference([cell.scores[t] for t in both], [other.scores[t] for t in both])
    return all(bound is not None and unit.sign * bound > 0 for bound in (difference.low, difference.high))
