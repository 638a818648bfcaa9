"""Trains a run, or several that share their steps: on the source domains, with evaluations, keeping selected models.

A killed run continues where it stopped.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from shiftproof.base.files import write_json
from shiftproof.base.plugins import naming_plugins
from shiftproof.data import DomainDataset
from shiftproof.models import weights_fingerprint
from shiftproof.training.averaging import MOVING, SWADS
from shiftproof.training.callbacks import (
    Checkpoints,
    EndStopped,
    MetricsFile,
    OnProgress,
    OnRecord,
    Predictions,
    ReportEvaluations,
    ReportSteps,
    ResultFile,
    Runs,
    Trackers,
    TrainedScores,
    keepers,
)
from shiftproof.training.checkpoint import held_runs
from shiftproof.training.combinations import check_combination, check_inputs_taken
from shiftproof.training.loop import Loop, NonFiniteLossError
from shiftproof.training.prepared import prepared
from shiftproof.training.ranks import ALONE, Ranks
from shiftproof.training.spec import RunSpec
from shiftproof.training.tracking import Tracking
from shiftproof.training.warm_up import warm_up

CHECKPOINT_FILE = "checkpoint.pt"
METRICS_FILE = "metrics.jsonl"
SPEC_FILE = "spec.json"
ERROR_FILE = "error.txt"


class RunPlace(NamedTuple):
    """A run and where it is written to.

    Attributes:
        spec: the run's spec, which alone determines the result.
        folder: the run's own folder; created if need be.
        tracking: trackers that also receive every evaluation.
    """

    spec: RunSpec
    folder: Path
    tracking: Tracking = Tracking()


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
    run = RunPlace(spec, folder, tracking or Tracking())
    [result] = train_together(
        [run], dataset, device=device, weights=weights, on_progress=on_progress, on_record=on_record, ranks=ranks
    )
    return result


def train_together(
    runs: Sequence[RunPlace],
    dataset: DomainDataset,
    *,
    device: torch.device,
    weights: Path | None = None,
    on_progress: OnProgress = lambda step, loss: None,
    on_record: OnRecord = lambda record: None,
    ranks: Ranks = ALONE,
) -> list[dict[str, Any]]:
    """Train runs that differ only in their averaging, taking every step once, and return their results in order.

    Each result is that of `train`, but for its ``seconds``, the run's share of the time, and ``shared``, the number of
    runs. The checkpoint is in the folder of the run that ends last, and holds all that have not ended; they begin again
    together if it lacks one of them. A run that its average ends early has its result then.

    Args:
        runs: the runs, none of which has ended.
        dataset: as for `train`, as are all others.
        device: the device to train on.
        weights: file of the weights to start from.
        on_progress: called after every step with its number and loss.
        on_record: called with every evaluation of every run.
        ranks: the processes that train the runs.

    Raises:
        DamagedFileError: the checkpoint is damaged.
        ValueError: as for `train`, or the runs differ in more than their averaging.
    """
    if len({run.spec.training for run in runs}) != 1:
        raise ValueError("runs that train together may differ in their averaging only")
    for run in runs:
        check_inputs(run.spec, dataset, weights)
        with naming_plugins(run.spec.plugins):
            check_inputs_taken(run.spec, dataset.kind)
            check_combination(run.spec, len(dataset.domains) - len(run.spec.targets), ranks)
    if ranks.first:
        for run in runs:
            run.folder.mkdir(parents=True, exist_ok=True)
            write_json(run.folder / SPEC_FILE, asdict(run.spec))
    spec = runs[0].spec
    dataset = prepared(spec, dataset)
    in_turn = sorted(runs, key=lambda run: (run.spec.averaging not in SWADS, run.spec.averaging))
    last = in_turn[-1]  # to end, so that a run is left as long as its checkpoint is needed
    with reproducible(), ExitStack() as trackers:
        warm_up(spec, dataset, device, weights, ranks)
        if device.type != "cpu" or ranks.size > 1:
            gc.collect()  # compiled and sharded modules are in reference cycles, and would keep a copy of the weights
        loop = Loop(spec, dataset, device, weights, ranks)
        results = {run.spec.name: ResultFile(run.folder) for run in runs}
        scoring_trained = [run for run in runs if run.spec.averaging not in MOVING]
        trained = TrainedScores() if len(scoring_trained) > 1 else None
        loops = []
        for run in in_turn:
            tracked = trackers.enter_context(closing(Trackers(run.tracking if ranks.first else Tracking(), run.folder)))
            loops.append(beside := loop.beside(run.spec))
            beside.callbacks = [
                *keepers(beside, run.folder, trained),
                Predictions(run.folder),
                MetricsFile(run.folder / METRICS_FILE),
                tracked,
                ReportEvaluations(on_record),
                results[run.spec.name],
            ]
        passed_on, checkpoints = Runs(loops), Checkpoints(last.folder / CHECKPOINT_FILE)
        scored_once = [] if trained is None else [trained]
        loop.callbacks = [ReportSteps(on_progress), *scored_once, passed_on, checkpoints, EndStopped(passed_on)]
        if _continues(last, runs):
            checkpoints.restore(loop)
        with suppress(NonFiniteLossError):  # which the results tell
            loop.run()
    if ranks.first:
        for run in runs:
            (run.folder / ERROR_FILE).unlink(missing_ok=True)
            (run.folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    return [results[run.spec.name].result for run in runs]


def _continues(last: RunPlace, runs: Sequence[RunPlace]) -> bool:
    """Return whether the checkpoint in the folder of the run that ends last holds all of the runs."""
    path = last.folder / CHECKPOINT_FILE
    return not path.exists() or held_runs(path, last.spec.name) >= {run.spec.name for run in runs}


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
