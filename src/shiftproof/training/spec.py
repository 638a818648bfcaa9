"""The specification of a run, which determines its result, and the hash that names the run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from shiftproof.base.choices import (
    Averaging,
    Cache,
    ClassWeights,
    Combination,
    Kind,
    Precision,
    Sampling,
    Schedule,
    SplitRule,
    Task,
)
from shiftproof.base.hparams import Value, is_finite
from shiftproof.base.method import Method
from shiftproof.base.randomness import seed_hash
from shiftproof.protocol import DEFAULT_METRIC

RESULTS_VERSION = 6
"""Increment it when code gives other numbers for the same spec, so that no table mixes the two (or `_VERSIONS`)."""
_VERSIONS = {"miro": 7, "adrmx": 7}
"""Later versions, of algorithms whose numbers alone changed."""
_VERSIONS_WITH_CLASS_WEIGHTS = {"rsc": 7, "sagnet": 7}
"""The same where the loss weighs classes."""
_LABELS = ("hparam_seed", "variant", "plugins")
_LATER = (
    "averaging",
    "score_targets",
    "compile",
    "kind",
    "normalisation",
    "task",
    "metric",
    "sampling",
    "class_weights",
    "augmentation",
    "trained",
    "views",
    "cache",
    "schedule",
    "warm_up",
    "layer_decay",
    "l2_sp",
    "members",
    "all_data",
    "class_vectors",
)
"""Fields left out of the hash at their defaults, so that runs made before these fields existed keep their names."""


def results_version(algorithm: str, class_weights: ClassWeights = "none") -> int:
    """Return the number of the code that gives today's numbers of an algorithm."""
    changed = _VERSIONS | (_VERSIONS_WITH_CLASS_WEIGHTS if class_weights == "balanced" else {})
    return changed.get(algorithm, RESULTS_VERSION)


