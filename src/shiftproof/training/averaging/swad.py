"""SWAD: the mean of the weights over the flat part of the validation loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from shiftproof.training.averaging.state import State, blend, copy_state, to_device_of

CONVERGENCE = 3
"""SWAD's published N_s, in evaluations."""
PATIENCE = 6
TOLERANCE = 1.3
TOLERANCE_VLCS = 1.2
"""SWAD's published N_e, in evaluations, and r, for all data sets and for VLCS."""


@dataclass
class Segment:
    """The mean of the weights over consecutive updates.

    Attributes:
        first: number of the first update.
        last: number of the last update.
        average: the mean.
        loss: validation loss after the last update.
    """

    first: int
    last: int
    average: State
    loss: float = math.inf

    def extend(self, state: Mapping[str, Tensor], last: int) -> None:
        """Add the mean of the weights over the updates that follow, up to number ``last``."""
        blend(self.average, state, (last - self.last) / (last - self.first + 1))
        self.last = last


class SWAD:
    """Stochastic weight averaging, densely, over the flat part of the validation loss.

    The average starts at the first evaluation whose validation loss is the lowest among itself and the next two. It
    ends before six evaluations in a row whose losses all exceed 1.3 (VLCS: 1.2) times the mean loss of those three;
    training stops there. Every update in between counts once, including those since the evaluation before the first.
    At the end of training, trailing evaluations above the threshold are left out.

    Source: Cha et al., "SWAD: Domain Generalization by Seeking Flat Minima", NeurIPS 2021 (arXiv 2102.08604),
    algorithm 1. The authors' code differs: `ReleasedSWAD`.

    Args:
        tolerance: r, the ratio of the threshold to the mean loss at the start.
    """

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.dead = False
        self._threshold: float | None = None
        self._running: Segment | None = None  # since the last evaluation
        self._pending: list[Segment] = []  # segments between evaluations that are not in the average yet
        self._average: Segment | None = None

    def update(self, state: Mapping[str, Tensor], step: int) -> None:
        """Add the weights after update number ``step`` to the segment since the last evaluation."""
        if self._running is None:
            self._running = Segment(step, step, copy_state(state))
        else:
            self._running.extend(state, step)

    def evaluated(self, loss: float) -> None:
        """Record the validation loss after the last update; it may end the average by setting ``dead``."""
        self._close_segment(loss)
        if self._threshold is None:
            self._pending = self._pending[-CONVERGENCE:]
            self._threshold = self._threshold_after(self._pending)
        elif len(self._pending) == PATIENCE:
            self.dead = not self._take_in()

    def _close_segment(self, loss: float) -> None:
        """Append the updates since the last evaluation to the pending segments."""
        assert self._running is not None  # noqa: S101 - an evaluation follows an update
        self._running.loss = loss
        self._pending.append(self._running)
        self._running = None

    def _threshold_after(self, latest: Sequence[Segment]) -> float | None:
        """Return the threshold if the loss has converged: if of three segments the earliest has the lowest."""
        losses = [segment.loss for segment in latest]
        if len(losses) == CONVERGENCE and losses[0] == min(losses) and math.isfinite(sum(losses)):
            return self.tolerance * sum(losses) / CONVERGENCE
        return None

    def finish(self) -> Segment | None:
        """Return the average, None if the loss never converged."""
        while self._take_in():
            pass
        return self._average

    def _take_in(self) -> bool:
        """Move the earliest pending segment into the average, unless all pending ones exceed the threshold."""
        losses = [segment.loss for segment in self._pending]
        if self._threshold is None or not losses or min(losses) > self._threshold:
            return False
        earliest = self._pending.pop(0)
        if self._average is None:
            self._average = earliest
        else:
            self._average.extend(earliest.average, earliest.last)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return its state as tensors and plain Python values."""
        return {
            "dead": self.dead,
            "threshold": self._threshold,
            "running": self._running and vars(self._running),
            "pending": [vars(segment) for segment in self._pending],
            "average": self._average and vars(self._average),
        }

    def load_state_dict(self, content: dict[str, Any], like: Mapping[str, Tensor]) -> None:
        """Restore the state that `state_dict` returned, on the device of ``like``."""

        def segment(entries: dict[str, Any]) -> Segment:
            return Segment(**{**entries, "average": to_device_of(like, entries["average"])})

        self.dead, self._threshold = content["dead"], content["threshold"]
        self._running = content["running"] and segment(content["running"])
        self._pending = [segment(entries) for entries in content["pending"]]
        self._average = content["average"] and segment(content["average"])
