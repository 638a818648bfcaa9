"""The state of a training loop: steps, times and evaluations so far."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

Work = Literal["data", "step", "evaluation", "checkpoints"]
WORK: tuple[Work, ...] = ("data", "step", "evaluation", "checkpoints")


@dataclass
class Progress:
    """The state of a training loop.

    Attributes:
        step: number of the last step, 0 before the first.
        seconds: wall time so far, by kind of work.
        metrics: the evaluations so far, each with its ``step``, the mean ``loss`` of the training batches since the
            previous evaluation, and ``domains``: the scores by domain and part.
    """

    step: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(WORK, 0.0))
    metrics: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def timed(self, work: Work) -> Iterator[None]:
        """Add the time of a ``with`` block to the seconds of a kind of work."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[work] += time.perf_counter() - begin