@dataclass(frozen=True)
class RunSpec:
    """Everything that determines a run's result, and nothing else (no path, no number of workers).

    Attributes:
        dataset: name of the data set.
        data_fingerprint: hash of its content.
        algorithm: name of the algorithm, which defines what is minimised.
        optimizer: name of the optimizer, which takes the steps.
        annealer: name of the annealer, which acts around every step.
        targets: the domains left out; all others are sources.
        trial_seed: number of the trial. It determines the splits, the initial weights and the batches, so that methods
            can be compared in pairs.
        hparam_seed: number of the hyperparameter setting; 0 is the defaults. It is a label outside the hash: settings
            with equal values are one run.
        hparams: values of the hyperparameters, by "axis.name".
        steps: number of updates.
        checkpoint_freq: steps between evaluations; the protocol determines where the count starts.
        model: name of the model.
        image_size: side of the images in pixels; None for the data set's own.
        split: how the held-out images are chosen ("random", "grouped").
        weights: fingerprint of the weights that training starts from; None for a random start.
        accumulate: number of parts that a batch is split into for its gradient.
        clip_norm: norm that the gradient is clipped to; None for no clipping.
        precision: precision of the forward passes.
        compile: whether ``torch.compile`` compiles the featurizer.
        device: type of the device ("cpu", "cuda").
        protocol: dialect of the DomainBed protocol, by its name in `PROTOCOLS`.
        averaging: which weights are scored and kept: "none", the trained ones, or an average of
            `shiftproof.training.averaging`. Of a run that is not trained, how its members are combined (see
            `shiftproof.training.combining`).
        score_targets: whether the in parts of the targets are scored at every evaluation, for leave-one-domain-out
            validation; else only at steps that a rule reports.
        kind: kind of the inputs in a user's folder or table; None for published data sets, and in earlier results,
            whose folders held photographs.
        normalisation: normalisation of the images, if stated; None for that of the weights file or the model.
        task: what is predicted.
        sampling: whether batches draw every row of a domain alike ("uniform") or every class of it ("balanced").
        class_weights: whether the loss weights classes by the inverse of their share of the training rows ("balanced").
        augmentation: how photographs are changed at random in training, by its name in `AUGMENTATIONS`.
        trained: what is trained of the network: "all", "head", "blocks:N" or a pattern (see `freeze_all_but`).
        views: number of fixed augmentations of each picture that training draws from; 0 for a new one every time.
        cache: type in which the outputs of the frozen trunk are kept and read in the place of pictures ("none",
            "float16", "float32").
        schedule: course of the learning rate over the steps (see `shiftproof.training.schedules`).
        warm_up: number of steps over which the learning rate rises to its value.
        layer_decay: factor of the learning rate from a block of the featurizer to the one before (see
            `shiftproof.training.layer_rates`).
        l2_sp: strength of the penalty on the featurizer's distance from its start (see
            `shiftproof.training.start_penalty`).
        members: names of the finished runs that it combines; empty for a run that is trained. All else is as in the
            first of them.
        all_data: whether a second pass from the same start, on all rows of the sources, follows a first whose
            validation chooses its number of steps, and is what is scored and kept (see
            `shiftproof.training.first_pass`).
        class_vectors: fingerprint of the file of given vectors of the classes, which features are compared with; None
            for a classifier that trains.
        metric: the measure by which the kept model is selected; None for the task's default.
        plugins: digests of the plug-ins that its parts are of, by name. It is a label outside the hash, so that another
            version of a plug-in continues a study; the runs of the version before are told.
        variant: name of the variant in tables. It is a label outside the hash, like `hparam_seed`.
        results_version: the `results_version` of the code that trains it, so that earlier results stay readable.

    Raises:
        ValueError: a number is not finite, so that the JSON record of the run could not hold it.
    """

    dataset: str
    data_fingerprint: str
    algorithm: str
    optimizer: str
    annealer: str
    targets: tuple[str, ...]
    trial_seed: int
    hparam_seed: int
    hparams: dict[str, Value]
    steps: int
    checkpoint_freq: int
    model: str
    image_size: int | None = None
    split: SplitRule = "random"
    weights: str | None = None
    accumulate: int = 1
    clip_norm: float | None = None
    precision: Precision = "float32"
    device: str = "cpu"
    protocol: str = "shiftproof"
    compile: bool = False
    averaging: Averaging | Combination = "none"
    score_targets: bool = False
    kind: Kind | None = None
    normalisation: str | None = None
    task: Task = "classification"
    metric: str | None = None
    sampling: Sampling = "uniform"
    class_weights: ClassWeights = "none"
    augmentation: str = "standard"
    trained: str = "all"
    views: int = 0
    cache: Cache = "none"
    schedule: Schedule = "constant"
    warm_up: int = 0
    layer_decay: float = 1.0
    l2_sp: float = 0.0
    members: tuple[str, ...] = ()
    all_data: bool = False
    class_vectors: str | None = None
    plugins: dict[str, str] = field(default_factory=dict)
    variant: str = ""
    results_version: int = RESULTS_VERSION

    def __post_init__(self) -> None:
        for name, value in {**vars(self), **self.hparams}.items():
            if isinstance(value, (int, float)) and not is_finite(value):
                raise ValueError(f"{name} must be a finite number, not {value!r}")

    @cached_property
    def name(self) -> str:
        """The hash that names the run's folder."""
        values = {one.name: (getattr(self, one.name), one.default) for one in fields(self)}
        facts = {
            name: value
            for name, (value, default) in values.items()
            if name not in _LABELS and not (name in _LATER and value == default)
        }
        text = json.dumps(facts, sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def training(self) -> str:
        """The hash of what is trained, which runs share that differ in their averaging only."""
        return replace(self, averaging="none").name

    @property
    def selecting_metric(self) -> str:
        """The measure by which the kept model is selected."""
        return self.metric or DEFAULT_METRIC[self.task]

    @property
    def method(self) -> Method:
        """The row of the table that it belongs to."""
        return Method(self.algorithm, self.optimizer, self.annealer, self.variant, self.averaging)

    @property
    def numbers(self) -> str:
        """The numbers of its trial and its setting, as its label ends in them."""
        return f"trial {self.trial_seed}, setting {self.hparam_seed}"

    def label(self, *, dataset: bool = False) -> str:
        """Return what people call it, as in "erm + sam, 2x on sketch, trial 0, setting 0".

        Args:
            dataset: whether the data set is named, as in "erm + sam, 2x on PACS, sketch, trial 0, setting 0".
        """
        where = f"{self.dataset}, " if dataset else ""
        return f"{self.method} on {where}{'+'.join(self.targets)}, {self.numbers}"

    @property
    def seed(self) -> int:
        """The seed of all its random numbers, the same for all methods of one trial and target."""
        return seed_hash(self.dataset, self.targets, self.trial_seed)

    def axis(self, axis: str) -> dict[str, Any]:
        """Return the hyperparameters of one axis ("optimizer", "algorithm", ...) by their bare names."""
        prefix = f"{axis}."
        return {name.removeprefix(prefix): value for name, value in self.hparams.items() if name.startswith(prefix)}
