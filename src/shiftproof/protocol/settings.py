"""The settings of a method: its hyperparameters, how a search draws their values, and values fixed by hand."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import get_args

import numpy as np

from shiftproof.algorithms import ALGORITHMS
from shiftproof.annealing import ANNEALERS
from shiftproof.base.choices import Kind, Search
from shiftproof.base.field_error import FieldError
from shiftproof.base.hparams import Hparam, Value, check_value, choice, log2_int, unused
from shiftproof.base.randomness import seed_hash
from shiftproof.base.registry import UnknownNameError
from shiftproof.models import MODELS, model_hparams
from shiftproof.optim import NO_OPTIMIZER, OPTIMIZERS
from shiftproof.protocol.dialects import PROTOCOLS, Protocol

SearchSpace = dict[str, dict[str, Hparam]]
"""Hyperparameters by axis and name."""

_FIRST = ("model.dropout", "optimizer.lr", "data.batch_size", "optimizer.weight_decay")
_AXES = ("algorithm", "optimizer", "annealer")
"""DomainBed's order of drawing: these names first, then axis by axis."""


def search_space(
    dataset: str,
    kind: Kind,
    pretrained: bool,
    algorithm: str,
    optimizer: str,
    annealer: str,
    search: Search,
    fixed: Collection[str] = (),
    model: str | None = None,
) -> SearchSpace:
    """Return the hyperparameters of a method.

    Args:
        dataset: name of the data set.
        kind: kind of its images, which determines batch sizes and dropout.
        pretrained: whether training starts from given weights, which determines learning rates and weight decay.
            DomainBed makes one distinction for both, because there photographs always start from weights.
        algorithm: name of the algorithm.
        optimizer: name of the optimizer.
        annealer: name of the annealer.
        search: "protocol" has the ranges of DomainBed at commit b93c22a; "short" searches two decades of lr
            around a default for short runs, scales hyperparameters that count steps to such runs, fixes batch size
            and dropout, measures the radii of SAM and its kin in units of the weights' norms, and is otherwise as
            "protocol".
        fixed: names of hyperparameters that are fixed by hand, as "axis.name". One that only the other search has
            takes the place of its counterpart: with ``optimizer.rho``, the short search has the published radius.
        model: name of the model; None for hyperparameters that all models have.
    """
    of_algorithm, photographs = ALGORITHMS[algorithm], kind == "photographs"
    fixed_of_optimizer = [name.removeprefix("optimizer.") for name in fixed if name.startswith("optimizer.")]
    dropouts = choice(0.0, 0.1, 0.5)
    # DomainBed draws a dropout for small images too, although their network has none.
    dropout = Hparam(0.0, unused(dropouts, 0.0))
    if search == "short":
        batch_size = Hparam(32 if photographs else 16)
    elif photographs:
        batch_size = Hparam(32, log2_int(3, 5 if dataset == "DomainNet" else 5.5))
        dropout = Hparam(0.0, dropouts, seed_name="resnet_dropout")
    else:
        batch_size = Hparam(64, log2_int(3, 9))
    if photographs and of_algorithm.photograph_batch_size is not None:
        always, drawn = of_algorithm.photograph_batch_size, batch_size.draw
        # drawn and not used, as in DomainBed's published code and SWAD's: later draws depend on it
        batch_size = Hparam(always, published_draw=None if drawn is None else unused(drawn, always))
    if not of_algorithm.stepped:  # neither changes anything, and all settings are one run
        batch_size, dropout = Hparam(batch_size.default), Hparam(0.0)
    return {
        "data": {"batch_size": batch_size},
        "model": {"dropout": dropout, **({} if model is None else model_hparams(model))},
        "algorithm": {**of_algorithm.hparams, **(of_algorithm.short_hparams if search == "short" else {})},
        "optimizer": {}
        if optimizer == NO_OPTIMIZER
        else OPTIMIZERS[optimizer].search_space(pretrained, search, fixed_of_optimizer),
        "annealer": dict(ANNEALERS[annealer].hparams),
    }


