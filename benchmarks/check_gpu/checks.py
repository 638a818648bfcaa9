"""Runs checks one after the other, each in a child with its share of the time that is left."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from benchmarks.check_gpu.children import Ended, run_child
from benchmarks.check_gpu.figures import Figure

DONE, SKIPPED = "done", "skipped"
FAILED, STOPPED, RUNNING, NOT_REACHED = "failed", "stopped", "running", "not reached"
GOOD = (DONE, SKIPPED)
"""What does not make the whole fail."""
_LEAST = 0.25  # of the seconds planned, below which a check is not begun

Record = dict[str, Any]
"""Of a check, what JSON can hold: ``name``, ``status``, ``reason``, ``seconds``, ``figures`` and ``details``."""


@dataclass(frozen=True)
class Check:
    """One child process and what is read from what it writes.

    Attributes:
        name: what the table calls it.
        command: program and arguments.
        seconds: planned for it. Time that others did not need is shared out in proportion.
        output: a JSON file that the child writes, if it writes one; kept as the record's details.
        figures: what they say, given the details.
        after: names of checks without which it makes no sense.
        modules: what must be importable for it.
        environment: variables of its own.
    """

    name: str
    command: Sequence[str]
    seconds: float
    output: Path | None = None
    figures: Callable[[Any], list[Figure]] = lambda details: []
    after: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def run_checks(
    checks: Sequence[Check], seconds: float, log: BinaryIO, keep: Callable[[list[Record]], None], *, folder: Path
) -> list[Record]:
    """Run checks in their order and return their records. One that fails does not keep the next from running.

    Args:
        checks: of different names.
        seconds: for all of them.
        log: a file for what they print.
        keep: called with the records before each check and at the end, so that a kill loses nothing.
        folder: where they run.
    """
    end = time.monotonic() + seconds
    records = [_record(check, NOT_REACHED) for check in checks]
    for i, check in enumerate(checks):
        records[i] = _record(check, RUNNING)
        keep(records)
        left = end - time.monotonic()
        limit = left * check.seconds / sum(other.seconds for other in checks[i:])
        done = {record["name"] for record in records if record["status"] == DONE}
        if obstacle := _obstacle(check, limit, done):
            records[i] = _record(check, SKIPPED, obstacle)
        else:
            records[i] = _run(check, limit, log, folder)
        print(_line(records[i]), flush=True)
    keep(records)
    return records


def _obstacle(check: Check, limit: float, done: set[str]) -> str | None:
    if missing := [name for name in check.after if name not in done]:
        return f"it builds on what was not done: {missing[0]}"
    if absent := [name for name in check.modules if importlib.util.find_spec(name) is None]:
        return f"not installed: {', '.join(absent)}"
    if limit < _LEAST * check.seconds:
        return f"{max(0.0, limit):.0f} s were left for it, of {check.seconds:.0f} s planned"
    return None


def _run(check: Check, limit: float, log: BinaryIO, folder: Path) -> Record:
    log.write(f"\n===== {check.name}: {' '.join(check.command)}\n".encode())
    log.flush()
    ended = run_child(check.command, limit, log, folder=folder, environment=check.environment)
    reason = _reason(ended, limit)
    if reason is not None:
        print("\n".join(f"          {line}" for line in ended.last_lines))
    record = _record(check, DONE if reason is None else STOPPED if ended.status is None else FAILED, reason)
    record["seconds"] = round(ended.seconds, 1)
    try:
        details = record["details"] = None if check.output is None else json.loads(check.output.read_text())
        figures = check.figures(details)
    except Exception as error:  # whatever is wrong with what a child wrote, the others are still to be run
        if reason is None:
            record |= {"status": FAILED, "reason": f"its result cannot be read: {type(error).__name__}: {error}"}
        return record
    record["figures"] = [figure.as_json() for figure in figures]
    missed = [f for f in figures if f.goal and f.goal.required and not f.met]
    if missed and reason is None:
        wrong = (f"{figure.name}: {figure.value:g}, must be {figure.goal}" for figure in missed)
        record |= {"status": FAILED, "reason": "; ".join(wrong)}
    return record


def _reason(ended: Ended, limit: float) -> str | None:
    if ended.status == 0:
        return None
    last = f": {ended.last_lines[-1].strip()}" if ended.last_lines else ""
    return f"its time was up after {limit:.0f} s{last}" if ended.status is None else f"status {ended.status}{last}"


def _record(check: Check, status: str, reason: str | None = None) -> Record:
    return {
        "name": check.name,
        "status": status,
        "reason": reason,
        "seconds": 0.0,
        "figures": [],
        "details": None,
    }


def _line(record: Record) -> str:
    reason = f": {record['reason']}" if record["reason"] else ""
    return f"{record['seconds']:6.1f} s  {record['name']}: {record['status']}{reason}"
