"""Writes the result of a run when it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shiftproof.base.files import write_json
from shiftproof.training.loop import Callback, Loop
from shiftproof.training.result import RESULT_FILE, make_result


class ResultFile(Callback):
    """Writes the result of a run when it ends; it must be the run's last callback.

    Args:
        folder: the run's folder; only the first rank writes.

    Attributes:
        result: the result, once the run has ended.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.result: dict[str, Any] = {}

    def on_end(self, loop: Loop) -> None:
        self._write(loop)

    def on_divergence(self, loop: Loop) -> None:
        self._write(loop)

    def _write(self, loop: Loop) -> None:
        self.result = make_result(loop)
        if loop.ranks.first:
            write_json(self._folder / RESULT_FILE, self.result)
