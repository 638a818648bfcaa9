"""The results of a study that lie in a store, of which only rows are kept in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from shiftproof.base.files import DamagedFileError
from shiftproof.studies.index import Index, Stamp
from shiftproof.studies.plan import Grid, Plan
from shiftproof.studies.results import Result, Results, Row, row_key, run_row
from shiftproof.training import RESULT_FILE, RESULT_REMEDY, RunSpec, read_result

UNSEEN_SECONDS = 2
"""Reading that takes longer shows its progress."""
_MISFITS = (ArithmeticError, LookupError, ValueError)
"""What a result raises that is of other domains than its spec."""


class StoredResults(Results):
    """Reads results when they are needed and drops them: evaluations of many runs are more than memory holds.

    Rows of results that did not change come from the store's index.

    Args:
        plan: the runs that there should be.
        root: the store's folder.

    Raises:
        DamagedFileError: a result cannot be read.
    """

    def __init__(self, plan: Plan, root: Path) -> None:
        super().__init__(plan, {})
        self._folder = root / "runs"
        self._index = Index(root)
        self._new: list[tuple[list[Stamp], Row]] = []
        try:
            for grid in plan:
                for spec in tqdm(grid.runs, f"reading {grid.dataset}", unit="run", delay=UNSEEN_SECONDS, leave=False):
                    self.row(grid, spec)
        finally:  # what was read need not be read again
            self._index.append(self._new)

    def _read(self, name: str) -> Result | None:
        return read_result(self._folder / name)

    def _make_row(self, grid: Grid, spec: RunSpec) -> Row | None:
        names = [one.name for one in (spec, *self._pair_specs(grid, spec).values())]
        row = self._index.row(row_key(spec), names)
        if row is None:
            stamps = self._index.stamps(names)  # before they are read: what changes meanwhile counts as changed
            try:
                row = super()._make_row(grid, spec)
            except _MISFITS as error:
                raise self._damaged([spec, *self._pair_specs(grid, spec).values()], error) from error
            if row is not None:
                self._new.append((stamps, row))
        return row

    def _damaged(self, specs: Sequence[RunSpec], error: Exception) -> Exception:
        """Return the error of the first of these runs whose result is none of its spec."""
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
