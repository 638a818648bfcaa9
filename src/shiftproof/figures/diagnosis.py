"""Diagnoses of a finished run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from shiftproof.algorithms import ALGORITHMS
from shiftproof.annealing import ANNEALERS
from shiftproof.base.files import with_home
from shiftproof.base.plugins import import_plugins, naming_plugins
from shiftproof.base.registry import Registry, RemovedNameError, UnknownNameError
from shiftproof.data import DATASETS, TableFile, is_feature_set
from shiftproof.diagnostics import best_projection
from shiftproof.figures.balance import balance_history, draw_balance
from shiftproof.figures.embedding import check_classes, draw_embedding, embeddings
from shiftproof.figures.flatness import draw_flatness, flatness
from shiftproof.figures.landscape import draw_paths
from shiftproof.figures.osgr import draw_osgr, draw_osgr_of_moments, snapshot_moments
from shiftproof.figures.traces import DIAGNOSTICS_FOLDER, TRACES_FOLDER, Subject, Trace, check_stepped, trace
from shiftproof.models import HUB, hub_weights
from shiftproof.optim import OPTIMIZERS
from shiftproof.studies import open_data_of, read_run_spec
from shiftproof.training import SPEC_FILE, RunSpec, load, read_result, state_digest
from shiftproof.training.averaging import check_trained_alone


def diagnose(
    run: Path,
    what: Sequence[str],
    *,
    data_dir: Path | None = None,
    table: TableFile | None = None,
    weights: Path | None = None,
    class_vectors: Path | None = None,
    device: str = "cpu",
) -> list[Path]:
    """Measure and draw quantities of a finished run into ``diagnostics`` in its folder; return the files.

    Flatness and features are those of the model that the run selected. For OSGR, balance and path, the run is trained
    again in the same steps with a recorder. If this does not reach the same weights, for example with other versions
    of libraries, there is a warning.

    Args:
        run: the run's folder.
        what: names in `DIAGNOSES`.
        data_dir: folder that holds its data set, unless embedded.
        table: the table that it was trained on, if any, with the same meaning of its columns.
        weights: file of the weights that it started from, if any; "hub" for the published ones of its model.
        class_vectors: file of the vectors of its classes, if it was given any.
        device: the device to measure on.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: a name is unknown, the run has not finished, data or weights are not the run's, the run would have
            to be trained again and its optimizer has been removed, or a diagnosis is not one of its task.
    """
    for name in what:
        if name not in DIAGNOSES:
            raise UnknownNameError("diagnosis", name, list(DIAGNOSES))
    if not (run / SPEC_FILE).exists():
        raise FileNotFoundError(f"{run} holds no run: there is no {SPEC_FILE} in it")
    result = read_result(run)
    if result is None or result["status"] != "finished":
        raise ValueError(f"{run} holds a run that {'has not ended' if result is None else 'failed'}")
    spec = read_run_spec(run, "train the run again")
    check_trained_alone(spec)
    if spec.all_data:
        raise ValueError(f"{run} was trained on all data: no image of its sources is held out to measure on")
    if spec.weights is not None and weights is None:
        raise ValueError(f"{run} started from given weights: name their file")
    if spec.class_vectors is not None and class_vectors is None:
        raise ValueError(f"{run} was given vectors of the classes: name their file")
    import_plugins()
    if weights == HUB:
        weights = hub_weights(spec.model)
    if spec.plugins:
        encoded = data_dir is not None and is_feature_set(with_home(data_dir))
        _check_parts(spec, own_data=encoded or spec.kind is not None)
    check_stepped(spec)
    data = open_data_of(run, spec, data_dir, table, class_vectors)
    subject = Subject(spec, data, torch.device(device), weights)
    subject.check()
    if "embedding" in what:
        check_classes(subject)  # before anything is trained
    diagnosed = _Diagnosed(run, subject, result.get("weights_sha256"))
    return [path for name in what for path in DIAGNOSES[name](diagnosed)]


def _check_parts(spec: RunSpec, own_data: bool) -> None:
    """Raise PluginError if a part of the run is of a plug-in that was not imported; data of the user's are of none."""
    parts: list[tuple[Registry[Any], str]] = [
        (ALGORITHMS, spec.algorithm),
        (OPTIMIZERS, spec.optimizer),
        (ANNEALERS, spec.annealer),
    ]
    if not own_data:
        parts.append((DATASETS, spec.dataset))
    with naming_plugins(spec.plugins):
        for registry, name in parts:
            registry[name]


class _Diagnosed:
    """A run with the results that several diagnoses share."""

    def __init__(self, run: Path, subject: Subject, digest: str | None) -> None:
        self.run, self.subject, self._digest = run, subject, digest
        self.output = run / DIAGNOSTICS_FOLDER
        self._trace: Trace | None = None

    def trace(self) -> Trace:
        if self._trace is None:
            try:
                self._trace = trace(self.subject, self.run / TRACES_FOLDER)
            except RemovedNameError as error:
                raise ValueError(
                    f"{self.run} cannot be trained again: {error}. Sharpness and embedding need no training"
                ) from error
            if state_digest(self._trace.state) != self._digest:
                warnings.warn(
                    f"training {self.run} again did not reach the same weights: other versions or another machine, or "
                    "an average of weights that ended the run early",
                    stacklevel=2,
                )
        return self._trace


def _osgr(of: _Diagnosed) -> list[Path]:
    subject, traced = of.subject, of.trace()
    moments = {subject.name: snapshot_moments(subject, traced)}
    return [
        *draw_osgr({subject.name: traced}, of.output, subject.setting),
        *draw_osgr_of_moments(moments, subject.images_per_step, of.output, subject.setting),
    ]


def _balance(of: _Diagnosed) -> list[Path]:
    subject = of.subject
    return draw_balance({subject.name: balance_history(subject, of.trace())}, of.output, subject.setting)


def _sharpness(of: _Diagnosed) -> list[Path]:
    subject = of.subject
    network = load(of.run).network.to(subject.device)
    return draw_flatness({subject.name: flatness(subject, network)}, of.output, subject.setting)


def _landscape(of: _Diagnosed) -> list[Path]:
    return draw_paths(of.subject, {of.subject.name: of.trace()}, of.output)


def _embedding(of: _Diagnosed) -> list[Path]:
    network = load(of.run).network.to(of.subject.device)
    method = best_projection()
    found = {of.subject.name: embeddings(of.subject, network, method)}
    return draw_embedding(of.subject, found, of.output, method)


DIAGNOSES: dict[str, Callable[[_Diagnosed], list[Path]]] = {
    "osgr": _osgr,
    "balance": _balance,
    "sharpness": _sharpness,
    "landscape": _landscape,
    "embedding": _embedding,
}
"""The diagnoses of a finished run, by name."""
