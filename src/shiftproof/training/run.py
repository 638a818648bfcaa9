"""One run: train on the source domains, evaluate, keep the selected model. A killed run continues where it stopped."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shiftproof import __version__
from shiftproof.base.files import DamagedFileError, read_json, write_json
from shiftproof.base.plugins import naming_plugins
from shiftproof.data import DomainDataset
from shiftproof.models import weights_fingerprint
from shiftproof.training.callbacks import (
    Checkpoints,
    MetricsFile,
    OnProgress,
    OnRecord,
    Predictions,
    ReportEvaluations,
    ReportSteps,
    Trackers,
    keepers,
)
from shiftproof.training.combinations import check_combination, check_inputs_taken
from shiftproof.training.constant import constant_scores
from shiftproof.training.loop import Loop, NonFiniteLossError
from shiftproof.training.prepared import prepared
from shiftproof.training.ranks import ALONE, Ranks, full_state
from shiftproof.training.recorded import check_result
from shiftproof.training.spec import RunSpec
from shiftproof.training.tracking import Tracking
from shiftproof.training.warm_up import warm_up

CHECKPOINT_FILE = "checkpoint.pt"
METRICS_FILE = "metrics.jsonl"
RESULT_FILE = "result.json"
SPEC_FILE = "spec.json"
ERROR_FILE = "error.txt"
VERSIONED = ("torch", "torchvision", "timm", "numpy", "pillow")
"""Packages whose versions are recorded with a result."""
RESULT_REMEDY = "delete it to train this run again"


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

    A run that diverges returns a result with status "failed", because training it again would diverge again. Any
    other error is raised.

    Args:
        spec: the run's spec, which alone determines the result.
        dataset: the data set that the spec names.
        folder: the run's own folder; created if need be.
        device: the device to train on.
        weights: file of the weights to start from.
        on_progress: called after every step with its number and loss.
        on_record: called with every evaluation.
        tracking: trackers that also receive every evaluation; None for none.
        ranks: the processes that train the run. Each calls this with its own device; all call ``on_progress`` and
            ``on_record``, and the first writes files and trackers. A different number of processes can continue it.

    Raises:
        DamagedFileError: the folder holds a damaged checkpoint.
        ValueError: a part of the spec is not valid or its parts cannot work together, data set or weights are not the
            spec's, or a tracker is unknown or not installed.
    """
    check_inputs(spec, dataset, weights)
    with naming_plugins(spec.plugins):
        check_inputs_taken(spec, dataset.kind)
        check_combination(spec, len(dataset.domains) - len(spec.targets), ranks)
    dataset = prepared(spec, dataset)
    if ranks.first:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SPEC_FILE, asdict(spec))
    tracked = tracking if tracking is not None and ranks.first else Tracking()
    with reproducible(), closing(Trackers(tracked, folder)) as trackers:
        warm_up(spec, dataset, device, weights, ranks)
        if device.type != "cpu" or ranks.size > 1:
            gc.collect()  # compiled and sharded modules are in reference cycles, and would keep a copy of the weights
        loop = Loop(spec, dataset, device, weights, ranks)
        checkpoints = Checkpoints(folder / CHECKPOINT_FILE)
        loop.callbacks = [
            ReportSteps(on_progress),
            *keepers(loop, folder),
            Predictions(folder),
            MetricsFile(folder / METRICS_FILE),
            trackers,
            ReportEvaluations(on_record),
            checkpoints,
        ]
        checkpoints.restore(loop)
        try:
            loop.run()
            result = _result(loop, "finished", None)
        except NonFiniteLossError as diverged:
            result = _result(loop, "failed", str(diverged))
    if ranks.first:
        (folder / ERROR_FILE).unlink(missing_ok=True)
        write_json(folder / RESULT_FILE, result)
        (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    return result


def _result(loop: Loop, status: str, error: str | None) -> dict[str, Any]:
    steps = loop.steps
    return {
        "spec": asdict(loop.spec),
        "status": status,
        "error": error,
        "steps": loop.progress.step,
        "seconds": loop.progress.seconds,
        "passes": steps.passes + steps.annealer.extra_passes,
        "annealer": steps.annealer.report(),
        "devices": loop.ranks.size,
        "weights_sha256": state_digest(full_state(loop.algorithm)),
        "versions": {
            "shiftproof": __version__,
            **{name: installed_version(name) for name in VERSIONED},
            **{name: digest[:8] for name, digest in loop.spec.plugins.items()},
        },
        "metrics": loop.progress.metrics,
        "constant": constant_scores(loop.spec, loop.dataset),
    }


def check_inputs(spec: RunSpec, dataset: DomainDataset, weights: Path | None) -> None:
    """Check that data set and weights are those that a run was planned with.

    Raises:
        ValueError: they are not.
    """
    found = None if weights is None else weights_fingerprint(weights)
    if (dataset.fingerprint, found) != (spec.data_fingerprint, spec.weights):
        raise ValueError("the data set or the weights file are not those that the run was planned with")


@contextmanager
def reproducible() -> Iterator[None]:
    """Compute on one thread, so that the number of workers affects no result, and with deterministic convolutions."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            yield
    finally:
        torch.set_num_threads(threads)


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of all tensors of a state, in order, as hexadecimal digits."""
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
