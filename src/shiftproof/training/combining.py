"""Combines the models of finished runs: the mean of their weights, or of their predictions.

Sources: the mean of all weights, and of those that validation takes one by one, are DiWA's (Rame et al., "Diverse
Weight Averaging for Out-of-Distribution Generalization", NeurIPS 2022, arXiv 2205.09739), there "uniform" and
"restricted"; the second is the greedy soup of Wortsman et al., "Model soups", ICML 2022 (arXiv 2203.05482).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from shiftproof.algorithms import Batch
from shiftproof.base.choices import Combination, Task
from shiftproof.base.files import write_json, write_json_lines
from shiftproof.data import DomainDataset
from shiftproof.models import Loss, freeze_all_but, loss_of
from shiftproof.protocol import PROTOCOLS, best_by_validation, select
from shiftproof.training.averaging import State
from shiftproof.training.build import kept_cut
from shiftproof.training.constant import constant_scores
from shiftproof.training.evaluation import evaluate
from shiftproof.training.inputs import Inputs, Part
from shiftproof.training.kept_predictions import PREDICTIONS_BYTES, write_kept
from shiftproof.training.prepared import PreparedDataset, prepared
from shiftproof.training.progress import Progress
from shiftproof.training.result import RESULT_FILE, state_digest, versions
from shiftproof.training.run import METRICS_FILE, SPEC_FILE, reproducible
from shiftproof.training.saved_model import SavedModel, describe_ensemble, load, read_weights, save_model
from shiftproof.training.spec import RunSpec


class Member(NamedTuple):
    """A finished run that a combination is made of.

    Attributes:
        spec: the run's spec.
        folder: the run's folder, which holds its model.
        result: its result.
    """

    spec: RunSpec
    folder: Path
    result: dict[str, Any]


def combined_spec(way: Combination, members: Sequence[RunSpec], trial: int | None = None) -> RunSpec:
    """Return the spec of a combination: that of its first member but for the way, the members and the numbers.

    Args:
        way: how they are combined.
        members: the runs to combine, in order.
        trial: number of the trial that it stands for in tables; None for that of the first member.
    """
    return replace(
        members[0],
        averaging=way,
        members=tuple(one.name for one in members),
        hparam_seed=0,
        trial_seed=members[0].trial_seed if trial is None else trial,
    )


def combine(
    spec: RunSpec, members: Sequence[Member], dataset: DomainDataset, folder: Path, device: torch.device
) -> dict[str, Any]:
    """Combine finished runs, score the result, and keep it in a folder as if it were a run; return its result.

    The domains are split as the first member's were, and scored as at the end of a run: held-out parts, and the rest of
    the targets. The result has the sums of the members' seconds and passes, and of the greedy way the names that it
    ``took``. An average is kept as a model; an ensemble has none.

    Args:
        spec: the combination's spec, as `combined_spec` makes it.
        members: its members, in order. Those of an average have networks of one architecture, and prepare inputs alike.
        dataset: the data set that they were trained on.
        folder: the folder to write to; created if need be.
        device: the device to compute on.

    Raises:
        ValueError: the data set is not the members'.
        DamagedFileError: a member's model cannot be read.
        CacheError: the outputs of the members' trunk were kept, are gone and cannot be kept again.
    """
    if dataset.fingerprint != spec.data_fingerprint:
        raise ValueError(f"the data set {spec.dataset} is not the one that the runs were trained on")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SPEC_FILE, asdict(spec))
    progress = Progress(step=max(member.result.get("steps", member.spec.steps) for member in members))
    scorer = _Scorer(members[0].spec, dataset, device, progress.step)
    with reproducible(), progress.timed("evaluation"):
        how = {"diwa": _average, "diwa_greedy": _greedy_average, "ensemble": _ensemble}[spec.averaging]
        scores, facts = how(scorer, members, folder)
        scorer.keep(folder, scores)
    results = [member.result for member in members]
    loss = math.fsum(one["metrics"][-1]["loss"] for one in results) / len(results)
    record = {"step": progress.step, "loss": loss, "domains": scores.domains}
    write_json_lines(folder / METRICS_FILE, [record])
    seconds = [progress.seconds, *(one["seconds"] for one in results)]
    shared = max(one.get("shared", 1) for one in results)
    result = {
        "spec": asdict(spec),
        "status": "finished",
        "error": None,
        "steps": progress.step,
        "seconds": {work: sum(one.get(work, 0.0) for one in seconds) for work in progress.seconds},
        **({"shared": shared} if shared > 1 else {}),
        "passes": sum(one["passes"] for one in results),
        "devices": 1,
        **facts,
        "versions": versions(spec),
        "metrics": [record],
        "constant": constant_scores(members[0].spec, dataset),
    }
    write_json(folder / RESULT_FILE, result)
    return result


Parts = Sequence[tuple[int, Part]]


class _Scores(NamedTuple):
    """Scores by domain and part as in a `Record`, and the outputs that they are of."""

    domains: dict[str, dict[str, Any]]
    outputs: dict[tuple[int, Part], Tensor]


class _Scorer:
    """Scores predictions on parts of the domains, split as in one run.

    Args:
        spec: that run's spec.
        dataset: the data set.
        device: the device to compute on.
        step: the step at which evaluations are made.
    """

    def __init__(self, spec: RunSpec, dataset: DomainDataset, device: torch.device, step: int) -> None:
        self.spec, self.device, self._raw, self._step = spec, device, dataset, step
        self.dataset = prepared(spec, dataset)
        self.inputs = Inputs(self.dataset, spec, None, device)  # of no model: it knows the rows of the parts
        targets: list[tuple[int, Part]] = [(domain, "in") for domain in self.inputs.targets]
        self.held_out: Parts = [(domain, "out") for domain in self.inputs.sources]
        everywhere: list[tuple[int, Part]] = [(domain, "out") for domain in range(len(dataset.domains))]
        self.all_parts: Parts = sorted(targets + everywhere)

    def score(self, model: SavedModel, parts: Parts, member: RunSpec) -> _Scores:
        """Score a model on inputs prepared as a run prepared them."""
        network, spec = model.network, replace(self.spec, hparams=member.hparams, device=self.device.type)
        freeze_all_but(network, spec.trained)
        behind = kept_cut(spec, network, self.device)  # all members have one trunk, whose outputs are kept
        inputs = Inputs(prepared(member, self._raw), spec, network.normalisation, self.device, cut=behind)
        batches = partial(inputs.evaluation_batches, step=self._step)
        return self._scores(model if behind is None else behind.rest, batches, parts, network.loss)

    def score_outputs(self, outputs: Mapping[tuple[int, Part], Tensor]) -> _Scores:
        """Score outputs that are there already."""

        def batches(domain: int, part: Part) -> Iterable[Batch]:
            targets = self.dataset.domains[domain].targets[self.inputs.rows(domain, part)]
            yield outputs[domain, part], torch.from_numpy(targets)

        quantity = self.dataset.quantity if isinstance(self.dataset, PreparedDataset) else None
        return self._scores(lambda given: given, batches, list(outputs), loss_of(self.dataset.task, quantity))

    def _scores(
        self,
        predict: Callable[[Tensor], Tensor],
        batches: Callable[[int, Part], Iterable[Batch]],
        parts: Parts,
        loss: Loss,
    ) -> _Scores:
        scores = _Scores({}, {})
        classes, precision, task = len(self.dataset.classes), self.spec.precision, self.dataset.task
        for domain, part in parts:
            keep = partial(scores.outputs.__setitem__, (domain, part))
            score = evaluate(predict, batches(domain, part), classes, precision, task, loss, keep)
            scores.domains.setdefault(self.dataset.domain_names[domain], {})[part] = score
        return scores

    def keep(self, folder: Path, scores: _Scores) -> None:
        """Keep outputs in a folder as a run keeps its own, unless they are too large."""
        kind = torch.float32 if self.dataset.task == "regression" else torch.float16
        kept = {part: outputs.to(kind).numpy() for part, outputs in scores.outputs.items()}
        if sum(outputs.nbytes for outputs in kept.values()) <= PREDICTIONS_BYTES:
            write_kept(folder, self.dataset, self.inputs, {self._step: kept})

    def save(self, folder: Path, model: SavedModel) -> None:
        """Keep a model in a folder as a run keeps its own."""
        spec, network = self.spec, model.network
        weights = network.state_dict()
        save_model(folder, network, weights, spec.model, spec.algorithm, self.dataset, spec.axis("model"))


_Made = tuple[_Scores, dict[str, Any]]
"""What a way makes: its scores, and what else its result says."""


def _average(scorer: _Scorer, members: Sequence[Member], folder: Path) -> _Made:
    total = reduce(add_weights, (read_weights(member.folder) for member in members), State())
    return _averaged(scorer, members[0], total, len(members), folder)


def _greedy_average(scorer: _Scorer, members: Sequence[Member], folder: Path) -> _Made:
    """Take members in the order of their validation, each if that of the average does not fall."""
    spec, model = scorer.spec, load(members[0].folder).to(scorer.device)
    total, took, best = State(), list[str](), dict[str, Any]()
    for member in sorted(members, key=_validation, reverse=True):
        candidate = add_weights(total, read_weights(member.folder))
        model.network.load_state_dict(mean_weights(candidate, len(took) + 1))
        record = {"domains": scorer.score(model, scorer.held_out, spec).domains}
        if not took or best_by_validation([record, best], spec.targets, spec.selecting_metric) is record:
            total, best = candidate, record
            took.append(member.spec.name)
    scores, facts = _averaged(scorer, members[0], total, len(took), folder)
    return scores, {**facts, "took": took}


def _averaged(scorer: _Scorer, member: Member, total: State, count: int, folder: Path) -> _Made:
    """Keep and score the network of a member with the mean of weights."""
    model = load(member.folder).to(scorer.device)
    model.network.load_state_dict(mean_weights(total, count))
    scorer.save(folder, model)
    digest = state_digest(model.network.state_dict())
    return scorer.score(model, scorer.all_parts, scorer.spec), {"weights_sha256": digest}


def _ensemble(scorer: _Scorer, members: Sequence[Member], folder: Path) -> _Made:
    means: dict[tuple[int, Part], MeanPrediction] = defaultdict(lambda: MeanPrediction(scorer.dataset.task))
    for member in members:
        model = load(member.folder).to(scorer.device)
        for part, outputs in scorer.score(model, scorer.all_parts, member.spec).outputs.items():
            means[part].add(outputs)
    describe_ensemble(folder, [member.spec.name for member in members])
    return scorer.score_outputs({part: mean.outputs.float() for part, mean in means.items()}), {}


def _validation(member: Member) -> float:
    """Return the validation score of the model that a run kept, higher the better."""
    spec = member.spec
    metrics, protocol = member.result["metrics"], PROTOCOLS[spec.protocol]
    chosen = select("training_domain", metrics, spec.targets, protocol, metric=spec.selecting_metric)
    return -math.inf if chosen is None or chosen["validation"] is None else float(chosen["validation"])


def add_weights(total: State, weights: Mapping[str, Tensor]) -> State:
    """Return a sum of weights and buffers with others added, in float64; an empty sum has none.

    Integer buffers stay those of the first. Statistics of batch norms are averaged as weights are: those of frozen ones
    are equal, as DiWA keeps them.
    """
    if not total:
        return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    return {
        name: tensor + weights[name].double() if tensor.is_floating_point() else tensor
        for name, tensor in total.items()
    }


def mean_weights(total: State, count: int) -> State:
    """Return a sum of `add_weights` divided by the number of its terms."""
    return {name: tensor / count if tensor.is_floating_point() else tensor for name, tensor in total.items()}


class MeanPrediction:
    """The mean of what several models predict for the same inputs: of probabilities, or in a regression of values.

    It adds up in float64, and probabilities by their logarithms, so that the smallest are not lost.

    Args:
        task: what is predicted.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._total: Tensor | None = None
        self._count = 0

    def add(self, outputs: Tensor) -> None:
        """Add the outputs of a model: logits (n, classes), or in a regression values of any shape."""
        terms = outputs.double()
        if self._task == "classification":
            terms = F.log_softmax(terms, dim=1)
        elif self._task == "multilabel":
            terms = torch.stack([F.logsigmoid(terms), F.logsigmoid(-terms)])
        plus = torch.add if self._task == "regression" else torch.logaddexp
        self._total = terms if self._total is None else plus(self._total, terms)
        self._count += 1

    @property
    def outputs(self) -> Tensor:
        """The mean, as logits where it is of probabilities.

        Raises:
            ValueError: nothing was added.
        """
        if self._total is None:
            raise ValueError("nothing was added")
        if self._task == "regression":
            return self._total / self._count
        logarithms = self._total - math.log(self._count)
        return logarithms if self._task == "classification" else logarithms[0] - logarithms[1]
