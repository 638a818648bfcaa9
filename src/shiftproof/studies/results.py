"""The results of a study so far: the rows of its runs, and the run behind every number of its tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

from shiftproof.base.method import Method
from shiftproof.base.plugins import naming_plugins
from shiftproof.protocol import BUILT_IN_RULES, PROTOCOLS, RULES, Record, RuleError, select
from shiftproof.studies.plan import Grid, Plan
from shiftproof.training import RunSpec

Row = dict[str, Any]
"""A line of `runs.jsonl`."""

Result = dict[str, Any]
"""A run's `result.json`."""

RowKey = tuple[str, str, int]
"""The place of a run in a study: name, variant and setting. Identical runs at several places share a name."""


@dataclass(frozen=True)
class Outcome:
    """The result of one method, target and trial: the run with the chosen setting, if any run finished.

    Attributes:
        method: the method that was trained.
        targets: the domains left out together.
        trial: the trial seed.
        status: "finished" if the rule can choose a finished run, else "failed" if a run failed, else "missing".
        row: the chosen run's line of `runs.jsonl`; None without a chosen run.
        selected: its selected checkpoint: step, validation, accuracy and class_mean; None without a chosen run.
        read_metrics: reads its evaluations.
    """

    method: Method
    targets: tuple[str, ...]
    trial: int
    status: Literal["finished", "failed", "missing"]
    row: Row | None
    selected: dict[str, Any] | None
    read_metrics: Callable[[], list[Record]]

    @cached_property
    def metrics(self) -> list[Record]:
        """The evaluations of the chosen run."""
        return self.read_metrics()

    @property
    def target(self) -> str:
        """The table's column."""
        return "+".join(self.targets)


