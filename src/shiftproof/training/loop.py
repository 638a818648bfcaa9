"""The one training loop, and what it tells whoever hooks into it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shiftproof.algorithms import Algorithm
from shiftproof.data import DomainDataset
from shiftproof.protocol import PROTOCOLS
from shiftproof.training.build import build_steps
from shiftproof.training.inputs import Inputs
from shiftproof.training.progress import Progress
from shiftproof.training.ranks import ALONE, Ranks
from shiftproof.training.spec import RunSpec

STEPS_BETWEEN_READS = {"cpu": 1, "cuda": 20}
"""How often the host looks at the losses, for which it waits for a GPU, between evaluations; 1 for other devices."""


class NonFiniteLossError(RuntimeError):
    """Training diverged; the message says at which step."""


class Callback:
    """Acts at the moments of a training loop; every hook does nothing unless overridden.

    A loop calls one hook of all its callbacks, in their order, before it goes on. After every update it calls
    `on_update`. When it has read the losses of the updates since it last did, it calls `on_loss` for each of them, then
    `on_pause` once. A callback that evaluates calls `Loop.record`, which calls `on_evaluation`. `on_end` or
    `on_divergence` come last; where anything else is raised, neither is called.

    Attributes:
        name: of what it remembers, in the checkpoints of the loop; empty where it remembers nothing.
    """

    name = ""

    def on_start(self, loop: Loop) -> None:
        """Act before the first step that is taken now: what a checkpoint holds has been restored."""

    def on_update(self, loop: Loop) -> None:
        """Act after an update: the device may still be computing it, and its loss is not known."""

    def on_loss(self, loop: Loop, step: int, loss: float) -> None:
        """Act on the loss of a step, which is finite; the loop may be up to `STEPS_BETWEEN_READS` further."""

    def on_pause(self, loop: Loop) -> None:
        """Act where the losses of all steps so far are known: at least after every step that is to be evaluated."""

    def on_evaluation(self, loop: Loop, record: dict[str, Any]) -> None:
        """Act on an evaluation, whose weights are in the network."""

    def on_end(self, loop: Loop) -> None:
        """Act after the last step."""

    def on_divergence(self, loop: Loop) -> None:
        """Act where training diverged."""

    def state_dict(self) -> Any:
        """Return what it remembers, of tensors and plain Python values."""

    def load_state_dict(self, state: Any) -> None:
        """Restore what `state_dict` returned."""


class Loop:
    """Takes the steps of a run and tells its callbacks.

    What is trained follows from the spec alone; callbacks may look, keep and stop. All ranks have the same callbacks.

    The arguments and errors are those of `build_steps`.

    Attributes:
        spec: as given.
        dataset: as given.
        device: as given.
        ranks: as given.
        steps: takes a step.
        inputs: the images.
        progress: how far it has come.
        callbacks: told, in their order; set them before `run`.
        stopped: whether a callback has ended the training before its last step.
    """

    def __init__(
        self, spec: RunSpec, dataset: DomainDataset, device: torch.device, weights: Path | None, ranks: Ranks = ALONE
    ) -> None:
        self.spec, self.dataset, self.device, self.ranks = spec, dataset, device, ranks
        self.steps = build_steps(spec, dataset, device, weights, ranks)
        self.inputs = Inputs(dataset, spec, self.algorithm.network.normalisation, device, ranks)
        self.progress = Progress()
        self.callbacks: Sequence[Callback] = ()
        self.stopped = False
        self._unread: list[Tensor] = []  # losses of the last steps, where the host does not wait for every one

    @property
    def algorithm(self) -> Algorithm:
        """What is trained."""
        return self.steps.algorithm

    @property
    def is_evaluation_due(self) -> bool:
        """Whether an evaluation follows the last step."""
        spec = self.spec
        return PROTOCOLS[spec.protocol].evaluated(self.progress.step, spec.steps, spec.checkpoint_freq)

    def run(self) -> None:
        """Take all steps that are left.

        Raises:
            NonFiniteLossError: training diverged.
        """
        self.algorithm.train()
        for callback in self.callbacks:
            callback.on_start(self)
        try:
            while self.progress.step < self.spec.steps and not self.stopped:
                self._take_step()
        except NonFiniteLossError:
            for callback in self.callbacks:
                callback.on_divergence(self)
            raise
        for callback in self.callbacks:
            callback.on_end(self)

    def record(self, record: dict[str, Any]) -> None:
        """Add an evaluation to the metrics and tell the callbacks of it."""
        self.progress.metrics.append(record)
        for callback in self.callbacks:
            callback.on_evaluation(self, record)

    def state_dict(self) -> dict[str, Any]:
        """Return what continuing needs beside the algorithm and its optimizers, of the callbacks too."""
        remembered = {callback.name: callback.state_dict() for callback in self.callbacks if callback.name}
        return {**vars(self.progress), **self.steps.state_dict(), **remembered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; what is of callbacks that are not there now is passed over."""
        self.progress = Progress(**{name: state[name] for name in vars(self.progress)})
        self.steps.load_state_dict(state)
        for callback in self.callbacks:
            if callback.name:
                callback.load_state_dict(state[callback.name])

    def _take_step(self) -> None:
        step = self.progress.step + 1
        with self.progress.timed("data"):
            batches = self.inputs.batches(step)
        with self.progress.timed("step"):
            self._unread.append(self.steps.take(batches, step))
        self.progress.step = step
        for callback in self.callbacks:
            callback.on_update(self)
        full = len(self._unread) >= STEPS_BETWEEN_READS.get(self.device.type, 1)
        if full or self.is_evaluation_due or step == self.spec.steps:
            self._read_losses()
            for callback in self.callbacks:
                callback.on_pause(self)

    def _read_losses(self) -> None:
        """Look at the losses of the last steps; the host waits for a GPU here."""
        with self.progress.timed("step"):
            losses = self.ranks.agreed(torch.stack(self._unread)).tolist()
        self._unread = []
        for step, loss in enumerate(losses, self.progress.step - len(losses) + 1):
            if not math.isfinite(loss):
                self.progress.step = step - 1
                raise NonFiniteLossError(f"the loss was {loss} at step {step}")
            for callback in self.callbacks:
                callback.on_loss(self, step, loss)
