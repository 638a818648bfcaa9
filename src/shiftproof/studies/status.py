"""The progress of a study, which can be read while another process works on it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from shiftproof.base.files import is_local, locked
from shiftproof.studies.plan import PLAN_FILE, Plan, read_plan
from shiftproof.studies.store import LOCK_FILE, Store
from shiftproof.training import FIRST_PASS, METRICS_FILE, RESULT_FILE, SPEC_FILE, RunSpec

PACE = 20
"""Number of most recently ended runs that the pace is computed from."""


@dataclass(frozen=True)
class Status:
    """The state of a study.

    Attributes:
        plan: the planned runs.
        finished: number of runs that finished, by data set.
        failed: runs that failed, with their reasons.
        begun: runs that have begun and not ended, with the last evaluated step; of a run on all data, that of its first
            pass, since the second is evaluated when it ends.
        working: whether a process is working on the study; None on an object store, which has no locks.
        seconds_left: time until it is done, at the pace of the last runs; None until two runs have ended.
    """

    plan: Plan
    finished: Counter[str]
    failed: list[tuple[RunSpec, str]]
    begun: list[tuple[RunSpec, int]]
    working: bool | None
    seconds_left: float | None

    def text(self) -> str:
        """Return the status for a terminal."""
        total, finished = len(self.plan.distinct), self.finished.total()
        waiting = total - finished - len(self.failed) - len(self.begun)
        worker = {
            True: "a process is working on it",
            False: "no process is working on it",
            None: "a process may be working on it",
        }
        lines = [
            f"{self.plan.name}: {finished} of {total} runs finished, {len(self.failed)} failed, {len(self.begun)} "
            f"begun, {waiting} waiting; {worker[self.working]}"
        ]
        if self.working and self.seconds_left is not None:
            lines.append(f"{duration(self.seconds_left)} left at the pace of the last runs")
        planned = Counter(spec.dataset for spec in self.plan.distinct)
        if len(planned) > 1:
            lines += [f"  {dataset}: {self.finished[dataset]} of {runs} runs" for dataset, runs in planned.items()]
        for spec, step in self.begun:
            which = " of the first pass" if spec.all_data else ""
            lines.append(f"  begun: {spec.label(dataset=True)}: step {step} of {spec.steps}{which}")
        lines += [f"  failed: {spec.label(dataset=True)}: {reason}" for spec, reason in self.failed]
        return "\n".join(lines)


def read_status(folder: Path) -> Status:
    """Read the state of the study that a folder holds, even while a process is working on it.

    Raises:
        FileNotFoundError: the folder holds no study.
        DamagedFileError: its plan or a result cannot be read.
    """
    plan, store = read_plan(folder), Store(folder)
    rows = {row["run"]: row for row in store.results(plan).rows}
    finished: Counter[str] = Counter()
    failed, begun, ended = [], [], []
    for spec in plan.distinct:
        row = rows.get(spec.name)
        if row is None:
            if (store.folder(spec) / SPEC_FILE).exists():
                place = store.folder(spec) / FIRST_PASS if spec.all_data else store.folder(spec)
                begun.append((spec, _last_step(place / METRICS_FILE)))
            continue
        ended.append((store.folder(spec) / RESULT_FILE).stat().st_mtime)
        if row["status"] == "finished":
            finished[spec.dataset] += 1
        else:
            failed.append((spec, row["error"]))
    left = len(plan.distinct) - len(ended)
    resumed = (folder / PLAN_FILE).stat().st_mtime  # every process writes the plan before its first run
    pace = _seconds_left(sorted(moment for moment in ended if moment > resumed), left)
    return Status(plan, finished, failed, begun, _claimed(folder), pace)


def _last_step(metrics: Path) -> int:
    try:
        return int(json.loads(metrics.read_text(encoding="utf-8").splitlines()[-1])["step"])
    except (FileNotFoundError, ValueError, TypeError, LookupError):  # the run has just begun, or is writing the file
        return 0


def _claimed(folder: Path) -> bool | None:
    if not is_local(folder):
        return None
    try:
        with locked(folder / LOCK_FILE):
            return False
    except TimeoutError:
        return True
    except OSError:  # no process here can work on a folder that cannot be written
        return False


def _seconds_left(ended: list[float], left: int) -> float | None:
    """Return the time that ``left`` runs take at the pace of the last runs, given the times at which runs ended."""
    last = ended[-PACE:]
    if len(last) < 2:
        return None
    return left * (last[-1] - last[0]) / (len(last) - 1)


def duration(seconds: float) -> str:
    """Return a time in words: seconds below two minutes, then minutes, then hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
