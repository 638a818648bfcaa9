"""Trains a run with a recorder, and stores the measurements that the figures show."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shiftproof.algorithms import ALGORITHMS, Algorithm
from shiftproof.base.field_error import FieldError
from shiftproof.base.files import write_bytes
from shiftproof.data import DomainDataset
from shiftproof.diagnostics import Recorder, StepContributions, flat_weights
from shiftproof.models import Loss, Network, loss_of
from shiftproof.studies import Study, open_data, plan_run
from shiftproof.training import (
    Callback,
    Inputs,
    Loop,
    NonFiniteLossError,
    RunSpec,
    build_algorithm,
    check_inputs,
    read_saved,
    reproducible,
)
from shiftproof.training.callbacks import Checkpoints, ProgressBar

MEASUREMENTS = 100
"""Most measurements of a run, spread evenly over its steps."""
DIAGNOSTICS_FOLDER = "diagnostics"
"""The folder in a store that holds measurements of its runs."""
TRACES_FOLDER = "traces"
SNAPSHOTS = 20
"""Most snapshots of a run's weights, not counting the start."""


@dataclass(frozen=True)
class Subject:
    """A run with everything needed to build it.

    Attributes:
        spec: the run's spec.
        data: its data set.
        device: the device that trains and measures it.
        weights: file of the weights that it starts from.
    """

    spec: RunSpec
    data: DomainDataset
    device: torch.device
    weights: Path | None

    @property
    def name(self) -> str:
        """The optimizer, with what else is not plain."""
        method = self.spec.method
        return method.optimizer if method.algorithm == "erm" and method.annealer == "none" else str(method)

    @property
    def conditions(self) -> str:
        """A description of method, data and model, without the optimizer and the trial."""
        spec = self.spec
        rows, size = ("rows", "columns") if self.data.kind == "vectors" else ("images", "pixels")
        annealer = "" if spec.annealer == "none" else f" with {spec.annealer}"
        clipped = "" if spec.clip_norm is None else f", gradients clipped at {spec.clip_norm:g}"
        start = "random weights" if spec.weights is None else "given weights"
        return (
            f"{spec.algorithm}{annealer} on {spec.dataset}, unseen domain {'+'.join(spec.targets)}, {spec.model} from "
            f"{start}, {self.data.input_shape[-1]} {size}, {spec.steps} steps of {spec.axis('data')['batch_size']} "
            f"{rows} per source domain{clipped}"
        )

    @property
    def setting(self) -> str:
        """A description of the run without its optimizer, for captions."""
        hparams = "defaults" if self.spec.hparam_seed == 0 else f"setting {self.spec.hparam_seed}"
        return f"{self.conditions}, {hparams}, trial {self.spec.trial_seed}"

    @property
    def images_per_step(self) -> int:
        """Images that a step trains on, of all source domains together."""
        size: int = self.spec.axis("data")["batch_size"]
        return size * (len(self.data.domains) - len(self.spec.targets))

    def check(self) -> None:
        """Check that data set and weights are those that the run was planned with.

        Raises:
            ValueError: they are not.
        """
        check_inputs(self.spec, self.data, self.weights)

    def algorithm(self, state: Mapping[str, Tensor] | None = None) -> Algorithm:
        """Build the algorithm in its initial state or a given one, in evaluation mode."""
        algorithm = build_algorithm(self.spec, self.data, self.device, self.weights)
        if state is not None:  # which of a run behind a trunk has no trunk
            algorithm.load_state_dict({**algorithm.state_dict(), **state})
        return algorithm.eval()

    @cached_property
    def inputs(self) -> Inputs:
        """The images of the run."""
        return Inputs(self.data, self.spec, self.algorithm().network.normalisation, self.device)

    @cached_property
    def loss(self) -> Loss:
        """The plain loss of the run's task."""
        return plain_loss(self.algorithm().network)


def plain_loss(network: Network) -> Loss:
    """Return the loss of a network's task, without weights of classes."""
    return loss_of(network.task, network.quantity)


def figure_subjects(study: Study, trial_seed: int) -> list[Subject]:
    """Return the run of every method of a study at its defaults.

    Args:
        study: a study with one data set and at most one set of targets; without targets its first domain is left out.
        trial_seed: number of the trial.

    Raises:
        ValueError: the study is not valid, or its parts cannot work together.
    """
    data = open_data(study, study.datasets[0])
    if study.targets is None:
        study = replace(study, targets=data.domain_names[:1])
    device = study.device_here()
    specs = [plan_run(study.only(method), trial_seed, 0) for method in study.methods]
    for spec in specs:
        check_stepped(spec)
    return [Subject(spec, data, device, study.weights_file) for spec in specs]


def check_stepped(spec: RunSpec) -> None:
    """Raise FieldError for a run without steps, of which there is nothing to trace."""
    if not ALGORITHMS[spec.algorithm].stepped:
        raise FieldError("algorithms", f"{spec.algorithm} takes no steps, and they are what is measured")


