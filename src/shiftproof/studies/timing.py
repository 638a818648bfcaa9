"""The cost of a study on this machine: its passes, counted, and its hours, estimated from a few timed steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from shiftproof.algorithms import Batch
from shiftproof.annealing import ANNEALERS
from shiftproof.base.randomness import generator
from shiftproof.data import DATASETS, HOLDOUT_FRACTION, Domain, DomainDataset, read_class_vectors
from shiftproof.models import Cut
from shiftproof.optim import NO_OPTIMIZER, OPTIMIZERS
from shiftproof.protocol import PROTOCOLS
from shiftproof.studies.plan import Grid, Plan
from shiftproof.studies.study import Study
from shiftproof.studies.study_data import class_vectors_of, open_data
from shiftproof.training import Inputs, RunSpec, build_steps

TIMED_PHOTOGRAPHS = 4  # per source domain: enough to see the cost of one, few enough for large networks
LEAST_STEPS, LEAST_SECONDS = 2, 0.3  # that are timed, after one that is not
STAND_IN_IMAGES = 40  # per domain of a data set that is not at hand


@dataclass(frozen=True)
class Cost:
    """The cost of the runs on a data set.

    Attributes:
        dataset: its name.
        at_hand: whether it was available; otherwise images of noise stood in for it.
        runs: number of runs.
        passes: forward and backward passes of all their steps.
        hours: time of all runs one after the other on this machine, without starting and opening data.
    """

    dataset: str
    at_hand: bool
    runs: int
    passes: int
    hours: float


def study_costs(study: Study, plan: Plan, runs: Sequence[RunSpec]) -> list[Cost]:
    """Return the cost of a study's runs on this machine, by data set.

    Runs that differ in their averaging only share their steps, which count once.

    A step is timed once per algorithm and once per optimizer, without annealers. The estimate assumes that these costs
    multiply, and that an annealer's passes, counted at their maximum, cost as much as an optimizer's. Photographs are
    timed with `TIMED_PHOTOGRAPHS` per domain, and the time is scaled to a run's number of images.

    Args:
        study: the study.
        plan: its plan.
        runs: the runs to count: all of the plan or the missing ones.
    """
    costs: list[Cost] = []
    timed: dict[Hashable, float] = {}  # data sets whose images have the same size share timings
    for grid, key in zip(plan, study.datasets, strict=True):
        mine = [spec for spec in runs if spec.dataset == grid.dataset]
        data = open_data(study, key) if grid.at_hand else _stand_in(key, grid, class_vectors_of(study))
        meter = _Meter(study, grid, data, timed)
        trained = list({spec.training: spec for spec in mine}.values())
        shown = partial(tqdm, unit="run", desc=f"timing {key}", leave=False)
        costs.append(
            Cost(
                grid.dataset,
                grid.at_hand,
                len(mine),
                round(sum(_passes(spec, len(grid.domains)) for spec in trained)),
                (sum(map(meter.training, shown(trained))) + sum(map(meter.evaluation, mine))) / 3600,
            )
        )
    return costs


class _Meter:
    """Times the steps of a data set's runs, each kind once."""

    def __init__(self, study: Study, grid: Grid, data: DomainDataset, timed: dict[Hashable, float]) -> None:
        self.study, self.grid, self.data, self.timed = study, grid, data, timed
        self.images = TIMED_PHOTOGRAPHS if data.kind == "photographs" else int(grid.runs[0].hparams["data.batch_size"])

    def evaluation(self, spec: RunSpec) -> float:
        """Return the time of a run's evaluations."""
        return self._evaluated_images(spec) * self._image(spec)

    def training(self, spec: RunSpec) -> float:
        """Return the time of a run's steps."""
        if spec.optimizer == NO_OPTIMIZER:
            return 0.0  # what it takes depends on when it converges
        sources = len(self.grid.domains) - len(spec.targets)
        first = next(one for one in self.grid.methods if one.optimizer != NO_OPTIMIZER)
        base = self._step((first.algorithm, first.optimizer), sources)
        step = self._step((spec.algorithm, first.optimizer), sources)
        step *= self._step((first.algorithm, spec.optimizer), sources) / base
        step *= int(spec.hparams["data.batch_size"]) / self.images
        steps = (
            _passes(spec, len(self.grid.domains)) / OPTIMIZERS[spec.optimizer].passes
        )  # in which annealers' passes fit
        return steps * step

    def _evaluated_images(self, spec: RunSpec) -> float:
        target = self.grid.images * len(spec.targets) / len(self.grid.domains)
        protocol = PROTOCOLS[spec.protocol]
        evaluations = protocol.evaluations(spec.steps, spec.checkpoint_freq)
        whole = spec.score_targets or protocol.oracle == "best"
        times = evaluations if whole else min(evaluations, 2)  # the selected and the last
        rest = (1 - HOLDOUT_FRACTION) * target * times
        return evaluations * HOLDOUT_FRACTION * self.grid.images + rest + spec.all_data * target

    def _step(self, kind: tuple[str, str], sources: int) -> float:
        """Return the seconds of a step."""
        key = (*kind, sources, self.data.input_shape)
        if key not in self.timed:
            spec = next(s for s in self.grid.runs if (s.algorithm, s.optimizer) == kind)
            targets = self.grid.domains[: len(self.grid.domains) - sources]
            hparams = {name: value for name, value in spec.hparams.items() if not name.startswith("annealer.")}
            hparams["data.batch_size"] = self.images
            spec = replace(spec, targets=targets, hparams=hparams, accumulate=1, annealer="none")
            device = self.study.device_here()
            steps = build_steps(spec, self.data, device, self.study.weights_file)
            inputs = Inputs(self.data, spec, steps.algorithm.network.normalisation, device)

            behind_trunk = _random_outputs(steps.cut, inputs.batches(1)) if steps.cut else None

            def take(number: int) -> None:
                float(steps.take(behind_trunk or inputs.batches(number), number))

            self.timed[key] = _median_time(take)
        return self.timed[key]

    def _image(self, spec: RunSpec) -> float:
        """Return the seconds of evaluating one image."""
        key = ("evaluation", spec.algorithm, self.data.input_shape)
        if key not in self.timed:
            device = self.study.device_here()
            steps = build_steps(spec, self.data, device, self.study.weights_file)
            algorithm = steps.algorithm.eval()
            inputs = Inputs(self.data, spec, algorithm.network.normalisation, device)
            batch = next(inputs.evaluation_batches(0, "in"))
            [(images, _)] = _random_outputs(steps.cut, [batch]) if steps.cut else [batch]
            images = images[: 2 * self.images]

            def predict(_: int) -> None:
                with torch.inference_mode():
                    float(algorithm.predict(images).sum())

            self.timed[key] = _median_time(predict) / len(images)
        return self.timed[key]


