"""The runs of a data set, one entry each."""

from __future__ import annotations

from dataclasses import dataclass

from shiftproof.base.hparams import Value
from shiftproof.report.settings import equal_in_all
from shiftproof.studies import Grid, Method, Results, Row
from shiftproof.training import RunSpec


@dataclass(frozen=True)
class RunEntry:
    """A run in the list of runs.

    Attributes:
        spec: the run's spec.
        methods: the rows of the table that use it; several if their difference does not affect the run.
        settings: the numbers of its setting; several if their values are equal.
        row: its line of `runs.jsonl`; None if it has not ended.
        hparams: its hyperparameters, without those that are equal in all runs.
    """

    spec: RunSpec
    methods: list[Method]
    settings: list[int]
    row: Row | None
    hparams: dict[str, Value]

    @property
    def status(self) -> str:
        """How it ended: "finished" or "failed"; "missing" if it has not."""
        return "missing" if self.row is None else str(self.row["status"])


@dataclass(frozen=True)
class RunList:
    """The runs of a data set.

    Attributes:
        entries: every run once, in the order of the plan.
        same: the hyperparameters that are equal in all of them.
    """

    entries: list[RunEntry]
    same: dict[str, Value]


def run_list(results: Results, grid: Grid) -> RunList:
    """Return the runs of a data set."""
    places: dict[str, list[RunSpec]] = {}
    for spec in grid.runs:
        places.setdefault(spec.name, []).append(spec)
    same = equal_in_all([specs[0].hparams for specs in places.values()])
    entries = [
        RunEntry(
            specs[0],
            list(dict.fromkeys(spec.method for spec in specs)),
            sorted({spec.hparam_seed for spec in specs}),
            results.row(grid, specs[0]),
            {name: value for name, value in specs[0].hparams.items() if name not in same and not specs[0].members},
        )
        for specs in places.values()
    ]
    return RunList(entries, same)