@dataclass(frozen=True)
class Trace:
    """The measurements and snapshots of a run's training.

    Attributes:
        recorder: the ``state_dict`` of the `Recorder`, with its measurements.
        path: the trained parameters at the start and at every snapshot, flattened to (1 + snapshots, elements).
        path_steps: the steps of the snapshots, including 0 for the start.
        buffers: the algorithm's buffers at the snapshots, such as running statistics.
        state: the algorithm's state at the end.
    """

    recorder: dict[str, Any]
    path: Tensor
    path_steps: list[int]
    buffers: list[dict[str, Tensor]]
    state: dict[str, Tensor]

    @property
    def records(self) -> list[dict[str, float]]:
        """The numbers of every measurement."""
        records: list[dict[str, float]] = self.recorder["records"]
        return records

    @property
    def contributions(self) -> list[StepContributions]:
        """The terms of the one-step generalization ratios, by measurement."""
        return [StepContributions(*one) for one in self.recorder["contributions"]]


def trace(subject: Subject, folder: Path) -> Trace:
    """Train a run with a recorder, or read the trace if a folder holds it. A killed call can be continued.

    The steps are the run's, bit for bit, but without its evaluations. A run that its average of weights ends early is
    trained to its last step.

    Args:
        subject: the run.
        folder: folder that stores the trace.

    Raises:
        ValueError: the algorithm has its own optimizers, which a recorder cannot follow.
        NonFiniteLossError: training diverged.
        DamagedFileError: a file of the trace cannot be read back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, checkpoint = folder / f"{subject.spec.name}.pt", folder / f"{subject.spec.name}.checkpoint.pt"
    if not file.exists():
        with reproducible():
            content = io.BytesIO()
            torch.save(_train(subject, checkpoint), content)
        write_bytes(file, content.getvalue())
        checkpoint.unlink(missing_ok=True)
    return Trace(**read_saved(file, "delete it to train again"))


def _train(subject: Subject, checkpoint: Path) -> dict[str, Any]:
    """Train a run as in `trace`, and return the fields of its trace."""
    loop = Loop(subject.spec, subject.data, subject.device, subject.weights)
    tracing, checkpoints = _Tracing(loop), Checkpoints(checkpoint)
    loop.callbacks = [tracing, ProgressBar(subject.name), checkpoints]
    if checkpoint.exists():
        _renew(checkpoint, loop)
    checkpoints.restore(loop)
    try:
        loop.run()
    except NonFiniteLossError as diverged:
        raise NonFiniteLossError(f"{subject.name}: {diverged}") from None
    return {**tracing.state_dict(), "state": loop.algorithm.state_dict()}


class _Tracing(Callback):
    """Measures a loop's steps with a recorder, and keeps snapshots of the weights.

    Raises:
        ValueError: the algorithm has its own optimizers.
    """

    name = "trace"

    def __init__(self, loop: Loop) -> None:
        if set(loop.algorithm.optimizers) != {"all"}:
            raise ValueError(f"{loop.spec.algorithm} steps several optimizers; the measurements can follow only one")
        self.optimizer = loop.algorithm.optimizers["all"]
        self.recorder = Recorder(
            loop.algorithm,
            self.optimizer,
            plain_loss(loop.algorithm.network),
            loop.inputs.fresh_batches,
            unseen=loop.inputs.unseen_batch,
            every=-(-loop.spec.steps // MEASUREMENTS),
        )
        self.path: list[Tensor] = []
        self.path_steps: list[int] = []
        self.buffers: list[dict[str, Tensor]] = []
        self._snapshot(loop)

    def on_update(self, loop: Loop) -> None:
        step, steps = loop.progress.step, loop.spec.steps
        self.recorder.step = step
        if loop.algorithm.optimizers["all"] is not self.optimizer:  # a new optimizer, whose step was not recorded
            self.optimizer = loop.algorithm.optimizers["all"]
            self.recorder.follow(self.optimizer)
        if step % -(-steps // SNAPSHOTS) == 0 or step == steps:
            self._snapshot(loop)

    def _snapshot(self, loop: Loop) -> None:
        parameters = dict(loop.algorithm.named_parameters())
        state = loop.algorithm.state_dict()
        self.path.append(flat_weights(loop.algorithm).cpu())
        self.path_steps.append(loop.progress.step)
        self.buffers.append({name: t.to("cpu", copy=True) for name, t in state.items() if name not in parameters})

    def state_dict(self) -> dict[str, Any]:
        return {
            "recorder": self.recorder.state_dict(),
            "path": torch.stack(self.path),
            "path_steps": self.path_steps,
            "buffers": self.buffers,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.recorder.load_state_dict(state["recorder"])
        self.path, self.path_steps, self.buffers = list(state["path"]), state["path_steps"], state["buffers"]


def _renew(checkpoint: Path, loop: Loop) -> None:
    """Convert a checkpoint from before traces used the training loop into the loop's form."""
    saved = read_saved(checkpoint, "delete it to train this run from the start")
    if "recorder" in saved.get("progress", {}):
        old = saved["progress"]
        saved["progress"] = {**loop.state_dict(), "step": old["recorder"]["step"], "trace": old}
        content = io.BytesIO()
        torch.save(saved, content)
        write_bytes(checkpoint, content.getvalue())


def traced(study: Study, output: Path, trial_seed: int) -> dict[str, tuple[Subject, Trace]]:
    """Return the runs of a study's methods with their traces, by name, training those that the output lacks.

    Args:
        study: as for `figure_subjects`.
        output: folder of the figures.
        trial_seed: number of the trial.

    Raises:
        ValueError: as for `figure_subjects` and `trace`.
    """
    return {one.name: (one, trace(one, output / TRACES_FOLDER)) for one in figure_subjects(study, trial_seed)}
