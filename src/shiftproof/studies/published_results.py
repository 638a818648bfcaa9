"""The figures of the papers, to stand beside measured ones."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from shiftproof.base.registry import UnknownNameError

SECONDS = "seconds"
"""The data set of a published training time."""
OVERALL = "mean"
"""The data set of a published mean over data sets."""


class PublishedKey(NamedTuple):
    """The cell of a published table."""

    algorithm: str
    optimizer: str
    annealer: str
    dataset: str


@dataclass(frozen=True)
class Published:
    """A published figure and what it depends on.

    Attributes:
        value: accuracy in [0, 1]; of the data set `SECONDS`, the training time.
        error: standard error, in the same unit; None where none was given.
        source: where it was published.
        selection: the rule that chose the checkpoint, as published.
        tuning: how its hyperparameters were chosen.
        note: what else sets it apart from a fair comparison.
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
        UnknownNameError: there is no such table.
    """
    tables = _tables()
    if table not in tables:
        raise UnknownNameError("published table", table, list(tables))
    return dict(tables[table])


def published_for(table: str, algorithm: str, optimizer: str, annealer: str, dataset: str) -> Published | None:
    """Return the published figure that a measured one stands beside, if there is one.

    Beside GENIE in its own form stands, marked, that of the released form, which produced the published tables.

    Raises:
        UnknownNameError: there is no such table.
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
