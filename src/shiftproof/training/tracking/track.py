"""Writes one run to any number of trackers, whose errors cannot stop it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shiftproof.training.tracking.registry import TRACKERS
from shiftproof.training.tracking.tracker import TrackedRun, Tracker


class TrackerWarning(RuntimeWarning):
    """A tracker failed; the run goes on without it."""


@dataclass(frozen=True)
class Tracking:
    """The trackers that a run is written to while it trains; they do not affect its result.

    Attributes:
        trackers: names of the trackers.
        folder: where trackers that keep all runs in one place write, unless they are set up for another place; None
            for the run's own folder.
        tags: labels that identify the run among others, in addition to its spec.
    """

    trackers: tuple[str, ...] = ()
    folder: Path | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


class OpenTrackers:
    """The open trackers of one run; a tracker that fails causes a warning and is dropped.

    Args:
        names: names of the trackers.
        run: the run to track.
    """

    def __init__(self, names: Iterable[str], run: TrackedRun) -> None:
        self._run = run
        self._open: dict[str, Tracker] = {}
        for name in dict.fromkeys(names):
            with self._left_out_if_it_fails(name):
                self._open[name] = TRACKERS[name].open(run)
        for record in run.kept:
            self.write(record)

    def write(self, record: dict[str, Any]) -> None:
        """Write one evaluation from the run's metrics."""
        scalars = self._run.scalars(record)
        self._each(lambda tracker: tracker.write(scalars, record["step"]))

    def end(self, status: str) -> None:
        """Write that the run has ended, "finished" or "failed"."""
        self._each(lambda tracker: tracker.end(status))

    def close(self) -> None:
        """Close files and connections."""
        self._each(lambda tracker: tracker.close())

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            with self._left_out_if_it_fails(name):
                call(tracker)

    @contextmanager
    def _left_out_if_it_fails(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if (tracker := self._open.pop(name, None)) is not None:
                with suppress(Exception):
                    tracker.close()
            message = f"the run goes on without {TRACKERS[name].title}: {type(error).__name__}: {error}"
            warnings.warn(message, TrackerWarning, stacklevel=3)
