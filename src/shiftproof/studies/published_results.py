"""The results that papers published, for comparison with measured ones."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from shiftproof.base.registry import UnknownNameError

SECONDS = "seconds"
"""Name of the data set in the entries of published training times."""
OVERALL = "mean"
"""Name of the data set in the entries of published means over data sets."""


class PublishedKey(NamedTuple):
    """The place of a figure in a published table."""

    algorithm: str
    optimizer: str
    annealer: str
    dataset: str


@dataclass(frozen=True)
class Published:
    """A published figure and what it depends on.

    Attributes:
        value: accuracy in [0, 1], or the training time in seconds for the data set `SECONDS`.
        error: standard error in the same unit; None if none was given.
        source: where it was published.
        selection: the rule that chose the checkpoint, as published.
        tuning: how its hyperparameters were chosen.
        note: other differences from a fair comparison.
        released_form: whether it belongs to the released form of GENIE and not to the method that was asked for.
    """

    value: float
    error: float | None
    source: str
    selection: str
    tuning: str
    note: str
    released_form: bool = False


def published(table: str) -> dict[PublishedKey, Published]:
    """Return a published table.

    Raises:
        UnknownNameError: the table is unknown.
    """
    tables = _tables()
    if table not in tables:
        raise UnknownNameError("published table", table, list(tables))
    return dict(tables[table])


def published_for(table: str, algorithm: str, optimizer: str, annealer: str, dataset: str) -> Published | None:
    """Return the published figure to compare a measured one with, if there is one.

    For GENIE in the paper's form it is that of the released form, which produced the published tables, and is marked.

    Raises:
        UnknownNameError: the table is unknown.
    """
    figures = published(table)
    key = PublishedKey(algorithm, optimizer, annealer, dataset)
    if key in figures or optimizer != "genie":
        return figures.get(key)
    released = figures.get(key._replace(optimizer="genie_released"))
    return released and replace(released, released_form=True)


@cache
def _tables() -> dict[str, dict[PublishedKey, Published]]:
    tables: dict[str, dict[PublishedKey, Published]] = {}
    with files("shiftproof.studies").joinpath("published_results.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            table = tables.setdefault(row["table"], {})
            table[PublishedKey(row["algorithm"], row["optimizer"], row["annealer"], row["dataset"])] = _figure(row)
    return tables


def _figure(row: dict[str, str]) -> Published:
    unit = 1 if row["dataset"] == SECONDS else 100
    return Published(
        value=float(row["value"]) / unit,
        error=float(row["error"]) / unit if row["error"] else None,
        source=row["source"],
        selection=row["selection"],
        tuning=row["tuning"],
        note=row["note"],
    )
