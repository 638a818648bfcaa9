"""The training loop and its callbacks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shiftproof.algorithms import Algorithm
from shiftproof.data import DomainDataset
from shiftproof.protocol import PROTOCOLS
from shiftproof.training.build import build_steps
from shiftproof.training.first_pass import FirstPass
from shiftproof.training.inputs import Inputs, Part
from shiftproof.training.linear_probe import Probe, fit_probe
from shiftproof.training.prepared import prepared
from shiftproof.training.progress import Progress
from shiftproof.training.ranks import ALONE, Ranks
from shiftproof.training.spec import RunSpec

STEPS_BETWEEN_READS = {"cpu": 1, "cuda": 20}
"""Steps between two readings of the losses, which make the host wait for a GPU; 1 for other devices."""


class NonFiniteLossError(RuntimeError):
    """Training diverged; the message says at which step."""


class Callback:
    """Base class for actions at certain moments of a training loop; every hook does nothing unless overridden.

    A loop calls a hook on all its callbacks, in order, before it goes on. After every update it calls `on_update`.
    Whenever it reads the losses of the latest updates, it calls `on_loss` for each of them, then `on_pause` once. A
    callback that scores a part calls `Loop.pass_outputs`, which calls `on_outputs`, and one that evaluates calls
    `Loop.record`, which calls `on_evaluation`. `on_end` or `on_divergence` comes last;
    neither is called after any other exception.

    Attributes:
        name: key of its state in the loop's checkpoints; empty if it has no state.
        new: whether checkpoints of earlier versions lack its state; it then gets `load_earlier`.
    """

    name = ""
    new = False

    def on_start(self, loop: Loop) -> None:
        """Act before the first step, after a checkpoint has been restored if there is one."""

    def on_update(self, loop: Loop) -> None:
        """Act after an update; the device may still be computing it, and its loss is not known yet."""

    def on_loss(self, loop: Loop, step: int, loss: float) -> None:
        """Act on the finite loss of a step; the loop may be up to `STEPS_BETWEEN_READS` steps ahead."""

    def on_pause(self, loop: Loop) -> None:
        """Act when the losses of all steps so far are known, which is at least after every step due for evaluation."""

    def on_outputs(self, loop: Loop, step: int, domain: int, part: Part, outputs: Tensor) -> None:
        """Act on the outputs for one part of a domain, as `evaluate` passes them, of the weights scored for a step."""

    def on_evaluation(self, loop: Loop, record: dict[str, Any]) -> None:
        """Act on an evaluation, while the network has the weights that were evaluated."""

    def on_end(self, loop: Loop) -> None:
        """Act after the last step."""

    def on_divergence(self, loop: Loop) -> None:
        """Act after training diverged."""

    def state_dict(self) -> Any:
        """Return its state as tensors and plain Python values."""

    def load_state_dict(self, state: Any) -> None:
        """Restore the state that `state_dict` returned."""

    def load_earlier(self, state: dict[str, Any]) -> None:
        """Restore from the loop's state in a checkpoint that lacks its own; unless overridden, start without."""


