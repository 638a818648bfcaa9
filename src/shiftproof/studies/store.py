"""The store of a study: one folder per run holds the truth; `runs.jsonl` and the tables are rebuilt from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from shiftproof.files import write_bytes, write_json, write_json_lines
from shiftproof.studies.selection import RULES
from shiftproof.training import RunSpec, read_result
from shiftproof.training.run import RESULT_FILE


class StoreBusyError(OSError):
    """Another process works on the same output."""


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder, which is made if need be.

    Raises:
        ValueError: the folder cannot be made or written.
        StoreBusyError: another process has it.
    """
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise StoreBusyError(f"another process is working on {folder}; wait for it or choose another output") from None
    except OSError as error:
        raise ValueError(f"the output {folder} cannot be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


class Store:
    """The output folder of a study; use it while it is claimed.

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

    def record_failure(self, spec: RunSpec, error: str) -> dict[str, Any]:
        """Record that a run failed for a reason that may pass; it is tried again the next time."""
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

    def missing(self, specs: list[RunSpec]) -> list[RunSpec]:
        """Return the runs that have not ended, and those whose failure may pass.

        Raises:
            DamagedFileError: a result cannot be read.
        """
        distinct = {spec.name: spec for spec in specs}.values()
        results = [(spec, self.result(spec)) for spec in distinct]
        return [spec for spec, result in results if result is None or result.get("retry")]

    def write_runs(self, specs: list[RunSpec]) -> list[dict[str, Any]]:
        """Rebuild `runs.jsonl` from all results there are, one line per run, and return the rows of ``specs``."""
        rows = [run_row(spec, result) for spec in specs if (result := self.result(spec)) is not None]
        mine = {spec.name for spec in specs}
        others = []
        for folder in sorted((self.root / "runs").iterdir()):
            if folder.name not in mine and (result := read_result(folder)) is not None:
                spec = RunSpec(**{**result["spec"], "targets": tuple(result["spec"]["targets"])})
                others.append(run_row(spec, result))
        write_json_lines(self.root / "runs.jsonl", rows + others)
        return rows

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the study, atomically."""
        write_bytes(self.root / name, text.encode())


def run_row(spec: RunSpec, result: dict[str, Any]) -> dict[str, Any]:
    """Return the line of a run in `runs.jsonl`."""
    finished = result["status"] == "finished"
    selection = {rule: choose(result["metrics"], spec.targets) if finished else None for rule, choose in RULES.items()}
    return {
        "run": spec.name,
        "dataset": spec.dataset,
        "algorithm": spec.algorithm,
        "optimizer": spec.optimizer,
        "annealer": spec.annealer,
        "target": "+".join(spec.targets),
        "trial_seed": spec.trial_seed,
        "hparam_seed": spec.hparam_seed,
        "hparams": spec.hparams,
        "status": result["status"],
        "error": result["error"],
        "seconds": sum(result["seconds"].values()),
        "passes": result["passes"],
        "steps": spec.steps,
        "protocol": spec.protocol,
        "selection": selection,
    }
