"""Passes what happens in a training loop on to the runs that share its steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shiftproof.training.loop import Callback, Loop
from shiftproof.training.progress import WORK


class Runs(Callback):
    """Passes what happens in a loop on to the loops of the runs that share its steps.

    The time of the steps is divided among the runs that still train. A run that stops ends by `EndStopped`, is told of
    nothing more, and does not disturb the others; the loop stops when all runs have.

    Args:
        runs: one loop per run, made by `Loop.beside`, with its callbacks.
    """

    name = "runs"
    new = True

    def __init__(self, runs: Sequence[Loop]) -> None:
        self._going = list(runs)
        self._shared = len(runs)
        # seconds of the loop that the runs have got their shares of
        self._divided: dict[str, float] = dict.fromkeys(WORK, 0.0)

    def on_start(self, loop: Loop) -> None:
        if loop.progress.step:  # else what took time before the first step is still to be divided
            self._divided = dict(loop.progress.seconds)
        for run in self._going:
            run.shared = self._shared
            for callback in run.callbacks:
                callback.on_start(run)

    def on_update(self, loop: Loop) -> None:
        for run in self._going:
            run.progress.step = loop.progress.step
            for callback in run.callbacks:
                callback.on_update(run)

    def on_loss(self, loop: Loop, step: int, loss: float) -> None:
        for run in self._going:
            for callback in run.callbacks:
                callback.on_loss(run, step, loss)

    def on_pause(self, loop: Loop) -> None:
        self._divide_time(loop)
        for run in self._going:
            for callback in run.callbacks:
                callback.on_pause(run)

    def on_end(self, loop: Loop) -> None:
        self._end(loop, self._going)

    def on_divergence(self, loop: Loop) -> None:
        self._divide_time(loop)
        for run in self._going:
            run.progress.step, run.diverged = loop.progress.step, loop.diverged
            for callback in run.callbacks:
                callback.on_divergence(run)

    def end_stopped(self, loop: Loop) -> None:
        """End the runs that have stopped, and stop the loop if none is left."""
        self._end(loop, [run for run in self._going if run.stopped])
        loop.stopped = not self._going

    def _end(self, loop: Loop, runs: Sequence[Loop]) -> None:
        self._divide_time(loop)
        for run in runs:
            for callback in run.callbacks:
                callback.on_end(run)
        self._going = [run for run in self._going if run not in runs]

    def _divide_time(self, loop: Loop) -> None:
        """Give every run its share of the time since this was last called."""
        for work, seconds in loop.progress.seconds.items():
            for run in self._going:
                run.progress.seconds[work] += (seconds - self._divided[work]) / len(self._going)
        self._divided = dict(loop.progress.seconds)

    def state_dict(self) -> dict[str, Any]:
        return {"shared": self._shared, "runs": {run.spec.name: run.state_dict() for run in self._going}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._shared = state["shared"]
        for run in self._going:
            run.load_state_dict(state["runs"][run.spec.name])

    def load_earlier(self, state: dict[str, Any]) -> None:
        """Restore the only run from a checkpoint of before several could share their steps."""
        [run] = self._going
        run.load_state_dict({**state, "seconds": dict(state["seconds"]), "metrics": list(state["metrics"])})


class EndStopped(Callback):
    """Ends runs that have stopped before the last step; it must come after the checkpoint is saved.

    Args:
        runs: passes the loop on to the runs.
    """

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    def on_start(self, loop: Loop) -> None:
        self._runs.end_stopped(loop)

    def on_pause(self, loop: Loop) -> None:
        self._runs.end_stopped(loop)
