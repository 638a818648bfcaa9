"""The results of a study in a store, keeping only rows in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from shiftproof.base.files import DamagedFileError
from shiftproof.base.plugins import FOLDER, PluginError, is_of_a_script, kept_as, plugin_of
from shiftproof.protocol import RULES, MeasureError, RuleError
from shiftproof.studies.added_measure import add_measure
from shiftproof.studies.index import Index, Stamp
from shiftproof.studies.plan import Grid, Plan
from shiftproof.studies.results import Result, Results, Row, RowKey, row_key, run_row
from shiftproof.training import RESULT_FILE, RESULT_REMEDY, RunSpec, read_result

UNSEEN_SECONDS = 2
"""Time in seconds after which reading shows its progress."""
_MISFITS = (ArithmeticError, LookupError, ValueError)
"""Errors that a result raises if it does not match its spec, with other domains for example."""


class StoredResults(Results):
    """Results that are read when needed and then dropped: the evaluations of many runs would not fit into memory.

    Rows of results that did not change come from the store's index.

    Args:
        plan: the planned runs.
        root: the store's folder.
        shown: the measure that tables show; None for the one that selects.

    Raises:
        DamagedFileError: a result cannot be read.
    """

    def __init__(self, plan: Plan, root: Path, shown: str | None = None) -> None:
        super().__init__(plan, {}, shown)
        self._folder = root / "runs"
        self._root, self._recorded = root, dict[RowKey, Row]()
        # another version of a script's own rule could not be told apart
        used = not any(is_of_a_script(RULES, rule) for rule in plan.rules)
        self._index = Index(root, {rule: _digest(rule) for rule in plan.rules}, used=used)
        if any(rule not in RULES for rule in plan.rules):
            self._recorded = _recorded(root)
        self._added = set[str]()  # names of runs whose results got a measure that they had not recorded
        self._new: list[tuple[list[Stamp], Row]] = []
        try:
            for grid in plan:
                for spec in tqdm(grid.runs, f"reading {grid.dataset}", unit="run", delay=UNSEEN_SECONDS, leave=False):
                    self.row(grid, spec)
        finally:  # after an error too, so that the next reader need not start over
            self._index.append(self._new)

    def _read(self, name: str) -> Result | None:
        result = read_result(self._folder / name)
        if result is not None and self._shown is not None and add_measure(result, self._shown, self._folder / name):
            self._added.add(name)
        return result

    def _make_row(self, grid: Grid, spec: RunSpec) -> Row | None:
        names = [one.name for one in (spec, *self._pair_specs(grid, spec).values())]
        held = row = self._index.row(row_key(spec), self.plan.metric_of(grid), names)
        if row is None or not self._shows(row):
            stamps = self._index.stamps(names)  # before reading, so that changes during it are noticed later
            try:
                row = super()._make_row(grid, spec)
            except (PluginError, RuleError, MeasureError):
                raise
            except _MISFITS as error:
                raise self._damaged([spec, *self._pair_specs(grid, spec).values()], error) from error
            if row is not None:
                if held is None and self._added.isdisjoint(names):  # an added measure may mean something else tomorrow
                    self._new.append((stamps, row))
                row["selection"].update(self._recorded_choices(row))
        return row

    def _shows(self, row: Row) -> bool:
        """Return whether a row has the measure that tables show."""
        return all(
            chosen is None or self._shown is None or self._shown in chosen["measures"]
            for chosen in row["selection"].values()
        )

    def _recorded_choices(self, row: Row) -> Row:
        """Return what rules that are unknown here chose for a row when its line of `runs.jsonl` was written."""
        held = self._recorded.get(row_key(row), {})
        if held.get("versions") != row["versions"] or held.get("status") != row["status"]:
            return {}
        if held.get("metric", "accuracy") != row["metric"]:
            return {}
        unknown = [rule for rule in self.plan.rules if rule not in RULES and rule in held["selection"]]
        choices = {rule: held["selection"][rule] for rule in unknown}
        return {  # accuracy was the only measure of earlier versions
            rule: chosen and {"measures": {"accuracy": chosen.get("accuracy")}, **chosen}
            for rule, chosen in choices.items()
        }

    def _plugins(self) -> Iterator[str]:
        for name, digest in self.plan.plugins.items():
            kept = self._root / FOLDER / kept_as(name, digest)
            yield str(kept) if kept.exists() else name

    def _damaged(self, specs: Sequence[RunSpec], error: Exception) -> Exception:
        """Return an error about the first of these runs whose result does not match its spec."""
        if isinstance(error, DamagedFileError):
            return error
        for spec in specs:
            try:
                if (result := self._read(spec.name)) is not None:
                    run_row(spec, result)
            except _MISFITS as own:
                reason = f"{type(own).__name__}: {own}"
                return DamagedFileError(self._folder / spec.name / RESULT_FILE, reason, RESULT_REMEDY)
        return error


def _digest(rule: str) -> str | None:
    """Return the digest of the plug-in that a selection rule is of; empty for a built-in one, None if it is unknown."""
    if rule not in RULES:
        return None
    plugin = plugin_of(RULES, rule)
    return "" if plugin is None else plugin.digest


def _recorded(root: Path) -> dict[RowKey, Row]:
    """Return the rows of a store's `runs.jsonl`; none if it cannot be read."""
    try:
        lines = (root / "runs.jsonl").read_text(encoding="utf-8").splitlines()
        return {row_key(row): row for row in map(json.loads, lines)}
    except (OSError, ValueError, TypeError, LookupError):
        return {}
