"""A study: a set of runs, described by a grid of methods, targets, trials and hyperparameter settings."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from shiftproof.algorithms import ALGORITHMS
from shiftproof.annealing import ANNEALERS
from shiftproof.data import DATASETS, SPLIT_RULES, DomainDataset, SplitRule, split_domain
from shiftproof.hparams import Value
from shiftproof.models import Network, build_network, default_image_size, weights_fingerprint
from shiftproof.optim.registry import OPTIMIZERS, SEARCHES, Search
from shiftproof.registry import UnknownNameError
from shiftproof.training import RunSpec, check_device
from shiftproof.training.search import SearchSpace, check_fixed, search_space, setting
from shiftproof.training.spec import PRECISIONS, PROTOCOL, Precision


class Method(NamedTuple):
    """What a table compares: a row of it."""

    algorithm: str
    optimizer: str
    annealer: str = "none"

    def __str__(self) -> str:
        return " + ".join(part for part in self if part != "none")


@dataclass(frozen=True)
class Study:
    """A grid of runs. Every method gets the same targets, trials and number of settings.

    Attributes:
        dataset: name of the data set.
        data_dir: its folder, None for an embedded one.
        algorithms: names of algorithms.
        optimizers: names of optimizers.
        annealers: names of annealers.
        targets: domains left out, one study cell each; None for all. Several joined by "+" are left out together.
        trials: number of trial seeds.
        hparam_trials: settings that every method chooses from, per target and trial, by training-domain validation.
        search: the distributions that settings are drawn from.
        steps: updates per run.
        checkpoint_freq: steps between evaluations; None for a fifth of the steps.
        model: name of the model.
        image_size: side of the images; None for the data set's own or, of photographs, what the model is made for.
        split: how the held-out images of a domain are chosen.
        weights: file of the weights to start from.
        fixed: hyperparameters fixed by hand, by "axis.name"; they leave the search.
        accumulate: parts that a batch is split into.
        clip_norm: largest norm of the gradient.
        precision: of the forward passes.
        device: where to train.

    Raises:
        ValueError: an entry is unknown or out of its range, before anything is trained.
    """

    dataset: str = "rotated_digits"
    data_dir: Path | None = None
    algorithms: tuple[str, ...] = ("erm",)
    optimizers: tuple[str, ...] = ("sgd", "adam", "sam", "genie")
    annealers: tuple[str, ...] = ("none",)
    targets: tuple[str, ...] | None = None
    trials: int = 3
    hparam_trials: int = 1
    search: Search = "short"
    steps: int = 300
    checkpoint_freq: int | None = None
    model: str = "small_conv"
    image_size: int | None = None
    split: SplitRule = "random"
    weights: Path | None = None
    fixed: dict[str, Value] = field(default_factory=dict)
    accumulate: int = 1
    clip_norm: float | None = None
    precision: Precision = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("trials", "hparam_trials", "steps", "accumulate"):
            _check_positive(name, getattr(self, name))
        for name in ("checkpoint_freq", "clip_norm", "image_size"):
            if getattr(self, name) is not None:
                _check_positive(name, getattr(self, name))
        for axis, registry, names in (
            ("algorithm", ALGORITHMS, self.algorithms),
            ("optimizer", OPTIMIZERS, self.optimizers),
            ("annealer", ANNEALERS, self.annealers),
        ):
            if not names:
                raise ValueError(f"name at least one {axis}")
            for name in names:
                registry[name]
            _check_distinct(axis, names)
        if self.search not in SEARCHES:
            raise UnknownNameError("search", self.search, list(SEARCHES))
        check_device(self.device)
        if self.image_size == 1:
            raise ValueError("image_size must be at least 2 pixels, not 1")
        if self.precision not in PRECISIONS:
            raise UnknownNameError("precision", self.precision, list(PRECISIONS))
        if self.split not in SPLIT_RULES:
            raise UnknownNameError("split", self.split, list(SPLIT_RULES))
        photographs = DATASETS[self.dataset].photographs
        check_fixed(self.fixed, [self._space(method, photographs) for method in self.methods])

    @property
    def methods(self) -> list[Method]:
        """The rows of the table; the first is the baseline of the differences."""
        return [
            Method(algorithm, optimizer, annealer)
            for algorithm in self.algorithms
            for annealer in self.annealers
            for optimizer in self.optimizers
        ]

    @cached_property
    def data(self) -> DomainDataset:
        """The data set, opened."""
        data_dir = self.data_dir and self.data_dir.expanduser().absolute()
        return open_dataset(self.dataset, data_dir, self._image_size)

    @property
    def _image_size(self) -> int | None:
        """The side of the images: of photographs what the model is made for, unless it is given."""
        if self.image_size is None and DATASETS[self.dataset].photographs:
            return default_image_size(self.model)
        return self.image_size

    @cached_property
    def _weights_fingerprint(self) -> str | None:
        return None if self.weights is None else weights_fingerprint(self.weights)

    @cached_property
    def target_sets(self) -> list[tuple[str, ...]]:
        """The domains that are left out together, one entry per column of the table.

        Raises:
            ValueError: an unknown domain, or no source domain would be left.
        """
        names = self.data.domain_names
        if len(names) == 1:
            raise ValueError(
                f"{self.data.name} has one domain only, {names[0]}: leaving it out leaves nothing to train on"
            )
        sets = []
        for column in names if self.targets is None else self.targets:
            together = [column] if column in names else column.split("+")
            # in the data set's order, so that one set of targets has one name
            chosen = {self.data.domain_index(name) for name in together}
            if len(chosen) == len(names):
                raise ValueError(f"target {column} leaves no source domain to train on")
            sets.append(tuple(name for i, name in enumerate(names) if i in chosen))
        _check_distinct("target", ["+".join(targets) for targets in sets])
        return sets

    @property
    def terms(self) -> dict[str, Any]:
        """What the study's accuracies depend on, by name."""
        optional = {
            "image size": self._image_size,
            "weights": self.weights and self.weights.name,
            "batch norm": ("frozen" if self.weights else "free") if self.data.photographs else None,
            "classifier start": "zero" if self.weights else None,
            "split": self.split if self.split != "random" else None,
            "accumulate": self.accumulate if self.accumulate > 1 else None,
            "clip norm": self.clip_norm,
            "fixed": ", ".join(f"{name}={value}" for name, value in self.fixed.items()),
        }
        batch_sizes = sorted({int(spec.hparams["data.batch_size"]) for spec in self.runs})
        return {
            "dataset": self.data.name,
            "protocol": PROTOCOL,
            "trials": self.trials,
            "settings per method": self.hparam_trials,
            "search": self.search,
            "steps": self.steps,
            "images per domain and step": " ".join(map(str, batch_sizes)),
            "model": self.model,
            "precision": self.precision,
            "device": self.device,
            **{name: value for name, value in optional.items() if value},
        }

    def _space(self, method: Method, photographs: bool) -> SearchSpace:
        return search_space(self.dataset, photographs, *method, self.search)

    @cached_property
    def runs(self) -> list[RunSpec]:
        """All runs, trial by trial.

        Raises:
            ValueError: a hyperparameter is out of its range, or model and data do not fit.
        """
        specs = [
            self.spec(method, targets, trial, hparam_seed)
            for trial in range(self.trials)
            for targets in self.target_sets
            for hparam_seed in range(self.hparam_trials)
            for method in self.methods
        ]
        self.check_buildable(specs)
        return specs

    def spec(self, method: Method, targets: tuple[str, ...], trial: int, hparam_seed: int) -> RunSpec:
        """Return one run of the study.

        Args:
            method: what to train.
            targets: the domains left out, one of `target_sets`.
            trial: the trial seed.
            hparam_seed: number of the setting; 0 is the defaults.
        """
        space = self._space(method, self.data.photographs)
        return RunSpec(
            dataset=self.data.name,
            data_fingerprint=self.data.fingerprint,
            algorithm=method.algorithm,
            optimizer=method.optimizer,
            annealer=method.annealer,
            targets=targets,
            trial_seed=trial,
            hparam_seed=hparam_seed,
            hparams=setting(space, self.fixed, hparam_seed, trial),
            steps=self.steps,
            checkpoint_freq=self.checkpoint_freq or max(1, self.steps // 5),
            model=self.model,
            image_size=self._image_size,
            split=self.split,
            weights=self._weights_fingerprint,
            accumulate=self.accumulate,
            clip_norm=self.clip_norm,
            precision=self.precision,
            device=torch.device(self.device).type,
        )

    def check_buildable(self, specs: list[RunSpec]) -> None:
        """Split every domain and build each distinct setting once, so that what cannot work fails before training.

        Raises:
            ValueError: a hyperparameter is out of its range, or model and data do not fit.
        """
        if self.split == "grouped" and all(domain.groups is None for domain in self.data.domains):
            raise ValueError(f"{self.data.name} has no groups to split by: no two of its files show one photograph")
        for i, domain in enumerate(self.data.domains):
            split_domain(domain, self.split, 0, i)
        networks: dict[Any, Network] = {}
        for spec in {
            json.dumps([spec.algorithm, spec.optimizer, spec.annealer, len(spec.targets), spec.hparams]): spec
            for spec in specs
        }.values():
            batch_size = spec.hparams["data.batch_size"]
            _check_positive("data.batch_size", batch_size)
            if int(batch_size) % self.accumulate:
                raise ValueError(f"a batch of {batch_size} cannot be split into {self.accumulate} equal parts")
            sources = len(self.data.domains) - len(spec.targets)
            dropout = spec.axis("model")["dropout"]
            if dropout not in networks:
                networks[dropout] = build_network(
                    self.model,
                    self.data.image_shape,
                    len(self.data.classes),
                    dropout=dropout,
                    seed=0,
                    weights=self.weights,
                )
            try:
                ALGORITHMS[spec.algorithm](networks[dropout], sources, **spec.axis("algorithm"))
                ANNEALERS[spec.annealer](**spec.axis("annealer"))
                OPTIMIZERS[spec.optimizer](networks[dropout].classifier.parameters(), **spec.axis("optimizer"))
            except TypeError as error:  # torch's optimizers compare before they look at the type
                raise ValueError(f"a hyperparameter of {spec.hparams} is of the wrong type: {error}") from error


def _check_positive(name: str, value: Any) -> None:
    whole = name != "clip_norm"
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be {'a whole number' if whole else 'a number'} above 0, not {value!r}")


def _check_distinct(kind: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{kind} {name} is named twice")


@lru_cache(maxsize=2)
def open_dataset(name: str, data_dir: Path | None, image_size: int | None) -> DomainDataset:
    """Open a data set by name; a process opens it once."""
    return DATASETS[name].open(data_dir, image_size)
