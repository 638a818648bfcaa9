"""The store of a study: one folder per run holds the truth; `runs.jsonl` and the tables are rebuilt from it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeGuard

from shiftproof.base.files import is_local, locked, write_json, write_json_lines
from shiftproof.studies.plan import Plan, read_plan, read_spec
from shiftproof.studies.results import Results, run_row
from shiftproof.studies.stored_results import StoredResults
from shiftproof.training import RESULT_FILE, RunSpec, read_result

LOCK_FILE = ".lock"


class StoreBusyError(OSError):
    """Another process works on the same output."""


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder, which is made if need be.

    Object stores have no locks: there nothing is kept out.

    Raises:
        ValueError: the folder cannot be made or written.
        StoreBusyError: another process has it.
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
    """Keep other processes out of the folder of a run, which is made if need be; wait for one that has it.

    What still trains there is left of a driver or a node that died, and ends soon. The operating system releases the
    lock of a process that dies. Object stores have no locks, and nothing is kept out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting = f"another process trains the run in {folder}; waiting for it"
    with locked(folder / LOCK_FILE, waiting) if is_local(folder) else nullcontext():
        yield


def has_ended(result: dict[str, Any] | None) -> TypeGuard[dict[str, Any]]:
    """Return whether a run need not be trained again: it has a result, and not of a failure that may pass."""
    return result is not None and not result.get("retry")


class Store:
    """The output folder of a study; write to it while it is claimed.

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

    def results(self, plan: Plan) -> Results:
        """Read what there is of a study, every run once.

        Raises:
            DamagedFileError: a result cannot be read.
        """
        return StoredResults(plan, self.root)

    def record_failure(self, spec: RunSpec, error: str) -> dict[str, Any]:
        """Record that a run failed for a reason that may pass; it is tried again the next time.

        Returns what is recorded of it: the result of another process that ended it stays.
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
        """Return the runs that have not ended, and those whose failure may pass.

        Raises:
            DamagedFileError: a result cannot be read.
        """
        ended = {row["run"] for row in self.results(plan).rows if not row["retry"]}
        return [spec for spec in plan.distinct if spec.name not in ended]

    def write_runs(self, results: Results) -> None:
        """Rebuild `runs.jsonl`: the runs of a study and, after them, all others that the store holds.

        One that cannot be read, as one of another version, is named on the standard error and passed over.
        """
        planned = {spec.name for spec in results.plan.runs}
        others = []
        for folder in sorted((self.root / "runs").glob("*"), key=lambda folder: folder.name):
            if folder.name in planned:
                continue
            try:
                if (result := read_result(folder)) is not None:
                    others.append(run_row(read_spec(result["spec"]), result))
            except Exception as error:  # nobody knows what is in it
                reason = str(error) if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {error}"
                print(f"passed over: {folder}, no run of this study or version: {reason}", file=sys.stderr)
        write_json_lines(self.root / "runs.jsonl", results.rows + others)


def read_results(folder: Path) -> Results:
    """Read what there is of the study that a folder holds.

    Raises:
        FileNotFoundError: the folder holds no study.
        DamagedFileError: its plan or a result cannot be read.
    """
    return Store(folder).results(read_plan(folder))