class Results:
    """The results of a study so far.

    Args:
        plan: the planned runs.
        found: the results of the runs that have ended, by the run's name.
        shown: the measure that tables show; None for the one that selects.
    """

    def __init__(self, plan: Plan, found: Mapping[str, Result], shown: str | None = None) -> None:
        self.plan = plan
        self._shown = shown
        self._found = found
        self._rows: dict[RowKey, Row | None] = {}
        self._by_method: dict[str, dict[Method, list[Row]]] = {}
        self._chosen: dict[tuple[str, Method, tuple[str, ...], int, str], Outcome] = {}

    def shown(self, grid: Grid) -> str:
        """Return the measure that the tables of a data set show."""
        return self._shown or self.plan.metric_of(grid)

    def result(self, spec: RunSpec) -> Result | None:
        """Return the result of a run, None if it has not ended."""
        return self._read(spec.name)

    def _read(self, name: str) -> Result | None:
        return self._found.get(name)

    @cached_property
    def rows(self) -> list[Row]:
        """The lines of `runs.jsonl`, in the plan's order."""
        return [row for grid in self.plan for spec in grid.runs if (row := self.row(grid, spec)) is not None]

    def row(self, grid: Grid, spec: RunSpec) -> Row | None:
        """Return the line of a run, None if it has not ended."""
        key = row_key(spec)
        if key not in self._rows:
            self._rows[key] = self._make_row(grid, spec)
        return self._rows[key]

    def _make_row(self, grid: Grid, spec: RunSpec) -> Row | None:
        result = self.result(spec)
        if result is None:
            return None
        try:
            return run_row(spec, result, self._pairs(grid, spec), self.plan.rules, self.plan.metric_of(grid))
        except RuleError as error:
            raise RuleError(f"{error}, for {spec.label()}") from error

    def rows_by_method(self, grid: Grid) -> dict[Method, list[Row]]:
        """Return the rows of a data set by method, in the plan's order."""
        if grid.dataset not in self._by_method:
            rows: dict[Method, list[Row]] = {}
            for spec in grid.runs:
                if (row := self.row(grid, spec)) is not None:
                    rows.setdefault(spec.method, []).append(row)
            self._by_method[grid.dataset] = rows
        return self._by_method[grid.dataset]

    def _pair_specs(self, grid: Grid, spec: RunSpec) -> dict[str, RunSpec]:
        """Return the runs that leave out a run's target and one other domain, by the name of the other domain."""
        if len(spec.targets) > 1 or not spec.score_targets:
            return {}
        pairs = {}
        for other in grid.domains:
            targets = tuple(name for name in grid.domains if name in (*spec.targets, other))
            for pair in grid.settings.get((spec.method, targets, spec.trial_seed), []):
                if pair.hparam_seed == spec.hparam_seed and other not in spec.targets:
                    pairs[other] = pair
        return pairs

    def _pairs(self, grid: Grid, spec: RunSpec) -> dict[str, list[Record]]:
        """Return the evaluations of the runs of `_pair_specs` that finished."""
        results = {other: self.result(pair) for other, pair in self._pair_specs(grid, spec).items()}
        return {
            other: result["metrics"]
            for other, result in results.items()
            if result is not None and result["status"] == "finished"
        }

    def outcomes(self, grid: Grid, rule: str, method: Method, targets: tuple[str, ...] | None = None) -> list[Outcome]:
        """Return the outcomes of a method, on one set of targets or on all, by target and trial.

        Args:
            grid: one of the plan's grids.
            rule: the rule that selects steps and settings.
            method: one of the grid's.
            targets: one of the grid's columns; None for all.
        """
        columns = grid.columns if targets is None else [targets]
        return [self.outcome(grid, rule, method, column, trial) for column in columns for trial in range(grid.trials)]

    def outcome(self, grid: Grid, rule: str, method: Method, targets: tuple[str, ...], trial: int) -> Outcome:
        """Return the outcome of one method, target and trial."""
        key = (grid.dataset, method, targets, trial, rule)
        if key not in self._chosen:
            with naming_plugins(self._plugins()):
                self._chosen[key] = self._choose(grid, rule, method, targets, trial)
        return self._chosen[key]

    def _plugins(self) -> Iterable[str]:
        """Return what to import for the selection rules of the plan; read for errors only."""
        return self.plan.plugins

    def _choose(self, grid: Grid, rule: str, method: Method, targets: tuple[str, ...], trial: int) -> Outcome:
        rows = self._settings(grid, method, targets, trial)
        candidates = rows
        if self.plan.tune == "shared":
            setting = self._shared_setting(grid, rule, method)
            candidates = [row for row in rows if row["hparam_seed"] == setting]
        row = choose_setting(candidates, rule, self.plan.protocol)
        if row is None:
            failed = any(row["status"] == "failed" for row in rows)
            return Outcome(method, targets, trial, "failed" if failed else "missing", None, None, list)
        return Outcome(method, targets, trial, "finished", row, row["selection"][rule], partial(self._metrics, row))

    def _metrics(self, row: Row) -> list[Record]:
        result = self._read(row["run"])
        if result is None:
            raise FileNotFoundError(f"the result of run {row['run']} was deleted while it was read")
        metrics: list[Record] = result["metrics"]
        return metrics

    def _settings(self, grid: Grid, method: Method, targets: tuple[str, ...], trial: int) -> list[Row]:
        specs = grid.settings.get((method, targets, trial), [])
        return [row for spec in specs if (row := self.row(grid, spec)) is not None]

    def _shared_setting(self, grid: Grid, rule: str, method: Method) -> int | None:
        """Return the setting with the highest mean validation over all targets and trials.

        Only the settings with results in the most cells compete.
        """
        cells = [
            {row["hparam_seed"]: row for row in self._settings(grid, method, column, trial) if _selectable(row, rule)}
            for column in grid.columns
            for trial in range(grid.trials)
        ]
        counts = {setting: sum(setting in cell for cell in cells) for setting in range(grid.hparam_trials)}
        most = max(counts.values())
        if most == 0:
            return None
        if not _validates((row for cell in cells for row in cell.values()), rule):
            return min(setting for setting, count in counts.items() if count == most)
        means = [
            {
                "hparam_seed": setting,
                "validation": sum(_validation(cell[setting], rule) for cell in cells if setting in cell) / most,
            }
            for setting, count in counts.items()
            if count == most
        ]
        return int(_best(means, [entry["validation"] for entry in means], self.plan.protocol)["hparam_seed"])

    @property
    def versions(self) -> list[str]:
        """The combinations of library versions that the runs were trained with."""
        return sorted(
            {
                ", ".join(f"{name} {version}" for name, version in row["versions"].items())
                for row in self.rows
                if row["versions"]  # a run that broke has none
            }
        )


