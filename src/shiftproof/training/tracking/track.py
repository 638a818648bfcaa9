"""Writes one run to any number of trackers, none of which can end it."""

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
    """What a run is written to while it trains; changes no result.

    Attributes:
        trackers: names.
        folder: where those that keep all runs in one place write, if they are not set up for another; None for the
            run's own.
        tags: what the run is found by among others, beside its spec.
    """

    trackers: tuple[str, ...] = ()
    folder: Path | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


class OpenTrackers:
    """The trackers of one run; one that fails is warned of and left out from then on.

    Args:
        names: of trackers.
        run: what is tracked.
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
        """Write one evaluation, as the run's metrics hold it."""
        scalars = self._run.scalars(record)
        self._each(lambda tracker: tracker.write(scalars, record["step"]))

    def end(self, status: str) -> None:
        """Write that the run has ended, "finished" or "failed"."""
        self._each(lambda tracker: tracker.end(status))

    def close(self) -> None:
        """Let go of files and connections."""
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
