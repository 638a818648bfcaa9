"""What determines the result of a run, and the hash that names it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from shiftproof.base.choices import Averaging, Kind, Precision, SplitRule
from shiftproof.base.hparams import Value, is_finite
from shiftproof.base.method import Method
from shiftproof.base.randomness import seed_hash

RESULTS_VERSION = 6
"""Raised whenever the same spec gives other numbers than before, so that no table mixes the two."""
_LABELS = ("hparam_seed", "variant")
_LATER = ("averaging", "score_targets", "compile", "kind", "normalisation")
"""Fields that are not in the hash at their defaults: runs from before they were added keep their names."""


@dataclass(frozen=True)
class RunSpec:
    """Everything that determines a run's result, and nothing else (no path, no number of workers).

    Attributes:
        dataset: name of the data set.
        data_fingerprint: identifies its content.
        algorithm: what is minimised.
        optimizer: how a step is taken.
        annealer: what happens around a step.
        targets: the domains left out; all others are sources.
        trial_seed: number of the trial; it determines the splits, the start and the batches, so that methods
            are compared in pairs.
        hparam_seed: number of the hyperparameter setting; 0 is the defaults. A label: settings of equal values are
            one run.
        hparams: their values, by "axis.name".
        steps: updates.
        checkpoint_freq: steps between evaluations; the protocol says which step the count starts at.
        model: name of the model.
        image_size: side of the images in pixels; None for the data set's own.
        split: how the held-out images are chosen ("random", "grouped").
        weights: fingerprint of the weights that training starts from; None for a random start.
        accumulate: parts that a batch is split into for its gradient.
        clip_norm: largest norm of the gradient; None for no clipping.
        precision: of the forward passes.
        compile: whether the featurizer is compiled by ``torch.compile``.
        device: type of the device ("cpu", "cuda").
        protocol: dialect of the DomainBed protocol, by its name in `PROTOCOLS`.
        averaging: of the weights over the steps: "none", "swad" or "ema" (see `shiftproof.training.averaging`).
        score_targets: whether the in parts of the targets are scored at every evaluation, as leave-one-domain-out
            validation needs it; else only where a rule reports them.
        kind: of the images, of a folder of one's own; None for the data set's, and in earlier results, in which folders
            were of photographs.
        normalisation: of the images, where it is stated; None for that of the weights file or the model.
        variant: what distinguishes the run's row in a table. A label, as `hparam_seed` is.
        results_version: of the code that trains it, so that tables of earlier results can still be read.

    Raises:
        ValueError: a number is not finite; JSON, in which runs are recorded, could not hold it.
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
    averaging: Averaging = "none"
    score_targets: bool = False
    kind: Kind | None = None
    normalisation: str | None = None
    variant: str = ""
    results_version: int = RESULTS_VERSION

    def __post_init__(self) -> None:
        for name, value in {**vars(self), **self.hparams}.items():
            if isinstance(value, (int, float)) and not is_finite(value):
                raise ValueError(f"{name} must be a finite number, not {value!r}")

    @cached_property
    def name(self) -> str:
        """The hash that names the run's folder."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        facts = {
            name: value
            for name, (value, default) in values.items()
            if name not in _LABELS and not (name in _LATER and value == default)
        }
        text = json.dumps(facts, sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def method(self) -> Method:
        """The row of the table that it belongs to."""
        return Method(self.algorithm, self.optimizer, self.annealer, self.variant)

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
        """The seed of all its random numbers; equal for all methods of one trial and target."""
        return seed_hash(self.dataset, self.targets, self.trial_seed)

    def axis(self, axis: str) -> dict[str, Any]:
        """Return the hyperparameters of one axis ("optimizer", "algorithm", ...) by their bare names."""
        prefix = f"{axis}."
        return {name.removeprefix(prefix): value for name, value in self.hparams.items() if name.startswith(prefix)}
