"""Trains a run again with a recorder beside it, and keeps what the figures are drawn from."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from shiftproof.algorithms import Algorithm
from shiftproof.data import DomainDataset
from shiftproof.diagnostics import Recorder, StepContributions, flat_weights
from shiftproof.files import write_bytes
from shiftproof.studies.plan import method_of
from shiftproof.studies.planning import plan_run
from shiftproof.studies.study import Study
from shiftproof.studies.study_data import open_data
from shiftproof.training import RunSpec
from shiftproof.training.checkpoint import load_checkpoint, read_saved, save_checkpoint
from shiftproof.training.inputs import Inputs
from shiftproof.training.run import (
    CHECKPOINT_SECONDS,
    NonFiniteLossError,
    build_algorithm,
    build_steps,
    check_inputs,
    reproducible,
)

MEASUREMENTS = 100
"""Of a run, at most, spread evenly over its steps."""
DIAGNOSTICS_FOLDER = "diagnostics"
TRACES_FOLDER = "traces"
SNAPSHOTS = 20
"""Of the weights, at most, besides the start."""


@dataclass(frozen=True)
class Subject:
    """A run with what it is built from.

    Attributes:
        spec: the run.
        data: its data set.
        device: where it is trained and measured.
        weights: file of the weights that it starts from.
    """

    spec: RunSpec
    data: DomainDataset
    device: torch.device
    weights: Path | None

    @property
    def name(self) -> str:
        """The optimizer, with what else is not plain."""
        method = method_of(self.spec)
        return method.optimizer if method.algorithm == "erm" and method.annealer == "none" else str(method)

    @property
    def conditions(self) -> str:
        """What is trained on what, but for the optimizer and the trial."""
        spec = self.spec
        annealer = "" if spec.annealer == "none" else f" with {spec.annealer}"
        clipped = "" if spec.clip_norm is None else f", gradients clipped at {spec.clip_norm:g}"
        start = "random weights" if spec.weights is None else "given weights"
        return (
            f"{spec.algorithm}{annealer} on {spec.dataset}, unseen domain {'+'.join(spec.targets)}, {spec.model} from "
            f"{start}, {self.data.image_shape[-1]} pixels, {spec.steps} steps of {spec.axis('data')['batch_size']} "
            f"images per source domain{clipped}"
        )

    @property
    def setting(self) -> str:
        """What was trained but for the optimizer, for captions."""
        hparams = "defaults" if self.spec.hparam_seed == 0 else f"setting {self.spec.hparam_seed}"
        return f"{self.conditions}, {hparams}, trial {self.spec.trial_seed}"

    @property
    def images_per_step(self) -> int:
        """Images that a step trains on, of all source domains together."""
        size: int = self.spec.axis("data")["batch_size"]
        return size * (len(self.data.domains) - len(self.spec.targets))

    def check(self) -> None:
        """Raise unless data set and weights are those that the run was planned with.

        Raises:
            ValueError: they are not.
        """
        check_inputs(self.spec, self.data, self.weights)

    def algorithm(self, state: Mapping[str, Tensor] | None = None) -> Algorithm:
        """Build the algorithm as it starts, or with a state, in evaluation mode."""
        algorithm = build_algorithm(self.spec, self.data, self.device, self.weights)
        if state is not None:
            algorithm.load_state_dict(state)
        return algorithm.eval()

    @cached_property
    def inputs(self) -> Inputs:
        """The images of the run."""
        return Inputs(self.data, self.spec, self.algorithm().network.normalisation, self.device)


def figure_subjects(study: Study, trial_seed: int) -> list[Subject]:
    """Return the run of every method of a study at its defaults.

    Args:
        study: has one data set and at most one set of targets; without targets its first domain is left out.
        trial_seed: number of the trial.

    Raises:
        ValueError: the study is not valid, or its parts cannot work together.
    """
    data = open_data(study, study.datasets[0])
    if study.targets is None:
        study = replace(study, targets=data.domain_names[:1])
    device = study.device_here()
    specs = [plan_run(study.only(method), trial_seed, 0) for method in study.methods]
    return [Subject(spec, data, device, study.weights) for spec in specs]


@dataclass(frozen=True)
class Trace:
    """What a run left while it was trained.

    Attributes:
        recorder: what a `Recorder` measured, as its ``state_dict`` has it.
        path: the trained parameters at the start and at every snapshot, flat, (1 + snapshots, elements).
        path_steps: the steps of the snapshots, the start's 0 included.
        buffers: of the algorithm at the snapshots, such as running statistics.
        state: of the algorithm at the end.
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
        """What the one-step generalization ratios are made of, per measurement."""
        return [StepContributions(*one) for one in self.recorder["contributions"]]


