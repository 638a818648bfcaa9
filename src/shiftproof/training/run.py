"""One run: train on the source domains, evaluate, keep the selected model; killed, it continues where it stopped."""

from __future__ import annotations

import gc
import hashlib
import io
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from importlib.metadata import version as installed_version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from shiftproof import __version__
from shiftproof.algorithms import ALGORITHMS, Algorithm
from shiftproof.annealing import ANNEALERS
from shiftproof.data import DomainDataset
from shiftproof.domain_gradients import domain_similarities
from shiftproof.files import DamagedFileError, read_json, write_json, write_json_lines
from shiftproof.models import build_network, weights_fingerprint
from shiftproof.optim.registry import OPTIMIZERS
from shiftproof.optim.sharding import local_part
from shiftproof.randomness import seed_generators, torch_seed
from shiftproof.training.averaging import EMA, SWAD, Segment, State, build_average, copy_state
from shiftproof.training.checkpoint import load_checkpoint, save_checkpoint
from shiftproof.training.combinations import check_combination
from shiftproof.training.evaluation import evaluate, training_domain_validation, validation_loss
from shiftproof.training.inputs import Inputs, Part
from shiftproof.training.optimizer_factory import RunOptimizers
from shiftproof.training.parallel import ALONE, Ranks, full_state, load_full_state, split_over_ranks
from shiftproof.training.protocol import PROTOCOLS
from shiftproof.training.recorded import check_result
from shiftproof.training.saved_model import save_model
from shiftproof.training.spec import RunSpec
from shiftproof.training.step import StepBuilder
from shiftproof.training.tracking import Tracking, track

CHECKPOINT_FILE = "checkpoint.pt"
METRICS_FILE = "metrics.jsonl"
RESULT_FILE = "result.json"
SPEC_FILE = "spec.json"
ERROR_FILE = "error.txt"
CHECKPOINT_SECONDS = 60.0
STEPS_BETWEEN_READS = {"cpu": 1, "cuda": 20}
"""How often the host looks at the losses, for which it waits for a GPU, between evaluations; 1 for other devices."""
BATCH_NORM_STEPS = 500
"""Training batches that SWAD's code re-estimates batch norms from."""
VERSIONED = ("torch", "torchvision", "timm", "numpy", "pillow")
"""Packages that stand beside a result with their versions."""
_PROGRESS = {"step", "seconds", "evaluated", "annealer", "metrics", "losses", "selected"}
RESULT_REMEDY = "delete it to train this run again"

OnProgress = Callable[[int, float], None]
"""Called after every step with its number and loss."""

OnRecord = Callable[[dict[str, Any]], None]
"""Called after every evaluation with its record, as the run's metrics hold it."""


class NonFiniteLossError(RuntimeError):
    """Training diverged; the message says at which step."""


