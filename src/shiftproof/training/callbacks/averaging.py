"""Averages the weights during a training loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from shiftproof.algorithms import Algorithm
from shiftproof.base.randomness import seed_generators, torch_seed
from shiftproof.models import Network
from shiftproof.protocol import validation_loss
from shiftproof.training.averaging import EMA, SWAD, build_average
from shiftproof.training.callbacks.evaluation import score_domains, weights_in_place
from shiftproof.training.callbacks.selection import keep_model
from shiftproof.training.loop import Callback, Loop
from shiftproof.training.ranks import full_state

BATCH_NORM_STEPS = 500
"""Number of training batches from which SWAD's code re-estimates batch norms."""


class AveragedWeights(Callback):
    """Adds the weights after every update to an average.

    Args:
        average: the average.
        algorithm: the algorithm whose weights are averaged.
    """

    name = "average"

    def __init__(self, average: EMA | SWAD, algorithm: Algorithm) -> None:
        self.average = average
        self._algorithm = algorithm

    def on_update(self, loop: Loop) -> None:
        with loop.progress.timed("step"):
            self.average.update(full_state(loop.algorithm), loop.progress.step)

    def state_dict(self) -> dict[str, Any]:
        return self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state, self._algorithm.state_dict())


class FlatAverage(AveragedWeights):
    """Averages as SWAD does, stops training when SWAD's average ends, and scores and saves the average.

    Args:
        average: the average, which also needs the validation losses.
        algorithm: the algorithm whose weights are averaged.
        folder: the run's folder.
    """

    average: SWAD

    def __init__(self, average: SWAD, algorithm: Algorithm, folder: Path) -> None:
        super().__init__(average, algorithm)
        self._folder = folder

    def on_start(self, loop: Loop) -> None:
        loop.stopped = self.average.dead

    def on_evaluation(self, loop: Loop, record: dict[str, Any]) -> None:
        if "averaged" not in record:  # records with it are evaluations of the average itself
            self.average.evaluated(validation_loss(record, loop.spec.targets))
            loop.stopped = self.average.dead

    def on_end(self, loop: Loop) -> None:
        """Add a score of the average to the curve and save the average; the last weights if it averaged nothing."""
        step, metrics = loop.progress.step, loop.progress.metrics
        with loop.progress.timed("evaluation"):
            average = self.average.finish()
            with weights_in_place(loop.algorithm, None if average is None else average.average):
                first, last = step, step
                if average is not None:
                    first, last = average.first, average.last
                    _estimate_batch_norm(loop)
                scores = score_domains(loop, whole_targets=True)
                loss = metrics[-1]["loss"]
                loop.record({"step": step, "loss": loss, "domains": scores, "averaged": [first, last]})
                keep_model(loop, self._folder)


def averaging_callback(loop: Loop, folder: Path) -> AveragedWeights | None:
    """Build the callback for the average that a run asks for; None if it asks for none.

    Args:
        loop: the loop whose weights are averaged, before its first step.
        folder: the run's folder.
    """
    average = build_average(loop.spec, full_state(loop.algorithm))
    if isinstance(average, SWAD):
        return FlatAverage(average, loop.algorithm, folder)
    return None if average is None else AveragedWeights(average, loop.algorithm)


@contextmanager
def _frozen_statistics_kept(network: Network) -> Iterator[None]:
    """Make frozen batch norms keep their statistics, even if they are told to reset them."""
    modules = [module for part in network.frozen for module in part.modules()]
    norms = [module for module in modules if isinstance(module, _BatchNorm) and module.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _estimate_batch_norm(loop: Loop) -> None:
    """Re-estimate batch norms, unless they are frozen, from the training batches that would come next."""
    network, spec, step = loop.algorithm.network, loop.spec, loop.progress.step
    if network.freeze_batch_norm:
        return
    seed_generators(torch_seed(spec.seed, "batch norm"), loop.device)
    following = range(step + 1, step + 1 + min(BATCH_NORM_STEPS, spec.steps))
    images = (torch.cat([images for images, _ in loop.inputs.batches(one)]) for one in following)
    with (
        torch.autocast(loop.device.type, torch.bfloat16, enabled=spec.precision == "bf16"),
        _frozen_statistics_kept(network),
    ):
        update_bn(images, network)
