"""What a store holds of a study: the rows of its runs, and the run behind every number of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shiftproof.studies import Method, Store, Study
from shiftproof.studies.selection import Record
from shiftproof.studies.store import run_row
from shiftproof.studies.tables import Row, choose_setting
from shiftproof.training import RunSpec

RULE = "training_domain"
"""The selection rule of the report: the table's own."""


@dataclass(frozen=True)
class Outcome:
    """What became of one method, target and trial: the run with the chosen setting, if any run finished.

    Attributes:
        method: what was trained.
        targets: the domains left out together.
        trial: the trial seed.
        status: whether a run finished, or else whether one failed.
        row: the chosen run's line of `runs.jsonl`, None if no run finished.
        selected: its selected checkpoint: step, validation, accuracy and class_mean; None if no run finished.
        metrics: its evaluations, none if no run finished.
    """

    method: Method
    targets: tuple[str, ...]
    trial: int
    status: Literal["finished", "failed", "missing"]
    row: Row | None
    selected: dict[str, Any] | None
    metrics: list[Record]

    @property
    def target(self) -> str:
        """The table's column."""
        return "+".join(self.targets)


@dataclass(frozen=True)
class Outcomes:
    """All that a store holds of a study.

    Attributes:
        rows: the lines of `runs.jsonl`.
        chosen: one outcome per method, target and trial, in the table's order.
        versions: the sets of library versions that the runs were trained with.
    """

    rows: list[Row]
    chosen: list[Outcome]
    versions: list[str]

    def of(self, method: Method, targets: tuple[str, ...] | None = None) -> list[Outcome]:
        """Return the outcomes of a method, on one set of targets or on all, by target and trial."""
        return [one for one in self.chosen if one.method == method and targets in (None, one.targets)]


def read_outcomes(study: Study, store: Store) -> Outcomes:
    """Read what there is of a study; runs that have not ended are missing.

    Raises:
        DamagedFileError: a result cannot be read.
    """
    results = {spec.name: result for spec in study.runs if (result := store.result(spec)) is not None}

    def rows(specs: Sequence[RunSpec]) -> list[Row]:
        return [run_row(spec, results[spec.name]) for spec in specs if spec.name in results]

    def outcome(method: Method, targets: tuple[str, ...], trial: int) -> Outcome:
        found = rows([study.spec(method, targets, trial, setting) for setting in range(study.hparam_trials)])
        row = choose_setting(found, RULE)
        if row is None:
            return Outcome(method, targets, trial, "failed" if found else "missing", None, None, [])
        return Outcome(method, targets, trial, "finished", row, row["selection"][RULE], results[row["run"]]["metrics"])

    chosen = [
        outcome(method, targets, trial)
        for method in study.methods
        for targets in study.target_sets
        for trial in range(study.trials)
    ]
    versions = {
        ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        for result in results.values()
        if "versions" in result  # a run that broke has none
    }
    return Outcomes(rows(study.runs), chosen, sorted(versions))
