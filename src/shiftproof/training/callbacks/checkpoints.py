"""Saves everything needed to continue a training loop, so that it can be killed at any time."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from shiftproof.base.files import DamagedFileError
from shiftproof.training.checkpoint import REMEDY, load_checkpoint, save_checkpoint
from shiftproof.training.loop import Callback, Loop

CHECKPOINT_SECONDS = 60.0


class Checkpoints(Callback):
    """Saves a loop when an evaluation is due, and when `CHECKPOINT_SECONDS` have passed since it last did.

    It must be the last callback with a state, so that it saves the others' latest one.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._saved = 0.0

    def restore(self, loop: Loop) -> None:
        """Restore a loop and its callbacks from the file, if there is one; call this before `Loop.run`.

        Raises:
            DamagedFileError: the file is incomplete or altered.
        """
        if self._path.exists():
            state = load_checkpoint(self._path, loop.algorithm)
            try:
                loop.load_state_dict(state)
            except ValueError as error:
                raise DamagedFileError(self._path, str(error), REMEDY) from error
        step = torch.tensor(loop.progress.step, device=loop.device)
        loop.ranks.check_same("the step that they continue from", step)

    def on_start(self, loop: Loop) -> None:
        self._saved = time.perf_counter()

    def on_pause(self, loop: Loop) -> None:
        if loop.is_evaluation_due or self._is_late(loop):
            with loop.progress.timed("checkpoints"):
                save_checkpoint(self._path, loop.algorithm, loop.state_dict(), loop.ranks)
            self._saved = time.perf_counter()

    def _is_late(self, loop: Loop) -> bool:
        """Return whether it is time to save, by the clock of the first rank."""
        late = time.perf_counter() - self._saved > CHECKPOINT_SECONDS
        return bool(loop.ranks.agreed(torch.tensor(float(late), device=loop.device)))
