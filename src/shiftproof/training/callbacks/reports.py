"""Reports the progress of a training loop to its caller and on the screen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from shiftproof.training.loop import Callback, Loop

OnProgress = Callable[[int, float], None]
"""Called after every step with its number and loss."""

OnRecord = Callable[[dict[str, Any]], None]
"""Called after every evaluation with its record, as in the run's metrics."""


class ReportSteps(Callback):
    """Calls a function after every step.

    Args:
        on_progress: the function.
    """

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress

    def on_loss(self, loop: Loop, step: int, loss: float) -> None:
        self._on_progress(step, loss)


class ReportEvaluations(Callback):
    """Calls a function after every evaluation.

    Args:
        on_record: the function.
    """

    def __init__(self, on_record: OnRecord) -> None:
        self._on_record = on_record

    def on_evaluation(self, loop: Loop, record: dict[str, Any]) -> None:
        self._on_record(record)


class ProgressBar(Callback):
    """Shows a progress bar of the steps.

    Args:
        description: text in front of the bar.
    """

    def __init__(self, description: str) -> None:
        self._description = description

    def on_start(self, loop: Loop) -> None:
        step, steps = loop.progress.step, loop.spec.steps
        self._bar = tqdm(initial=step, total=steps, unit="step", desc=self._description)

    def on_loss(self, loop: Loop, step: int, loss: float) -> None:
        self._bar.update()

    def on_end(self, loop: Loop) -> None:
        self._bar.close()

    def on_divergence(self, loop: Loop) -> None:
        self._bar.close()
