"""Writes the curve of a run to a file while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shiftproof.base.files import write_json_lines
from shiftproof.training.loop import Callback, Loop


class MetricsFile(Callback):
    """Writes the evaluations, one per line: those from a checkpoint at the start, later ones as they are made.

    Args:
        path: the file; only the first rank writes it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_start(self, loop: Loop) -> None:
        self._write(loop)

    def on_evaluation(self, loop: Loop, record: dict[str, Any]) -> None:
        self._write(loop)

    def on_end(self, loop: Loop) -> None:
        self._write(loop)  # the selected step may have got more scores

    def _write(self, loop: Loop) -> None:
        if loop.ranks.first:
            write_json_lines(self._path, loop.progress.metrics)
