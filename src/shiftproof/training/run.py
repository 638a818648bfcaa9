"""Trains a run, or several that share their steps: on the source domains, with evaluations, keeping selected models.

A killed run continues where it stopped.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
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
from shiftproof.training.first_pass import FIRST_PASS, FirstPass, read_first_pass
from shiftproof.training.loop import Loop, NonFiniteLossError
from shiftproof.training.prepared import prepared
from shiftproof.training.ranks import ALONE, Ranks
from shiftproof.training.result import RESULT_FILE, read_result
from shiftproof.training.spec import RunSpec
from shiftproof.training.tracking import Tracking
from shiftproof.training.warm_up import warm_up

CHECKPOINT_FILE = "checkpoint.pt"
"""The state that an interrupted run continues from; deleted when the run ends."""
METRICS_FILE = "metrics.jsonl"
"""One evaluation per line, written while the run trains."""
SPEC_FILE = "spec.json"
"""The specification of the run."""
ERROR_FILE = "error.txt"
"""The traceback of a run that broke."""


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
        on_progress: called after every step with its number and loss; in a run on all data, which trains twice, numbers
            begin again.
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

    Runs on all data train twice: first as the same runs without, in a folder `FIRST_PASS` of each one's own, then from
    the start on all rows of the sources, each up to the step that validation chose in its first pass. There it is
    scored once, and its result has that evaluation alone; ``steps``, ``passes`` and ``seconds`` are of both passes.

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
    train_pass = partial(
        _train_pass,
        dataset=dataset,
        device=device,
        weights=weights,
        on_progress=on_progress,
        on_record=on_record,
        ranks=ranks,
    )
    if runs[0].spec.all_data:
        return _train_on_all_data(runs, train_pass)
    return train_pass(runs, {})


def _train_on_all_data(
    runs: Sequence[RunPlace], train_pass: Callable[..., list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Train the first passes of runs on all data, unless they have ended, then the second ones, and return the results.

    A run whose first pass diverged fails with its error.
    """
    _write_specs(runs)
    firsts = {run.spec.name: _first_pass(run) for run in runs}
    results = {name: read_result(place.folder) for name, place in firsts.items()}
    if left := [name for name, result in results.items() if result is None]:
        results |= zip(left, train_pass([firsts[name] for name in left], {}), strict=True)
    passed: dict[str, FirstPass] = {}
    for run in runs:
        result = results[run.spec.name]
        assert result is not None  # noqa: S101  (it was read or trained)
        if result["status"] == "failed":
            results[run.spec.name] = failed = {**result, "spec": asdict(run.spec)}
            write_json(run.folder / RESULT_FILE, failed)
            (run.folder / ERROR_FILE).unlink(missing_ok=True)
        else:
            passed[run.spec.name] = read_first_pass(run.spec, firsts[run.spec.name].folder, result)
    if going := [run for run in runs if run.spec.name in passed]:
        results |= zip(passed, train_pass(going, passed), strict=True)
    return [result for result in results.values() if result is not None]


def _first_pass(run: RunPlace) -> RunPlace:
    """Return the first pass of a run on all data as a run of its own."""
    tracking = run.tracking
    return RunPlace(
        replace(run.spec, all_data=False),
        run.folder / FIRST_PASS,
        replace(tracking, folder=tracking.folder or run.folder, tags={**tracking.tags, "pass": "first"}),
    )


def _write_specs(runs: Sequence[RunPlace]) -> None:
    for run in runs:
        run.folder.mkdir(parents=True, exist_ok=True)
        write_json(run.folder / SPEC_FILE, asdict(run.spec))


def _train_pass(
    runs: Sequence[RunPlace],
    passed: Mapping[str, FirstPass],
    *,
    dataset: DomainDataset,
    device: torch.device,
    weights: Path | None,
    on_progress: OnProgress,
    on_record: OnRecord,
    ranks: Ranks,
) -> list[dict[str, Any]]:
    """Train runs that have been checked, as `train_together` does, or the second pass of those on all data.

    Args:
        runs: the runs.
        passed: the first passes of runs on all data, by the runs' names.
        dataset: as for `train_together`, as are all others.
        device: the device to train on.
        weights: file of the weights to start from.
        on_progress: called after every step with its number and loss.
        on_record: called with every evaluation of every run.
        ranks: the processes that train the runs.
    """
    if ranks.first:
        _write_specs(runs)
    spec = runs[0].spec
    dataset = prepared(spec, dataset)
    ends = {name: first.chosen["step"] for name, first in passed.items()}
    in_turn = sorted(
        runs, key=lambda run: (ends.get(run.spec.name, 0), run.spec.averaging not in SWADS, run.spec.averaging)
    )
    last = in_turn[-1]  # to end, so that a run is left as long as its checkpoint is needed
    with reproducible(), ExitStack() as trackers:
        warm_up(spec, dataset, device, weights, ranks)
        if device.type != "cpu" or ranks.size > 1:
            gc.collect()  # compiled and sharded modules are in reference cycles, and would keep a copy of the weights
        loop = Loop(spec, dataset, device, weights, ranks, passed.get(spec.name))
        results = {run.spec.name: ResultFile(run.folder) for run in runs}
        scoring_trained = [run for run in runs if run.spec.averaging not in MOVING]
        trained = TrainedScores() if len(scoring_trained) > 1 else None
        loops = []
        for run in in_turn:
            tracked = trackers.enter_context(closing(Trackers(run.tracking if ranks.first else Tracking(), run.folder)))
            loops.append(beside := loop.beside(run.spec))
            beside.first_pass = passed.get(run.spec.name)
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
    """Check that data set, class vectors and weights are those that a run was planned with.

    Raises:
        ValueError: they are not.
    """
    found = None if weights is None else weights_fingerprint(weights)
    if (dataset.fingerprint, found) != (spec.data_fingerprint, spec.weights):
        raise ValueError("the data set or the weights file are not those that the run was planned with")
    vectors = None if dataset.class_vectors is None else dataset.class_vectors.fingerprint
    if vectors != spec.class_vectors:
        raise ValueError("the class vectors of the data set are not those that the run was planned with")


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
