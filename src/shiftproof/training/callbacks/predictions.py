"""Keeps what the network puts out at the steps that rules select."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shiftproof.protocol import PROTOCOLS, selected_steps
from shiftproof.training.inputs import Part
from shiftproof.training.kept_predictions import PREDICTIONS_BYTES, PREDICTIONS_FILE, write_kept
from shiftproof.training.loop import Callback, Loop

_Kept = dict[tuple[int, Part], Tensor]


class Predictions(Callback):
    """Keeps the outputs of the steps that the run's rules select, and writes them at the end.

    Where any step may be selected, by a rule that reads other runs for example, it keeps those of all evaluations if
    they fit into `PREDICTIONS_BYTES`. If not even the selected ones fit, it keeps none. It must come after the
    callbacks that score.

    Args:
        folder: the run's folder.
    """

    name = "predictions"
    new = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._steps: dict[int, _Kept] = {}

    def on_outputs(self, loop: Loop, step: int, domain: int, part: Part, outputs: Tensor) -> None:
        precise = loop.dataset.task == "regression"
        kept = outputs.to(torch.float32 if precise else torch.float16, copy=True)
        self._steps.setdefault(step, {})[domain, part] = kept

    def on_evaluation(self, loop: Loop, record: dict[str, Any]) -> None:
        if "averaged" in record:  # rules read no other evaluation
            self._keep({record["step"]})
        if not loop.spec.score_targets or self._size > PREDICTIONS_BYTES:
            self._keep(_selected(loop))
        if self._size > PREDICTIONS_BYTES:
            self._steps = {}

    def on_end(self, loop: Loop) -> None:
        scored = loop.dataset.domain_names
        complete = {(i, "out") for i in range(len(scored))} | {(i, "in") for i in loop.inputs.targets}
        self._keep({step for step, kept in self._steps.items() if kept.keys() == complete})
        if not loop.ranks.first:
            return
        if _selected(loop) <= self._steps.keys() and self._size <= PREDICTIONS_BYTES:
            steps = {step: {key: o.numpy() for key, o in kept.items()} for step, kept in self._steps.items()}
            write_kept(self._folder, loop.dataset, loop.inputs, steps)
        else:  # of a process that trained the run before
            (self._folder / PREDICTIONS_FILE).unlink(missing_ok=True)

    def state_dict(self) -> dict[int, _Kept]:
        return self._steps

    def load_state_dict(self, state: dict[int, _Kept]) -> None:
        self._steps = state

    @property
    def _size(self) -> int:
        return sum(outputs.nbytes for kept in self._steps.values() for outputs in kept.values())

    def _keep(self, steps: set[int]) -> None:
        self._steps = {step: kept for step, kept in self._steps.items() if step in steps}


def _selected(loop: Loop) -> set[int]:
    spec = loop.spec
    return selected_steps(loop.progress.metrics, spec.targets, PROTOCOLS[spec.protocol], spec.selecting_metric)
