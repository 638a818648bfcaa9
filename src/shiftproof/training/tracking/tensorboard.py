"""Writes a run's curve for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

from shiftproof.training.tracking.tracker import TrackedRun

FOLDER = "tensorboard"


class TensorBoardTracker:
    """Writes event files into a folder inside the run's.

    Args:
        run: the run to track.
    """

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run.folder / FOLDER
        known = folder.exists()
        # the last step may have two evaluations, one of averaged weights, so purge and rewrite that step
        self._first = run.kept[-1]["step"] if known and run.kept else 0
        self._writer = SummaryWriter(folder, purge_step=self._first)
        self._last = 0
        if not known:  # texts are never purged
            self._write_text("spec", json.dumps(asdict(run.spec), indent=2))
            self._write_text("tags", json.dumps(dict(run.tags), indent=2))
            self._writer.flush()  # so that a run killed early has them too

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Write an evaluation, unless it was written before the run was killed."""
        if step < self._first:
            return
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
        self._last = step

    def end(self, status: str) -> None:
        """Write the status as a text."""
        self._write_text("status", status)

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()

    def _write_text(self, name: str, text: str) -> None:
        block = "\n".join(f"    {line}" for line in text.splitlines())  # as Markdown
        self._writer.add_text(name, block, self._last)
