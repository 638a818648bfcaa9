"""Writes a run to experiment trackers while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shiftproof.training.loop import Callback, Loop
from shiftproof.training.tracking import OpenTrackers, TrackedRun, Tracking, check_trackers


class Trackers(Callback):
    """Opens trackers and writes to them the evaluations so far, every new one, and how the run ended.

    Args:
        tracking: the trackers, their folder and the run's tags.
        folder: the run's folder.

    Raises:
        ValueError: a tracker is unknown or not installed.
    """

    def __init__(self, tracking: Tracking, folder: Path) -> None:
        check_trackers(tracking.trackers)
        self._tracking, self._folder = tracking, folder
        self._open: OpenTrackers | None = None

    def on_start(self, loop: Loop) -> None:
        tracking, kept = self._tracking, tuple(loop.progress.metrics)
        run = TrackedRun(loop.spec, self._folder, tracking.folder or self._folder, tracking.tags, kept)
        self._open = OpenTrackers(tracking.trackers, run)

    def on_evaluation(self, loop: Loop, record: dict[str, Any]) -> None:
        if self._open is not None:
            self._open.write(record)

    def on_end(self, loop: Loop) -> None:
        if self._open is not None:
            self._open.end("finished")

    def on_divergence(self, loop: Loop) -> None:
        if self._open is not None:
            self._open.end("failed")

    def close(self) -> None:
        """Close files and connections, however the loop ended."""
        if self._open is not None:
            self._open.close()