class Loop:
    """Takes the steps of a run and calls its callbacks.

    The spec alone determines what is trained; callbacks may observe, save and stop it. All ranks must have the same
    callbacks. The arguments and errors are those of `build_steps`.

    Attributes:
        spec: the run's spec.
        dataset: the data set.
        device: the device that trains.
        ranks: the processes that train the run.
        steps: takes a step.
        inputs: the images.
        progress: the state of the loop.
        callbacks: the callbacks, in the order of calling; set them before `run`.
        stopped: a callback sets it to end the training before the last step.
        diverged: why training diverged; None if it did not.
        shared: number of runs that share the steps, see `beside`.
        probe: what was chosen of the linear probe that the classifier starts from; None if it starts at random.
        first_pass: the first pass of a run on all data, if this is the second.
    """

    def __init__(
        self,
        spec: RunSpec,
        dataset: DomainDataset,
        device: torch.device,
        weights: Path | None,
        ranks: Ranks = ALONE,
        first_pass: FirstPass | None = None,
    ) -> None:
        self.spec, self.dataset, self.device, self.ranks = spec, prepared(spec, dataset), device, ranks
        self.steps = build_steps(spec, self.dataset, device, weights, ranks)
        self.inputs = Inputs(self.dataset, spec, self.algorithm.network.normalisation, device, ranks, self.steps.cut)
        self.progress = Progress()
        self.probe: Probe | None = None
        if self.algorithm.probed:
            with self.progress.timed("step"):
                chosen = None if first_pass is None else first_pass.result["probe"]["penalty"]
                self.probe = fit_probe(spec, self.algorithm.network, self.inputs, self.dataset.domain_names, chosen)
        self.callbacks: Sequence[Callback] = ()
        self.stopped = False
        self.diverged: str | None = None
        self.shared = 1
        self.first_pass = first_pass
        self._unread: list[Tensor] = []  # losses of the last steps that the host has not read yet

    def beside(self, spec: RunSpec) -> Loop:
        """Return a loop for a run that differs in its averaging at most: it takes no steps, but is told of this one's.

        It has a progress and callbacks of its own, and the same algorithm.
        """
        other = copy(self)
        other.spec, other.progress, other.callbacks = spec, Progress(), ()
        return other

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm, with the network that is trained."""
        return self.steps.algorithm

    @property
    def is_evaluation_due(self) -> bool:
        """Whether an evaluation follows the last step."""
        spec = self.spec
        return PROTOCOLS[spec.protocol].evaluated(self.progress.step, spec.steps, spec.checkpoint_freq)

    def run(self) -> None:
        """Take all remaining steps.

        Raises:
            NonFiniteLossError: training diverged.
        """
        self.algorithm.train()
        for callback in self.callbacks:
            callback.on_start(self)
        try:
            while self.progress.step < self.spec.steps and not self.stopped:
                self._take_step()
        except NonFiniteLossError as error:
            self.diverged = str(error)
            for callback in self.callbacks:
                callback.on_divergence(self)
            raise
        for callback in self.callbacks:
            callback.on_end(self)

    def pass_outputs(self, step: int, domain: int, part: Part, outputs: Tensor) -> None:
        """Pass the outputs for one part of a domain to the callbacks."""
        for callback in self.callbacks:
            callback.on_outputs(self, step, domain, part, outputs)

    def record(self, record: dict[str, Any]) -> None:
        """Add an evaluation to the metrics and pass it to the callbacks."""
        self.progress.metrics.append(record)
        for callback in self.callbacks:
            callback.on_evaluation(self, record)

    @property
    def state_names(self) -> set[str]:
        """The entries of `state_dict` that every checkpoint has."""
        return self.state_dict().keys() - {callback.name for callback in self.callbacks if callback.new}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the loop and its callbacks, without the algorithm and its optimizers."""
        remembered = {callback.name: callback.state_dict() for callback in self.callbacks if callback.name}
        return {**vars(self.progress), **self.steps.state_dict(), **remembered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned, ignoring callbacks that are not there now.

        Raises:
            ValueError: an entry that every checkpoint has is missing.
        """
        if missing := self.state_names - state.keys():
            raise ValueError(f"no {', '.join(sorted(missing))}")
        self.progress = Progress(**{name: state[name] for name in vars(self.progress)})
        self.steps.load_state_dict(state)
        for callback in self.callbacks:
            if callback.name in state:
                callback.load_state_dict(state[callback.name])
            else:
                callback.load_earlier(state)

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
        """Read the losses of the last steps; the host waits for a GPU here."""
        with self.progress.timed("step"):
            losses = self.ranks.agreed(torch.stack(self._unread)).tolist()
        self._unread = []
        for step, loss in enumerate(losses, self.progress.step - len(losses) + 1):
            if not math.isfinite(loss):
                self.progress.step = step - 1
                raise NonFiniteLossError(f"the loss was {loss} at step {step}")
            for callback in self.callbacks:
                callback.on_loss(self, step, loss)