def trace(subject: Subject, folder: Path) -> Trace:
    """Train a run with a recorder, or read what doing so left in a folder; killed, it continues where it stopped.

    It takes the steps that the run takes, bit for bit, without its evaluations; a run whose average of weights ends it
    early is trained to its last step.

    Args:
        subject: the run.
        folder: where the trace is kept.

    Raises:
        ValueError: the algorithm has optimizers of its own, which no recorder can stand beside.
        NonFiniteLossError: training diverged.
        DamagedFileError: a file of the trace cannot be read back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, checkpoint = folder / f"{subject.spec.name}.pt", folder / f"{subject.spec.name}.checkpoint.pt"
    if not file.exists():
        with reproducible():
            content = io.BytesIO()
            torch.save(_Tracing(subject, checkpoint).train(), content)
        write_bytes(file, content.getvalue())
        checkpoint.unlink(missing_ok=True)
    return Trace(**read_saved(file, "delete it to train again"))


class _Tracing:
    def __init__(self, subject: Subject, checkpoint: Path) -> None:
        self.subject, self.checkpoint = subject, checkpoint
        spec = subject.spec
        self.steps = build_steps(spec, subject.data, subject.device, subject.weights)
        self.algorithm = self.steps.algorithm
        if set(self.algorithm.optimizers) != {"all"}:
            raise ValueError(f"{spec.algorithm} steps several optimizers; what is measured follows one")
        self.inputs = Inputs(subject.data, spec, self.algorithm.network.normalisation, subject.device)
        self.recorder = Recorder(
            self.algorithm,
            self.algorithm.optimizers["all"],
            F.cross_entropy,
            self.inputs.fresh_batches,
            unseen=self.inputs.unseen_batch,
            every=-(-spec.steps // MEASUREMENTS),
        )
        self.path: list[Tensor] = []
        self.path_steps: list[int] = []
        self.buffers: list[dict[str, Tensor]] = []
        if checkpoint.exists():
            progress = load_checkpoint(checkpoint, self.algorithm, {"recorder", "path", "path_steps", "buffers"})
            self.recorder.load_state_dict(progress["recorder"])
            self.path, self.path_steps = list(progress["path"]), progress["path_steps"]
            self.buffers = progress["buffers"]
        else:
            self._snapshot(0)

    def _snapshot(self, step: int) -> None:
        parameters = dict(self.algorithm.named_parameters())
        state = self.algorithm.state_dict()
        self.path.append(flat_weights(self.algorithm).cpu())
        self.path_steps.append(step)
        self.buffers.append({name: t.to("cpu", copy=True) for name, t in state.items() if name not in parameters})

    def train(self) -> dict[str, Any]:
        spec = self.subject.spec
        every = -(-spec.steps // SNAPSHOTS)
        self.algorithm.train()
        saved = time.perf_counter()
        taken = self.recorder.step
        optimizer = self.algorithm.optimizers["all"]
        for step in tqdm(
            range(taken + 1, spec.steps + 1), initial=taken, total=spec.steps, unit="step", desc=self.subject.name
        ):
            loss = float(self.steps.take(self.inputs.batches(step), step))
            self.recorder.step = step
            if self.algorithm.optimizers["all"] is not optimizer:  # it started anew, and this step was not recorded
                optimizer = self.algorithm.optimizers["all"]
                self.recorder.follow(optimizer)
            if not math.isfinite(loss):
                raise NonFiniteLossError(f"the loss of {self.subject.name} was {loss} at step {step}")
            if step % every == 0 or step == spec.steps:
                self._snapshot(step)
            if time.perf_counter() - saved > CHECKPOINT_SECONDS:
                save_checkpoint(self.checkpoint, self.algorithm, self._progress())
                saved = time.perf_counter()
        return {**self._progress(), "state": self.algorithm.state_dict()}

    def _progress(self) -> dict[str, Any]:
        return {
            "recorder": self.recorder.state_dict(),
            "path": torch.stack(self.path),
            "path_steps": self.path_steps,
            "buffers": self.buffers,
        }


def traced(study: Study, output: Path, trial_seed: int) -> dict[str, tuple[Subject, Trace]]:
    """Return the runs of a study's methods with their traces, by name; what is missing in the output is trained.

    Args:
        study: as for `figure_subjects`.
        output: the folder of the figures.
        trial_seed: number of the trial.

    Raises:
        ValueError: as `figure_subjects` and `trace`.
    """
    return {one.name: (one, trace(one, output / TRACES_FOLDER)) for one in figure_subjects(study, trial_seed)}
