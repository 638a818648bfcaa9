"""Scores the weights during a training loop, at the steps that its dialect sets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from shiftproof.algorithms import Algorithm
from shiftproof.base.sharding import local_part
from shiftproof.protocol import PROTOCOLS
from shiftproof.training.averaging import MovingAverage, State, copy_state
from shiftproof.training.evaluation import evaluate
from shiftproof.training.first_pass import FirstPass
from shiftproof.training.inputs import Part
from shiftproof.training.loop import Callback, Loop, NonFiniteLossError
from shiftproof.training.ranks import full_state, load_full_state

PARTS: tuple[Part, ...] = ("in", "out")


class TrainedScores(Callback):
    """Scores the trained weights for all runs that share the steps, where several would do so."""

    def __init__(self) -> None:
        self._scores: dict[str, dict[str, Any]] = {}
        self._outputs: dict[tuple[int, Part], Tensor] = {}

    def on_pause(self, loop: Loop) -> None:
        if loop.is_evaluation_due:
            with loop.progress.timed("evaluation"):
                self._outputs = {}
                self._scores = score_domains(loop, _whole_targets(loop))

    def on_outputs(self, loop: Loop, step: int, domain: int, part: Part, outputs: Tensor) -> None:
        self._outputs[domain, part] = outputs

    def passed_to(self, loop: Loop) -> dict[str, dict[str, Any]]:
        """Return the scores, and pass the outputs to the callbacks of a run, as if it had computed them."""
        for (domain, part), outputs in self._outputs.items():
            loop.pass_outputs(loop.progress.step, domain, part, outputs)
        return deepcopy(self._scores)  # a run adds to its own


class Evaluation(Callback):
    """Scores only the parts that selection rules read: all held-out parts, and at the end the rest of the target.

    Args:
        average: a moving average whose weights are scored instead of the trained ones; None for the trained ones.
        trained: scores of the trained weights that other runs need too; None to compute them.
    """

    name = "losses"

    def __init__(self, average: MovingAverage | None = None, trained: TrainedScores | None = None) -> None:
        self._average, self._trained = average, trained
        self._losses: list[float] = []  # of the steps since the last evaluation

    def on_loss(self, loop: Loop, step: int, loss: float) -> None:
        self._losses.append(loss)

    def on_pause(self, loop: Loop) -> None:
        if loop.is_evaluation_due:
            with loop.progress.timed("evaluation"):
                self._evaluate(loop)

    def _evaluate(self, loop: Loop) -> None:
        _check_finite(loop)
        _check_heads(loop)
        mean_loss = math.fsum(self._losses) / len(self._losses)
        self._losses = []
        with weights_in_place(loop.algorithm, None if self._average is None else self._average.average):
            loop.record({"step": loop.progress.step, "loss": mean_loss, "domains": self._score(loop)})

    def _score(self, loop: Loop) -> dict[str, dict[str, Any]]:
        return self._trained.passed_to(loop) if self._trained else score_domains(loop, _whole_targets(loop))

    def state_dict(self) -> list[float]:
        return self._losses

    def load_state_dict(self, state: list[float]) -> None:
        self._losses = state


class ChosenEvaluation(Evaluation):
    """Scores a second pass once, after the step that validation chose in the first, and stops there.

    Only the targets are scored. The sources keep the scores and outputs of the first pass, because the second has
    trained on their held-out parts.

    Args:
        first: the first pass.
        average: as in `Evaluation`.
    """

    def __init__(self, first: FirstPass, average: MovingAverage | None = None) -> None:
        super().__init__(average)
        self._first = first

    def on_start(self, loop: Loop) -> None:
        loop.stopped = bool(loop.progress.metrics)

    def on_pause(self, loop: Loop) -> None:
        if loop.progress.step == self._first.chosen["step"]:
            super().on_pause(loop)
            loop.stopped = True
        elif loop.is_evaluation_due:
            self._losses = []  # so that the recorded loss is of the same steps as in the first pass

    def _score(self, loop: Loop) -> dict[str, dict[str, Any]]:
        (_, chosen, kept), step = self._first, loop.progress.step
        scores: dict[str, dict[str, Any]] = {}
        for domain, name in enumerate(loop.dataset.domain_names):
            if domain in loop.inputs.targets:
                scores[name] = {part: score_part(loop, domain, part, step) for part in PARTS}
                continue
            scores[name] = chosen["domains"][name]
            if kept is not None:
                loop.pass_outputs(step, domain, "out", torch.from_numpy(kept.part(step, name, "out").outputs))
        return scores


def _whole_targets(loop: Loop) -> bool:
    """Return whether the evaluation that is due scores the in parts of the targets too."""
    spec, protocol = loop.spec, PROTOCOLS[loop.spec.protocol]
    last = loop.progress.step == protocol.last_evaluated(spec.steps, spec.checkpoint_freq)
    return last or spec.score_targets or protocol.oracle == "best"


def _check_finite(loop: Loop) -> None:
    finite = torch.stack([local_part(p.detach()).isfinite().all() for p in loop.algorithm.parameters()]).all()
    if not loop.ranks.all(finite):
        raise NonFiniteLossError(f"the weights were not finite after step {loop.progress.step}")


def _check_heads(loop: Loop) -> None:
    """Raise RuntimeError if the heads, which every rank trains separately, have diverged between ranks."""
    if loop.ranks.size > 1 and not loop.ranks.sharded:
        inside = set(loop.algorithm.network.featurizer.parameters())
        heads = [p.detach().double().sum() for p in loop.algorithm.parameters() if p not in inside]
        loop.ranks.check_same("the weights of their heads", torch.stack(heads).sum())


def score_domains(loop: Loop, whole_targets: bool) -> dict[str, dict[str, Any]]:
    """Score the held-out parts of all domains, by domain and part.

    Args:
        loop: the loop whose network is scored in its present state.
        whole_targets: whether to score the in parts of the targets too.
    """
    scores: dict[str, dict[str, Any]] = {}
    for domain, name in enumerate(loop.dataset.domain_names):
        parts = PARTS if whole_targets and domain in loop.inputs.targets else PARTS[1:]
        scores[name] = {part: score_part(loop, domain, part, loop.progress.step) for part in parts}
    return scores


def score_part(loop: Loop, domain: int, part: Part, step: int) -> dict[str, Any]:
    """Score one part of a domain and return the scores as `evaluate` does.

    Args:
        loop: the loop whose network is scored in its present state.
        domain: index of the domain.
        part: the part.
        step: the step after which the network had this state.
    """
    batches = loop.inputs.evaluation_batches(domain, part, loop.progress.step)
    loop.algorithm.eval()
    network, classes = loop.algorithm.network, len(loop.dataset.classes)
    passed = partial(loop.pass_outputs, step, domain, part)
    score = evaluate(loop.algorithm.predict, batches, classes, loop.spec.precision, network.task, network.loss, passed)
    loop.algorithm.train()
    return score


@contextmanager
def weights_in_place(algorithm: Algorithm, state: State | None) -> Iterator[None]:
    """Replace the trained weights by others during a ``with`` block; None keeps them."""
    if state is None:
        yield
        return
    reached = copy_state(full_state(algorithm))
    load_full_state(algorithm, state)
    yield
    load_full_state(algorithm, reached)
