"""Saves the model of the step with the highest validation score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shiftproof.protocol import best_by_validation
from shiftproof.training.averaging import State, copy_state
from shiftproof.training.callbacks.evaluation import score_part, weights_in_place
from shiftproof.training.loop import Callback, Loop
from shiftproof.training.ranks import full_state
from shiftproof.training.saved_model import save_model


class Selection(Callback):
    """Saves the model of the evaluation with the best training-domain validation score, the earliest on a tie.

    It writes the files only at the end, so that they never mix with files that another process left in the folder.

    Args:
        folder: the run's folder.
    """

    name = "selected"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._weights: State = {}

    def on_evaluation(self, loop: Loop, record: dict[str, Any]) -> None:
        if _selected(loop) is record:
            self._weights = copy_state(full_state(loop.algorithm))

    def on_end(self, loop: Loop) -> None:
        with loop.progress.timed("evaluation"):
            self._score_targets(loop)
        with loop.progress.timed("checkpoints"):
            self._keep(loop)

    def on_divergence(self, loop: Loop) -> None:
        self._keep(loop)

    def _score_targets(self, loop: Loop) -> None:
        """Score the selected step on whole targets; once at the end is cheaper than at every evaluation."""
        record = _selected(loop)
        with weights_in_place(loop.algorithm, self._weights):
            for domain in loop.inputs.targets:
                scores = record["domains"][loop.dataset.domain_names[domain]]
                if "in" not in scores:  # the last step has been scored on it
                    scores["in"] = score_part(loop, domain, "in", record["step"])

    def _keep(self, loop: Loop) -> None:
        if self._weights:
            with weights_in_place(loop.algorithm, self._weights):
                keep_model(loop, self._folder)

    def state_dict(self) -> State:
        return self._weights

    def load_state_dict(self, state: State) -> None:
        self._weights = state


def _selected(loop: Loop) -> dict[str, Any]:
    return best_by_validation(loop.progress.metrics, loop.spec.targets, loop.spec.selecting_metric)


def keep_model(loop: Loop, folder: Path) -> None:
    """Write the network of a loop in its present state into a run's folder."""
    network, spec, cut = loop.algorithm.network, loop.spec, loop.steps.cut
    weights = full_state(network)
    if cut is not None:
        trunk = {f"featurizer.{name}": tensor for name, tensor in cut.network.featurizer.state_dict().items()}
        weights = {**trunk, **weights}
    if loop.ranks.first:
        save_model(folder, network, weights, spec.model, spec.algorithm, loop.dataset, spec.axis("model"))
