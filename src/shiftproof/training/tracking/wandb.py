"""Writes a run to Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping

from shiftproof.training.tracking.tracker import PROJECT, TrackedRun

LONGEST_TAG = 64
"""Most characters that W&B allows in a tag."""


class WandbTracker:
    """Writes as W&B is set up (``WANDB_MODE``, ``WANDB_PROJECT``, ...), or to local files if nobody is logged in.

    Args:
        run: the run to track.
    """

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        set_up = "WANDB_MODE" in os.environ or wandb.login(prompt=False)
        self._run = wandb.init(
            id=run.spec.name,
            resume="allow",
            mode=None if set_up else "offline",
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=None if "WANDB_DIR" in os.environ else run.shared,
            name=run.title,
            config={**run.parameters, **run.labels},
            tags=[f"{name}: {value}"[:LONGEST_TAG] for name, value in run.labels.items()],
            reinit="create_new",  # a run already open in this process belongs to other code
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._run.define_metric("*", step_metric="step")
        self._evaluations = 0
        self._exit_code = 1

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Write an evaluation unless the server has it. It is numbered, because two may follow the same step."""
        if self._evaluations >= self._run.starting_step:
            self._run.log({"step": step, **scalars}, step=self._evaluations)
        self._evaluations += 1

    def end(self, status: str) -> None:
        """Write the status to the run's summary."""
        self._run.summary["status"] = status
        self._exit_code = 0 if status == "finished" else 1

    def close(self) -> None:
        """Wait until everything is written."""
        self._run.finish(exit_code=self._exit_code)