def run_row(
    spec: RunSpec,
    result: Result,
    pairs: Mapping[str, Sequence[Record]] | None = None,
    rules: Sequence[str] = BUILT_IN_RULES,
    metric: str | None = None,
) -> Row:
    """Return the line of a run in `runs.jsonl`.

    Args:
        spec: the run.
        result: its result.
        pairs: evaluations of the runs that leave out its target and one other domain, by the other domain's name.
        rules: the selection rules to score it by; those that are unknown here are left out.
        metric: the measure that selects; None for the run's own.
    """
    finished = result["status"] == "finished"
    protocol = PROTOCOLS[spec.protocol]
    metric = metric or spec.selecting_metric
    return {
        "run": spec.name,
        "dataset": spec.dataset,
        "algorithm": spec.algorithm,
        "optimizer": spec.optimizer,
        "annealer": spec.annealer,
        "variant": spec.variant,
        "averaging": spec.averaging,
        "target": "+".join(spec.targets),
        "trial_seed": spec.trial_seed,
        "hparam_seed": spec.hparam_seed,
        "hparams": {} if spec.members else spec.hparams,  # members may differ in theirs
        "status": result["status"],
        "error": result["error"],
        "retry": result.get("retry", False),
        "seconds": sum(result["seconds"].values()),
        "shared": result.get("shared", 1),  # runs that the time of the training was divided among
        "passes": result["passes"],
        "annealing": result.get("annealer"),
        "steps": result.get("steps", spec.steps),  # SWAD may stop early
        "protocol": spec.protocol,
        "results_version": spec.results_version,
        "versions": result.get("versions"),
        "metric": metric,
        "constant": result.get("constant"),  # which runs made before it lack
        "selection": {
            rule: select(rule, result["metrics"], spec.targets, protocol, pairs, metric) if finished else None
            for rule in rules
            if rule in RULES
        },
    }


def row_key(place: RunSpec | Row) -> RowKey:
    """Return the place of a run, or of its row."""
    if isinstance(place, RunSpec):
        return place.name, place.variant, place.hparam_seed
    return place["run"], place["variant"], place["hparam_seed"]


def choose_setting(rows: Sequence[Row], rule: str, protocol: str = "shiftproof") -> Row | None:
    """Return the run with the highest validation score among the settings of one trial; None if none can be chosen.

    The dialect decides ties. A rule without validation scores takes the finished setting with the lowest number.
    """
    candidates = [row for row in rows if _selectable(row, rule)]
    if not candidates:
        return None
    if not _validates(candidates, rule):
        return min(candidates, key=lambda row: int(row["hparam_seed"]))
    return _best(candidates, [_validation(row, rule) for row in candidates], protocol)


def _selectable(row: Row, rule: str) -> bool:
    if row["status"] == "finished" and rule not in row["selection"]:
        raise RULES.error(rule)
    return row["status"] == "finished" and row["selection"][rule] is not None


def _validates(rows: Iterable[Row], rule: str) -> bool:
    return any(row["selection"][rule]["validation"] is not None for row in rows)


def _validation(row: Row, rule: str) -> float:
    validation = row["selection"][rule]["validation"]
    return -math.inf if validation is None else validation


def _best(entries: Sequence[Row], validations: Sequence[float], protocol: str) -> Row:
    sign = 1 if PROTOCOLS[protocol].highest_setting_wins_ties else -1
    return max(
        zip(entries, validations, strict=True), key=lambda entry: (entry[1], sign * int(entry[0]["hparam_seed"]))
    )[0]
