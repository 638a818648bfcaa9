"""What a study has done so far, read beside the process that works on it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from shiftproof.base.files import is_local, locked
from shiftproof.studies.plan import PLAN_FILE, Plan, read_plan
from shiftproof.studies.store import LOCK_FILE, Store
from shiftproof.training import METRICS_FILE, RESULT_FILE, SPEC_FILE, RunSpec

PACE = 20
"""Runs that the pace is taken from, the last that ended."""


@dataclass(frozen=True)
class Status:
    """The state of a study.

    Attributes:
        plan: the runs that there should be.
        finished: runs that finished, by data set.
        failed: runs that failed, with their reasons.
        begun: runs that have begun and not ended, with the last evaluated step.
        working: whether a process works on the study; None on an object store, which cannot tell.
        seconds_left: until it is done, at the pace of the last runs; None while nothing tells.
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
        worker = {True: "a process works on it", False: "no process works on it", None: "it may be worked on"}
        lines = [
            f"{self.plan.name}: {finished} of {total} runs finished, {len(self.failed)} failed, {len(self.begun)} "
            f"begun, {waiting} waiting; {worker[self.working]}"
        ]
        if self.working and self.seconds_left is not None:
            lines.append(f"at the pace of the last runs it is done in {duration(self.seconds_left)}")
        planned = Counter(spec.dataset for spec in self.plan.distinct)
        if len(planned) > 1:
            lines += [f"  {dataset}: {self.finished[dataset]} of {runs} runs" for dataset, runs in planned.items()]
        lines += [f"  begun: {spec.label(dataset=True)}: step {step} of {spec.steps}" for spec, step in self.begun]
        lines += [f"  failed: {spec.label(dataset=True)}: {reason}" for spec, reason in self.failed]
        return "\n".join(lines)


def read_status(folder: Path) -> Status:
    """Read the state of the study that a folder holds, also while a process works on it.

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
                begun.append((spec, _last_step(store.folder(spec) / METRICS_FILE)))
            continue
        ended.append((store.folder(spec) / RESULT_FILE).stat().st_mtime)
        if row["status"] == "finished":
            finished[spec.dataset] += 1
        else:
            failed.append((spec, row["error"]))
    left = len(plan.distinct) - len(ended)
    resumed = (folder / PLAN_FILE).stat().st_mtime  # written whenever a process begins to work on it
    pace = _seconds_left(sorted(moment for moment in ended if moment > resumed), left)
    return Status(plan, finished, failed, begun, _claimed(folder), pace)


def _last_step(metrics: Path) -> int:
    try:
        return int(json.loads(metrics.read_text(encoding="utf-8").splitlines()[-1])["step"])
    except (FileNotFoundError, ValueError, TypeError, LookupError):  # one that has just begun, or writes it anew
        return 0


def _claimed(folder: Path) -> bool | None:
    if not is_local(folder):
        return None
    try:
        with locked(folder / LOCK_FILE):
            return False
    except TimeoutError:
        return True
    except OSError:  # a folder that cannot be written is not being worked on from here
        return False


def _seconds_left(ended: list[float], left: int) -> float | None:
    """Return the time of ``left`` runs at the pace of the last runs that ended, given when they did."""
    last = ended[-PACE:]
    if len(last) < 2:
        return None
    return left * (last[-1] - last[0]) / (len(last) - 1)


def duration(seconds: float) -> str:
    """Return a time in words: seconds below two minutes, then minutes, then hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
