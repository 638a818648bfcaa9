"""The store of a study: one folder per run is the only record; `runs.jsonl` and the tables are rebuilt from them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeGuard

from shiftproof.base.files import is_local, locked, write_json, write_json_lines
from shiftproof.base.plugins import import_plugins
from shiftproof.base.registry import UnknownNameError
from shiftproof.protocol import measures_of
from shiftproof.studies.plan import Plan, read_plan, read_spec
from shiftproof.studies.results import Results, run_row
from shiftproof.studies.stored_results import StoredResults
from shiftproof.training import RESULT_FILE, RunSpec, read_result

LOCK_FILE = ".lock"


class StoreBusyError(OSError):
    """Another process is working on the same output."""


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Make a folder if need be, and keep other processes out of it.

    Object stores have no locks, so nothing is kept out of them.

    Raises:
        ValueError: the folder cannot be made or written.
        StoreBusyError: another process has claimed it.
    """
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if is_local(folder):
                held.enter_context(locked(folder / LOCK_FILE))
        except TimeoutError:
            raise StoreBusyError(
                f"another process is working on {folder}; wait for it or choose another output"
            ) from None
        except OSError as error:
            raise ValueError(f"the output {folder} cannot be written: {error.strerror or error}") from error
        yield


@contextmanager
def claim_run(folder: Path) -> Iterator[None]:
    """Make the folder of a run if need be, wait for a process that has claimed it, and keep others out.

    A process that still trains there survived a driver or node that died, and ends soon. The operating system
    releases the lock of a process that dies. Object stores have no locks, so nothing is kept out of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting = f"another process is training the run in {folder}; waiting for it"
    with locked(folder / LOCK_FILE, waiting) if is_local(folder) else nullcontext():
        yield


def has_ended(result: dict[str, Any] | None) -> TypeGuard[dict[str, Any]]:
    """Return whether a run is done: it has a result that is not a failure worth retrying."""
    return result is not None and not result.get("retry")


class Store:
    """The output folder of a study; claim it before writing to it.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, spec: RunSpec) -> Path:
        """Return the folder of a run."""
        return self.root / "runs" / spec.name

    def result(self, spec: RunSpec) -> dict[str, Any] | None:
        """Return the recorded result of a run, or None.

        Raises:
            DamagedFileError: it cannot be read.
        """
        return read_result(self.folder(spec))

    def results(self, plan: Plan, shown: str | None = None) -> Results:
        """Read the results of a study so far, every run once.

        Args:
            plan: the planned runs.
            shown: the measure that tables show; None for the one that selects.

        Raises:
            DamagedFileError: a result cannot be read.
        """
        return StoredResults(plan, self.root, shown)

    def record_failure(self, spec: RunSpec, error: str) -> dict[str, Any]:
        """Record a failure that is worth retrying, so that the next process trains the run again.

        Returns the recorded result, which is that of another process if it ended the run meanwhile.
        """
        held = self.result(spec)
        if has_ended(held):
            return held
        result = {
            "spec": asdict(spec),
            "status": "failed",
            "error": error,
            "retry": True,
            "seconds": {},
            "passes": 0,
            "metrics": [],
        }
        self.folder(spec).mkdir(parents=True, exist_ok=True)
        write_json(self.folder(spec) / RESULT_FILE, result)
        return result

    def missing(self, plan: Plan) -> list[RunSpec]:
        """Return the runs to train: those that have not ended, and those whose failure is worth retrying.

        Raises:
            DamagedFileError: a result cannot be read.
        """
        ended = {row["run"] for row in self.results(plan).rows if not row["retry"]}
        return [spec for spec in plan.distinct if spec.name not in ended]

    def write_runs(self, results: Results) -> None:
        """Rebuild `runs.jsonl`: the runs of a study and, after them, all others that the store holds.

        Runs that cannot be read, of another version for example, are skipped and named on the standard error.
        """
        planned = {spec.name for spec in results.plan.runs}
        others = []
        for folder in sorted((self.root / "runs").glob("*"), key=lambda folder: folder.name):
            if folder.name in planned:
                continue
            try:
                if (result := read_result(folder)) is not None:
                    others.append(run_row(read_spec(result["spec"]), result))
            except Exception as error:  # the file may hold anything
                reason = str(error) if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {error}"
                print(f"skipped: {folder}, not a run of this study or version: {reason}", file=sys.stderr)
        write_json_lines(self.root / "runs.jsonl", results.rows + others)


def read_results(folder: Path, metric: str | None = None) -> Results:
    """Read the results so far of the study that a folder holds.

    Args:
        folder: the study's store.
        metric: the measure that tables show; None for the one that the study selects by. It also selects steps and
            settings if every run was scored on its targets at all evaluations.

    Raises:
        UnknownNameError: there is no such measure of the study's task.
        ValueError: no run recorded it or kept predictions to compute it from.
        FileNotFoundError: the folder holds no study.
        DamagedFileError: its plan or a result cannot be read.
        PluginError: results must be scored by a selection rule of a plug-in that was not imported.
    """
    import_plugins()
    plan = read_plan(folder)
    if metric is not None:
        for grid in plan:
            task = grid.runs[0].task
            if metric not in (known := measures_of(task)):
                raise UnknownNameError(f"measure of {task}", metric, known)
        if all(spec.score_targets for spec in plan.runs):
            plan = replace(plan, metric=metric)
    results = Store(folder).results(plan, metric)
    chosen = [one for row in results.rows for one in row["selection"].values() if one is not None]
    if metric is not None and chosen and not any(metric in one["measures"] for one in chosen):
        raise ValueError(
            f"{metric} cannot be shown: the runs of {folder} did not record it, and kept no predictions to compute it "
            "from"
        )
    return results