def train(
    spec: RunSpec,
    dataset: DomainDataset,
    folder: Path,
    *,
    device: torch.device,
    weights: Path | None = None,
    on_progress: OnProgress = lambda step, loss: None,
    on_record: OnRecord = lambda record: None,
    tracking: Tracking | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Train one run in its folder, from its checkpoint if there is one, and return its result.

    A diverged run returns a result too: it is recorded as failed, because training it again would end alike.
    Any other error is raised.

    Args:
        spec: what determines the result.
        dataset: the data set that the spec names.
        folder: the run's own; created if need be.
        device: where to train.
        weights: file of the weights to start from.
        on_progress: told of every step.
        on_record: told of every evaluation.
        tracking: trackers that every evaluation is written to too; None for none.
        ranks: the processes that train the run; each calls this, with its own device, and the first of them writes
            files and trackers; ``on_progress`` and ``on_record`` are called by all. Any number can continue what any
            other began.

    Raises:
        DamagedFileError: the folder holds a damaged checkpoint.
        ValueError: a part of the spec is not valid or its parts cannot work together, data set or weights are not the
            spec's, or a tracker has no such name or is not installed.
    """
    check_inputs(spec, dataset, weights)
    check_combination(spec, len(dataset.domains) - len(spec.targets), ranks)
    if ranks.first:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SPEC_FILE, asdict(spec))
    with reproducible(), ExitStack() as tracked:
        _warm_up(spec, dataset, device, weights, ranks)
        if device.type != "cpu" or ranks.size > 1:
            gc.collect()  # what is compiled or sharded lies in cycles, and the device would hold the weights twice
        run = _Run(spec, dataset, folder, device, weights, ranks)
        trackers = tracked.enter_context(track(tracking if ranks.first else None, spec, folder, run.metrics))
        try:
            run.train(on_progress, [trackers.write, on_record])
            status, error = "finished", None
        except NonFiniteLossError as diverged:
            status, error = "failed", str(diverged)
            run.keep_selected()
        trackers.end(status)
        result = run.result(status, error)
    if ranks.first:
        (folder / ERROR_FILE).unlink(missing_ok=True)
        write_json(folder / RESULT_FILE, result)
        (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    return result


def check_inputs(spec: RunSpec, dataset: DomainDataset, weights: Path | None) -> None:
    """Raise unless data set and weights are those that a run was planned with.

    Raises:
        ValueError: they are not.
    """
    found = None if weights is None else weights_fingerprint(weights)
    if (dataset.fingerprint, found) != (spec.data_fingerprint, spec.weights):
        raise ValueError("the data set or the weights file are not those that the run was planned with")


@contextmanager
def reproducible() -> Iterator[None]:
    """Compute with one thread, so that the number of workers changes no result, and with fixed convolutions."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            yield
    finally:
        torch.set_num_threads(threads)


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of all tensors of a state, in their order."""
    digest = hashlib.sha256()
    for tensor in state.values():
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return the result of the run in a folder, or None if it has not ended.

    Raises:
        DamagedFileError: the result cannot be read.
    """
    path = folder / RESULT_FILE
    if not path.exists():
        return None
    result: dict[str, Any] = read_json(path, RESULT_REMEDY)
    try:
        check_result(result)
    except ValueError as error:
        raise DamagedFileError(path, str(error), RESULT_REMEDY) from error
    return result


def build_steps(
    spec: RunSpec, dataset: DomainDataset, device: torch.device, weights: Path | None, ranks: Ranks = ALONE
) -> StepBuilder:
    """Build what takes a run's steps: network, algorithm, optimizers and annealer, as functions of the spec alone.

    Args:
        spec: what determines the run.
        dataset: the data set that the spec names.
        device: where to train.
        weights: file of the weights to start from.
        ranks: the processes that train the run.

    Raises:
        ValueError: a part of the spec is not valid, the weights do not fit, or the network cannot be split over ranks.
    """
    algorithm = build_algorithm(spec, dataset, device, weights, ranks)
    algorithm.build_optimizers(RunOptimizers(spec.optimizer, spec.seed, spec.axis("optimizer")))
    return StepBuilder(
        algorithm,
        ANNEALERS[spec.annealer](seed=spec.seed, **spec.axis("annealer")),
        spec.seed,
        create_graph=OPTIMIZERS[spec.optimizer].needs_graph,
        accumulate=spec.accumulate,
        clip_norm=spec.clip_norm,
        precision=spec.precision,
    )


def build_algorithm(
    spec: RunSpec, dataset: DomainDataset, device: torch.device, weights: Path | None, ranks: Ranks = ALONE
) -> Algorithm:
    """Build a run's network and algorithm as they start, without optimizers: also of runs whose optimizer was removed.

    The arguments and errors are those of `build_steps`.
    """
    protocol = PROTOCOLS[spec.protocol]
    network = build_network(
        spec.model,
        dataset.image_shape,
        len(dataset.classes),
        dropout=spec.axis("model")["dropout"],
        weights=weights,
        seed=torch_seed(spec.seed, "start"),
        freeze_batch_norm=protocol.freeze_batch_norm,
        zero_classifier=protocol.zero_classifier,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(torch_seed(spec.seed, "algorithm"))
        sources = len(dataset.domains) - len(spec.targets)
        algorithm = ALGORITHMS[spec.algorithm](network, sources, **spec.axis("algorithm"))
        # FSDP2 shards no weights with the channels last
        algorithm.to(device).to(memory_format=torch.contiguous_format if ranks.sharded else torch.channels_last)
        if spec.compile:
            algorithm.network.featurizer.compile()
        split_over_ranks(algorithm, ranks)
    return algorithm


def _warm_up(spec: RunSpec, dataset: DomainDataset, device: torch.device, weights: Path | None, ranks: Ranks) -> None:
    """Do once what a run does again and again, with a twin of it, which is thrown away.

    What a process does at the first time alone is then not in the run's seconds: GENIE's kernel, Triton's and those of
    ``torch.compile`` are compiled or loaded, modules imported, libraries of a GPU started.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself will say it
        steps = build_steps(spec, dataset, device, weights, ranks)
        inputs = Inputs(dataset, spec, steps.algorithm.network.normalisation, device, ranks)
        steps.algorithm.train()
        batches = inputs.batches(1)
        float(steps.take(batches, 1))
        if spec.annealer != "none" and len(batches) > 1:  # it may compare domains, and later than in the first step
            losses = [partial(steps.algorithm.domain_loss, batches, domain) for domain in range(len(batches))]
            domain_similarities([p for p in steps.algorithm.parameters() if p.requires_grad], losses)
        some = islice(inputs.evaluation_batches(inputs.sources[0], "out"), 1)
        # of two sizes: what is compiled for one first is then compiled for any
        sizes = ((images[:n], labels[:n]) for images, labels in some for n in (len(images), -1) if len(images[:n]))
        steps.algorithm.eval()
        evaluate(steps.algorithm.predict, sizes, len(dataset.classes), spec.precision)
        torch.save(full_state(steps.algorithm), io.BytesIO())


class _Run:
    def __init__(
        self,
        spec: RunSpec,
        dataset: DomainDataset,
        folder: Path,
        device: torch.device,
        weights: Path | None,
        ranks: Ranks,
    ) -> None:
        self.spec, self.dataset, self.folder = spec, dataset, folder
        self.device, self.ranks = device, ranks
        self.steps = build_steps(spec, dataset, device, weights, ranks)
        self.algorithm = self.steps.algorithm
        self.protocol = PROTOCOLS[spec.protocol]
        self.inputs = Inputs(dataset, spec, self.algorithm.network.normalisation, device, ranks)
        self.average = build_average(spec, full_state(self.algorithm))
        self.metrics: list[dict[str, Any]] = []
        self.listeners: Sequence[OnRecord] = ()
        self.losses: list[float] = []  # since the last evaluation
        self.unread: list[Tensor] = []  # losses of the last steps, where the host does not wait for every one
        self.selected: State = {}  # the algorithm's state at the step with the highest validation
        self.step = 0
        self.seconds = dict.fromkeys(("data", "step", "evaluation", "checkpoints"), 0.0)
        self._resume()

    def _resume(self) -> None:
        if (self.folder / CHECKPOINT_FILE).exists():
            progress = load_checkpoint(self.folder / CHECKPOINT_FILE, self.algorithm, _PROGRESS)
            self.step, self.seconds = progress["step"], progress["seconds"]
            self.metrics, self.losses = progress["metrics"], progress["losses"]
            self.selected = progress["selected"]
            self.steps.evaluated = progress["evaluated"]
            self.steps.annealer.totals = progress["annealer"]
            if self.average is not None:
                self.average.load_state_dict(progress["average"], self.algorithm.state_dict())
        self.ranks.check_same("the step that they continue from", torch.tensor(self.step, device=self.device))
        self._write_metrics()

    def train(self, on_progress: OnProgress, listeners: Sequence[OnRecord]) -> None:
        saved = time.perf_counter()
        self.listeners = listeners
        self.algorithm.train()
        read = STEPS_BETWEEN_READS.get(self.device.type, 1)
        while not self._ended:
            step = self.step + 1
            with self._timed("data"):
                batches = self.inputs.batches(step)
            with self._timed("step"):
                self.unread.append(self.steps.take(batches, step))
                if self.average is not None:
                    self.average.update(full_state(self.algorithm), step)
            self.step = step
            due = self.protocol.evaluated(step, self.spec.steps, self.spec.checkpoint_freq)
            if not due and len(self.unread) < read:
                continue
            self._read_losses(on_progress)
            if due:
                with self._timed("evaluation"):
                    self._evaluate()
            if due or self._long_since(saved):
                with self._timed("checkpoints"):
                    self._save()
                saved = time.perf_counter()
        if self.unread:  # of steps after the last evaluation
            self._read_losses(on_progress)
        with self._timed("evaluation"):
            if isinstance(self.average, SWAD):
                self._score_average(self.average.finish())
            else:
                self._score_selected()
        with self._timed("checkpoints"):
            self.keep_selected()

    def _long_since(self, saved: float) -> bool:
        """Return whether a checkpoint is due, which the clock of the first rank says for all."""
        late = torch.tensor(float(time.perf_counter() - saved > CHECKPOINT_SECONDS), device=self.device)
        return bool(self.ranks.agreed(late))

    def _read_losses(self, on_progress: OnProgress) -> None:
        """Look at the losses of the last steps; the host waits for a GPU here."""
        with self._timed("step"):
            losses = self.ranks.agreed(torch.stack(self.unread)).tolist()
        self.unread = []
        for step, loss in enumerate(losses, self.step - len(losses) + 1):
            if not math.isfinite(loss):
                self.step = step - 1
                raise NonFiniteLossError(f"the loss was {loss} at step {step}")
            self.losses.append(loss)
            on_progress(step, loss)

    @property
    def _ended(self) -> bool:
        return self.step == self.spec.steps or (isinstance(self.average, SWAD) and self.average.dead)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - begin

    @contextmanager
    def _weights(self, state: State | None) -> Iterator[None]:
        """Put other weights in the place of those that are trained, which None leaves."""
        if state is None:
            yield
            return
        reached = copy_state(full_state(self.algorithm))
        load_full_state(self.algorithm, state)
        yield
        load_full_state(self.algorithm, reached)

    def _evaluate(self) -> None:
        """Score only what the selection rules read: all held-out parts, at the end the rest of the target.

        With a moving average its weights are scored and kept.
        """
        finite = torch.stack([local_part(p.detach()).isfinite().all() for p in self.algorithm.parameters()]).all()
        if not self.ranks.all(finite):
            raise NonFiniteLossError(f"the weights were not finite after step {self.step}")
        last = self.step == self.protocol.last_evaluated(self.spec.steps, self.spec.checkpoint_freq)
        whole = last or self.spec.score_targets or self.protocol.oracle == "best"
        self._check_heads()
        mean_loss = math.fsum(self.losses) / len(self.losses)
        self.losses = []
        with self._weights(self.average.average if isinstance(self.average, EMA) else None):
            self._record({"step": self.step, "loss": mean_loss, "domains": self._scores(whole)})
            if isinstance(self.average, SWAD):
                self.average.evaluated(validation_loss(self.metrics[-1], self.spec.targets))
            elif self._selected_record() is self.metrics[-1]:
                self.selected = copy_state(full_state(self.algorithm))

    def _check_heads(self) -> None:
        """Raise RuntimeError where the heads, which every rank trains for itself, have come apart."""
        if self.ranks.size > 1 and not self.ranks.sharded:
            inside = set(self.algorithm.network.featurizer.parameters())
            heads = [p.detach().double().sum() for p in self.algorithm.parameters() if p not in inside]
            self.ranks.check_same("the weights of their heads", torch.stack(heads).sum())

    def _record(self, record: dict[str, Any]) -> None:
        self.metrics.append(record)
        self._write_metrics()
        for listener in self.listeners:
            listener(record)

    def _write_metrics(self) -> None:
        if self.ranks.first:
            write_json_lines(self.folder / METRICS_FILE, self.metrics)

    def keep_selected(self) -> None:
        """Keep the model of the selected step, if there is one.

        At the end and not before: what another process has left of the run's folder is then never half of this one.
        """
        if self.selected:
            with self._weights(self.selected):
                self._keep_model()

    def _keep_model(self) -> None:
        weights = full_state(self.algorithm.network)
        if self.ranks.first:
            save_model(
                self.folder,
                self.algorithm.network,
                weights,
                self.spec.model,
                self.spec.algorithm,
                self.dataset.classes,
                self.dataset.image_shape,
            )

    def _selected_record(self) -> dict[str, Any]:
        """Return the evaluation with the highest training-domain validation, the earliest on a tie."""
        return max(self.metrics, key=lambda record: training_domain_validation(record, self.spec.targets))

    def _score_selected(self) -> None:
        """Score at the selected step what is reported of it: once, at the end, is cheaper than at every step so far."""
        record = self._selected_record()
        with self._weights(self.selected):
            for domain in self.inputs.targets:
                scores = record["domains"][self.dataset.domain_names[domain]]
                if "in" not in scores:  # the last step has it
                    scores["in"] = self._score(domain, "in")
        self._write_metrics()

    def _score_average(self, average: Segment | None) -> None:
        """Score and keep what SWAD averaged, beside the curve; the last weights where it averaged nothing."""
        with self._weights(None if average is None else average.average):
            first, last = self.step, self.step
            if average is not None:
                first, last = average.first, average.last
                self._estimate_batch_norm()
            loss = self.metrics[-1]["loss"]
            scores = self._scores(whole_targets=True)
            self._record({"step": self.step, "loss": loss, "domains": scores, "averaged": [first, last]})
            self._keep_model()

    def _estimate_batch_norm(self) -> None:
        """Take the statistics of batch norms that are not frozen from the training batches that would follow."""
        network = self.algorithm.network
        if network.freeze_batch_norm:
            return
        seed_generators(torch_seed(self.spec.seed, "batch norm"), self.device)
        following = range(self.step + 1, self.step + 1 + min(BATCH_NORM_STEPS, self.spec.steps))
        images = (torch.cat([images for images, _ in self.inputs.batches(step)]) for step in following)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.spec.precision == "bf16"):
            update_bn(images, network)

    def _scores(self, whole_targets: bool) -> dict[str, dict[str, Any]]:
        """Score the held-out parts of all domains; ``whole_targets``: and the in parts of the targets."""
        scores: dict[str, dict[str, Any]] = {}
        for domain, name in enumerate(self.dataset.domain_names):
            parts: tuple[Part, ...] = ("in", "out") if whole_targets and domain in self.inputs.targets else ("out",)
            scores[name] = {part: self._score(domain, part) for part in parts}
        return scores

    def _score(self, domain: int, part: Part) -> dict[str, Any]:
        batches = self.inputs.evaluation_batches(domain, part, self.step)
        self.algorithm.eval()
        score = evaluate(self.algorithm.predict, batches, len(self.dataset.classes), self.spec.precision)
        self.algorithm.train()
        return score

    def _save(self) -> None:
        progress = {
            "step": self.step,
            "seconds": self.seconds,
            "evaluated": self.steps.evaluated,
            "annealer": self.steps.annealer.totals,
            "metrics": self.metrics,
            "losses": self.losses,
            "selected": self.selected,
            "average": None if self.average is None else self.average.state_dict(),
        }
        save_checkpoint(self.folder / CHECKPOINT_FILE, self.algorithm, progress, self.ranks)

    def result(self, status: str, error: str | None) -> dict[str, Any]:
        return {
            "spec": asdict(self.spec),
            "status": status,
            "error": error,
            "steps": self.step,
            "seconds": self.seconds,
            "passes": self.steps.passes + self.steps.annealer.extra_passes,
            "annealer": self.steps.annealer.report(),
            "devices": self.ranks.size,
            "weights_sha256": state_digest(full_state(self.algorithm)),
            "versions": {"shiftproof": __version__, **{name: installed_version(name) for name in VERSIONED}},
            "metrics": self.metrics,
        }
