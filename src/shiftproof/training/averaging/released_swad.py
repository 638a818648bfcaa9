"""SWAD as its authors' code averages, which the published results come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from shiftproof.training.averaging.state import blend, copy_state
from shiftproof.training.averaging.swad import CONVERGENCE, PATIENCE, SWAD, Segment


class ReleasedSWAD(SWAD):
    """SWAD as the authors' code behind the published results averages. It stops where `SWAD` does.

    Segments are the means between evaluations, and every segment weighs alike however many updates it has. The code
    keeps a window of the last six, whether they have been counted or not, and so differs from the paper:

    * When the loss converges, it counts the first four segments of the window (of a full one, those up to the lowest
      loss) but the first, or but all up to the last one above the threshold and the next.
    * After every evaluation from then on it counts the earliest segment of the window, unless that ends before the
      lowest loss. Until the window is full that is the same one each time, and segments that were counted at the start
      are counted again.
    * At the end of training it counts the rest of the window, without its trailing segments above the threshold.
    * If the loss never converges it returns the last segment.

    Buffers are averaged as the weights are, of which the code keeps one copy.

    Source: https://github.com/khanrc/swad, ``domainbed/swad.py``, class ``LossValley``.

    Args:
        tolerance: r, the ratio of the threshold to the mean loss at the start.
    """

    def __init__(self, tolerance: float) -> None:
        super().__init__(tolerance)
        self._lowest = 0  # the last update of the segment at which the loss converged
        self._counted = 0  # segments in the average

    def evaluated(self, loss: float) -> None:
        """Record the validation loss after the last update; it may end the average by setting ``dead``."""
        self._close_segment(loss)
        self._pending = self._pending[-PATIENCE:]
        if self._threshold is None:
            self._threshold = self._threshold_after(self._pending[-CONVERGENCE:])
            if self._threshold is not None:
                self._begin(self._threshold)
        elif self._pending[0].last >= self._lowest:
            self.dead = min(segment.loss for segment in self._pending) > self._threshold
            if not self.dead:
                self._count(self._pending[0])

    def finish(self) -> Segment | None:
        """Return the average; the last segment if the loss never converged, None before the first evaluation."""
        if self._threshold is None:
            return self._pending[-1] if self._pending else None
        left = [] if self.dead else self._pending[1:]
        while left and min(segment.loss for segment in left) <= self._threshold:
            self._count(left.pop(0))
        return self._average

    def _begin(self, threshold: float) -> None:
        lowest = self._pending[-CONVERGENCE]
        self._lowest = lowest.last
        self._average = Segment(lowest.first, lowest.last, copy_state(lowest.average))  # until one is counted
        early = self._pending[: PATIENCE - CONVERGENCE + 1]
        above = [i for i, segment in enumerate(early) if segment.loss > threshold]
        for segment in early[above[-1] + 2 if above else 1 :]:
            self._count(segment)

    def _count(self, segment: Segment) -> None:
        """Add a segment to the average, with the weight of every segment counted before."""
        self._counted += 1
        if self._counted == 1 or self._average is None:
            self._average = Segment(segment.first, segment.last, copy_state(segment.average))
        else:
            blend(self._average.average, segment.average, 1 / self._counted)
            self._average.last = segment.last

    def state_dict(self) -> dict[str, Any]:
        """Return its state as tensors and plain Python values."""
        return {**super().state_dict(), "lowest": self._lowest, "counted": self._counted}

    def load_state_dict(self, content: dict[str, Any], like: Mapping[str, Tensor]) -> None:
        """Restore the state that `state_dict` returned, on the device of ``like``."""
        super().load_state_dict(content, like)
        self._lowest, self._counted = content["lowest"], content["counted"]