def _random_outputs(cut: Cut, batches: Sequence[Batch]) -> list[Batch]:
    """Return batches of random numbers in the shape of what a trunk puts out, which would take long to compute."""
    return [(images.new_empty(len(images), *cut.shape).uniform_(), labels) for images, labels in batches]


def _passes(spec: RunSpec, domains: int) -> float:
    """Return the passes of a run, with the most that its annealer, and a second pass on all data, can take."""
    if spec.optimizer == NO_OPTIMIZER:
        return 0
    passes = OPTIMIZERS[spec.optimizer].passes
    annealer = ANNEALERS[spec.annealer](**spec.axis("annealer"))
    once = spec.steps * passes + annealer.planned_passes(domains - len(spec.targets), spec.steps, passes)
    return 2 * once if spec.all_data else once


def _median_time(work: Callable[[int], None]) -> float:
    """Return the median time of a call in seconds, on one thread, as in runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        work(1)
        times: list[float] = []
        while len(times) < LEAST_STEPS or sum(times) < LEAST_SECONDS:
            begin = time.perf_counter()
            work(2 + len(times))
            times.append(time.perf_counter() - begin)
    finally:
        torch.set_num_threads(threads)
    return float(np.median(times))


def _stand_in(key: str, grid: Grid, class_vectors: Path | None) -> DomainDataset:
    """Return images of noise in the form of a data set that is not at hand."""
    outline, spec = DATASETS[key].outline, grid.runs[0]
    assert outline is not None and spec.image_size is not None  # noqa: S101, PT018  (it was planned by them)
    random = generator("stand-in", key)
    shape = (STAND_IN_IMAGES, 3, spec.image_size, spec.image_size)
    domains = tuple(
        Domain(
            name,
            random.integers(0, 256, shape, dtype=np.uint8),
            random.integers(0, outline.classes, STAND_IN_IMAGES, dtype=np.int64),
        )
        for name in grid.domains
    )
    vectors = None if class_vectors is None else read_class_vectors(class_vectors)
    classes = tuple(map(str, range(outline.classes))) if vectors is None else vectors.classes
    return DomainDataset(grid.dataset, domains, classes, "photographs", spec.data_fingerprint, class_vectors=vectors)


def plan_text(study: Study, plan: Plan, costs: Sequence[Cost], cores: int) -> str:
    """Return a plan and its costs for a terminal."""
    lines = []
    for grid, cost in zip(plan, costs, strict=True):
        where = "" if cost.at_hand else " (not at hand here: timed on images of noise)"
        lines.append(
            f"{cost.dataset}{where}: {cost.runs:,} runs, {cost.passes:,} passes, {_hours(cost.hours)} one by one"
        )
        lines.append(f"  methods ({len(grid.methods)}): {'; '.join(map(str, grid.methods))}")
        lines.append(f"  targets ({len(grid.columns)}): {', '.join(grid.targets)}")
        lines.append("  " + "; ".join(f"{name} {value}" for name, value in grid.terms.items()))
    runs, passes, hours = (sum(getattr(cost, name) for cost in costs) for name in ("runs", "passes", "hours"))
    settings = "1 setting" if study.hparam_trials == 1 else f"{study.hparam_trials} settings"
    per = "per data set" if study.tune == "shared" else "per target and trial"
    lines.append(f"every method: {settings} {per}, chosen by {study.selection[0]}")
    lines.append(
        f"in all: {runs:,} runs, {passes:,} passes, {_hours(hours)} one by one, "
        f"at least {_hours(hours / cores)} on the {cores} cores here"
    )
    return "\n".join(lines)


def _hours(hours: float) -> str:
    return f"{60 * hours:.1f} minutes" if hours < 2 else f"{hours:,.1f} hours"