def setting(
    space: SearchSpace,
    fixed: Mapping[str, Value],
    hparam_seed: int,
    trial_seed: int,
    protocol: Protocol = PROTOCOLS["shiftproof"],
) -> dict[str, Value]:
    """Return one setting by "axis.name"; fixed values replace drawn ones.

    Args:
        space: the hyperparameters.
        fixed: values given by hand, by "axis.name"; names that the method does not have are ignored.
        hparam_seed: number of the setting; 0 is the defaults.
        trial_seed: number of the trial.
        protocol: the dialect, which determines how values are drawn.
    """
    if protocol.draws == "in_order":
        drawn = draw_in_order(_in_drawing_order(space), hparam_seed, trial_seed)
    else:
        drawn = {
            f"{axis}.{name}": value
            for axis, hparams in space.items()
            for name, value in draw(hparams, hparam_seed, trial_seed).items()
        }
    return {name: _like(value, fixed.get(name, value)) for name, value in drawn.items()}


def draw(hparams: Mapping[str, Hparam], hparam_seed: int, trial_seed: int) -> dict[str, Value]:
    """Return the setting number ``hparam_seed`` of a trial; number 0 is the defaults.

    Every name draws from its own generator, so that adding a hyperparameter changes no other draw, and one
    ``hparam_seed`` gives all methods the same quantile of each name's distribution (DomainBed, commit b93c22a).
    """
    if hparam_seed == 0:
        return {name: hparam.default for name, hparam in hparams.items()}
    seed = seed_hash(hparam_seed, trial_seed)
    return {
        name: hparam.default
        if hparam.draw is None
        else hparam.draw(np.random.RandomState(seed_hash(seed, hparam.seed_name or name)))
        for name, hparam in hparams.items()
    }


def draw_in_order(hparams: Mapping[str, Hparam], hparam_seed: int, trial_seed: int) -> dict[str, Value]:
    """Return the setting number ``hparam_seed`` of a trial; number 0 is the defaults.

    All names draw from one generator, in the mapping's order, as in DomainBed's published table (commit 7df6f06) and
    in SWAD. A name without a distribution draws nothing.
    """
    if hparam_seed == 0:
        return {name: hparam.default for name, hparam in hparams.items()}
    random = np.random.RandomState(seed_hash(hparam_seed, trial_seed))
    draws = {name: hparam.published_draw or hparam.draw for name, hparam in hparams.items()}
    return {name: hparam.default if (of := draws[name]) is None else of(random) for name, hparam in hparams.items()}


def _in_drawing_order(space: SearchSpace) -> dict[str, Hparam]:
    by_axis = {f"{axis}.{name}": hparam for axis in _AXES for name, hparam in space[axis].items()}
    every = by_axis | {f"{axis}.{name}": hparam for axis, hparams in space.items() for name, hparam in hparams.items()}
    return {name: every[name] for name in dict.fromkeys([*_FIRST, *every])}


def _like(default: Value, value: Value) -> Value:
    """Return a whole number as a float if the default is a float: 1 and 1.0 are one setting."""
    return float(value) if isinstance(default, float) and type(value) is int else value


def hyperparameters(algorithm: str, optimizer: str, annealer: str) -> dict[str, Hparam]:
    """Return the hyperparameters of a method, by "axis.name".

    Their types of values are the same for all data and searches, and the names are those of all. The defaults and
    distributions are those of the short search on photographs, from scratch, for what it has.
    """
    spaces = [
        search_space("", "photographs", False, algorithm, optimizer, annealer, search) for search in get_args(Search)
    ]
    of_models = {f"model.{name}": hparam for model in MODELS for name, hparam in MODELS[model].hparams.items()}
    return of_models | {
        f"{axis}.{name}": hparam for space in spaces for axis in space for name, hparam in space[axis].items()
    }


def known_names() -> list[str]:
    """Return the names of the hyperparameters of all methods, as "axis.name"."""
    methods = [
        *((algorithm, "sgd", "none") for algorithm in ALGORITHMS),
        *(("erm", optimizer, "none") for optimizer in OPTIMIZERS),
        *(("erm", "sgd", annealer) for annealer in ANNEALERS),
    ]
    return list(dict.fromkeys(name for method in methods for name in hyperparameters(*method)))


def check_fixed(fixed: Mapping[str, Value], methods: Iterable[Mapping[str, Hparam]]) -> None:
    """Raise unless every fixed hyperparameter belongs to a method of the comparison and has a valid value.

    Args:
        fixed: values given by hand, by "axis.name".
        methods: the `hyperparameters` of every method.

    Raises:
        FieldError: no method has the hyperparameter, or its value is not finite or not of its default's type.
    """
    valid = {name: hparam for method in methods for name, hparam in method.items()}
    for name, value in fixed.items():
        if name not in valid:
            raise FieldError(name, str(UnknownNameError("hyperparameter", name, list(valid))))
        check_value(name, value, valid[name].default)
