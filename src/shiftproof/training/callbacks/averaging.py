"""Averages the weights during a training loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from shiftproof.algorithms import Algorithm
from shiftproof.base.randomness import seed_generators, torch_seed
from shiftproof.models import Network
from shiftproof.protocol import best_by_validation, validation_loss
from shiftproof.training.averaging import COEFFICIENTS, SWAD, MovingAverage, State, WiSEFT, build_average, copy_state
from shiftproof.training.callbacks.evaluation import (
    ChosenEvaluation,
    Evaluation,
    TrainedScores,
    score_domains,
    score_part,
    weights_in_place,
)
from shiftproof.training.callbacks.selection import Selection, keep_model
from shiftproof.training.linear_probe import fit_probe
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

    def __init__(self, average: MovingAverage | SWAD, algorithm: Algorithm) -> None:
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
        """Score and save the average; the last weights if it averaged nothing."""
        with loop.progress.timed("evaluation"):
            average = self.average.finish()
            with weights_in_place(loop.algorithm, None if average is None else average.average):
                first = last = loop.progress.step
                if average is not None:
                    first, last = average.first, average.last
                    _estimate_batch_norm(loop)
                _score_and_keep(loop, self._folder, averaged=[first, last])


class Interpolation(Callback):
    """Interpolates between the first and the last weights, and scores and saves what source validation prefers.

    Of coefficients that are equally good it takes the smallest, which keeps most of the first weights.

    Args:
        weights: the first weights.
        folder: the run's folder.
    """

    def __init__(self, weights: WiSEFT, folder: Path) -> None:
        self._weights, self._folder = weights, folder

    def on_end(self, loop: Loop) -> None:
        with loop.progress.timed("evaluation"):
            end = copy_state(full_state(loop.algorithm))
            records = [self._validated(loop, end, coefficient) for coefficient in COEFFICIENTS]
            best = best_by_validation(records, loop.spec.targets, loop.spec.selecting_metric)["coefficient"]
            with weights_in_place(loop.algorithm, self._weights.between(end, best)):
                _score_and_keep(loop, self._folder, averaged=[0, loop.progress.step], coefficient=best)

    def _validated(self, loop: Loop, end: State, coefficient: float) -> dict[str, Any]:
        """Score weights on the held-out parts of the sources alone."""
        names = loop.dataset.domain_names
        with weights_in_place(loop.algorithm, self._weights.between(end, coefficient)):
            scores = {
                names[source]: {"out": score_part(loop, source, "out", loop.progress.step)}
                for source in loop.inputs.sources
            }
        return {"coefficient": coefficient, "domains": scores}


class Reweighting(Callback):
    """Fits the classifier anew to the features of the last weights, classes alike, and scores and saves that.

    Source: deep feature reweighting (Kirichenko et al., "Last Layer Re-Training is Sufficient for Robustness to
    Spurious Correlations", ICLR 2023, arXiv 2204.02937), in its variant that fits training rows. Groups are pairs of a
    domain and a class, which weigh alike where the paper draws subsets of equal size, and the penalty is of the squared
    weights (see `fit_probe`), where the paper's is of the absolute ones.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_end(self, loop: Loop) -> None:
        balanced, step = replace(loop.spec, sampling="balanced"), loop.progress.step
        with weights_in_place(loop.algorithm, copy_state(full_state(loop.algorithm))):
            with loop.progress.timed("step"):
                probe = fit_probe(balanced, loop.algorithm.network, loop.inputs, loop.dataset.domain_names)
            with loop.progress.timed("evaluation"):
                _score_and_keep(loop, self._folder, averaged=[step, step], penalty=probe.penalty)


def keepers(loop: Loop, folder: Path, trained: TrainedScores | None = None) -> list[Callback]:
    """Return the callbacks that score weights and keep a model, as the run's averaging asks for.

    Args:
        loop: the loop whose weights are averaged, before its first step.
        folder: the run's folder.
        trained: scores of the trained weights that other runs need too; None for a run that computes its own.
    """
    if loop.spec.averaging == "dfr":
        return [Evaluation(trained=trained), Reweighting(folder)]
    match average := build_average(loop.spec, full_state(loop.algorithm)):
        case None:
            return [_scoring(loop, trained=trained), Selection(folder)]
        case MovingAverage():
            return [AveragedWeights(average, loop.algorithm), _scoring(loop, average), Selection(folder)]
        case SWAD():
            return [FlatAverage(average, loop.algorithm, folder), Evaluation(trained=trained)]
        case WiSEFT():
            return [Evaluation(trained=trained), Interpolation(average, folder)]


def _scoring(loop: Loop, average: MovingAverage | None = None, trained: TrainedScores | None = None) -> Evaluation:
    """Return what scores a run without an average that does so itself."""
    if loop.first_pass is not None:
        return ChosenEvaluation(loop.first_pass, average)
    return Evaluation(average, trained)


def _score_and_keep(loop: Loop, folder: Path, **averaged: Any) -> None:
    """Add a score of the network in its present state to the curve, with what it averages, and save it."""
    step, loss = loop.progress.step, loop.progress.metrics[-1]["loss"]
    loop.record({"step": step, "loss": loss, "domains": score_domains(loop, whole_targets=True), **averaged})
    keep_model(loop, folder)


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
