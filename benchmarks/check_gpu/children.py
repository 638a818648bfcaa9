"""A child process with a limit of time, which takes what it started with it when it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_SECONDS_TO_DIE = 5.0  # a process that waits for a driver may not die at once


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        status: exit status, negative for a signal; None if its time was up.
        seconds: how long it took.
        last_lines: the end of what it printed.
    """

    status: int | None
    seconds: float
    last_lines: list[str]


def run_child(
    command: Sequence[str], seconds: float, log: BinaryIO, *, folder: Path, environment: Mapping[str, str]
) -> Ended:
    """Run a command as a process group of its own; whatever of it is left when it ends or its time is up, is killed.

    Args:
        command: program and arguments.
        seconds: its time.
        log: a file that it prints to.
        folder: where it runs.
        environment: its variables, beside those of this process.
    """
    start, begin = log.seek(0, os.SEEK_END), time.monotonic()
    held = _HeldSignals()  # one that came now would leave a child that nobody knows
    try:
        child = subprocess.Popen(  # noqa: S603
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except BaseException:
        held.let_go()
        raise
    status = None
    try:
        held.let_go()
        with suppress(subprocess.TimeoutExpired):
            status = child.wait(seconds)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            child.wait(_SECONDS_TO_DIE)
    log.seek(start)
    printed = log.read().decode(errors="replace").splitlines()
    return Ended(status, time.monotonic() - begin, [line for line in printed if line.strip()][-20:])


class _HeldSignals:
    """Interrupts and terminations that come from now on have their effect in `let_go`."""

    def __init__(self) -> None:
        self._came: list[int] = []
        self._handlers = {number: signal.signal(number, self._keep) for number in (signal.SIGINT, signal.SIGTERM)}

    def _keep(self, number: int, _: object) -> None:
        self._came.append(number)

    def let_go(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        for came in self._came:
            signal.raise_signal(came)
