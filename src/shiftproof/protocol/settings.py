"""The settings of a method: its hyperparameters, how a search draws their values, and values fixed by hand."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from shiftproof.algorithms import ALGORITHMS
from shiftproof.annealing import ANNEALERS
from shiftproof.base.choices import Kind, Search
from shiftproof.base.hparams import Hparam, Value, choice, log2_int, unused
from shiftproof.base.randomness import seed_hash
from shiftproof.models import model_hparams
from shiftproof.optim import NO_OPTIMIZER, OPTIMIZERS
from shiftproof.protocol.dialects import OURS, PROTOCOLS

SearchSpace = dict[str, dict[str, Hparam]]
"""Hyperparameters by axis and name."""

PART_AXES = ("algorithm", "optimizer", "annealer")
"""The axes of a method's parts."""
_FIRST = ("model.dropout", "optimizer.lr", "data.batch_size", "optimizer.weight_decay")
"""DomainBed's order of drawing: these names first, then axis by axis."""
_REDRAWN = {"optimizer.lr": "lr_g", "algorithm.lr_ratio": "lr_d", "optimizer.weight_decay": "weight_decay_g"}
"""What DomainBed draws once more for algorithms that train a discriminator, in its order, after the first names."""


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
    part: bool = False,
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
        part: whether only a part of the network is trained, which changes the learning rates of the short search.
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
    space: SearchSpace = {
        "data": {"batch_size": batch_size},
        "model": {"dropout": dropout, **({} if model is None else model_hparams(model))},
        "algorithm": {
            **of_algorithm.hparams,
            **of_algorithm.hparams_on.get(kind, {}),
            **of_algorithm.hparams_on.get(dataset, {}),
            **(of_algorithm.short_hparams if search == "short" else {}),
        },
        "optimizer": {}
        if optimizer == NO_OPTIMIZER
        else OPTIMIZERS[optimizer].search_space(pretrained, search, fixed_of_optimizer, part),
        "annealer": dict(ANNEALERS[annealer].hparams),
    }
    if of_algorithm.draws_own_rates:
        for name, redrawn in _REDRAWN.items():
            axis, bare = name.split(".")
            space[axis][bare] = replace(space[axis][bare], redrawn_as=redrawn)
    return space


def setting(
    space: SearchSpace,
    fixed: Mapping[str, Value],
    hparam_seed: int,
    trial_seed: int,
    dialect: str = OURS,
) -> dict[str, Value]:
    """Return one setting by "axis.name"; fixed values replace drawn ones.

    Options that runs record only if they differ from their defaults (`Hparam.later`) are left out where they do not.

    Args:
        space: the hyperparameters.
        fixed: values given by hand, by "axis.name"; names that the method does not have are ignored.
        hparam_seed: number of the setting; 0 is the defaults.
        trial_seed: number of the trial.
        dialect: name of the protocol's dialect, which determines how values are drawn, and some defaults.
    """
    hparams = {f"{axis}.{name}": hparam for axis, named in space.items() for name, hparam in named.items()}
    if hparam_seed == 0:
        values = {name: hparam.default_in(dialect) for name, hparam in hparams.items()}
    elif PROTOCOLS[dialect].draws == "in_order":
        values = _draw_in_order(hparams, hparam_seed, trial_seed, dialect)
    else:
        values = _draw_by_name(hparams, hparam_seed, trial_seed, dialect)
    for name, hparam in hparams.items():
        values[name] = _like(values[name], fixed.get(name, values[name]))
        relative_to = hparam.relative_to
        if relative_to is not None and name not in fixed and (hparam_seed if hparam.draw is None else dialect != OURS):
            unit = 1.0 if hparam.draw is None else hparams[relative_to].default
            base = fixed.get(relative_to, values[relative_to])
            # all are rates; nothing is relative to a rate of 0
            values[name] = values[name] * unit / base if base else hparam.default  # type: ignore[operator]
    return {
        name: value for name, value in values.items() if not (hparams[name].later and value == hparams[name].default)
    }


def _draw_by_name(hparams: Mapping[str, Hparam], hparam_seed: int, trial_seed: int, dialect: str) -> dict[str, Value]:
    """Return the setting number ``hparam_seed`` of a trial.

    Every name draws from its own generator, so that adding a hyperparameter changes no other draw, and one
    ``hparam_seed`` gives all methods the same quantile of each name's distribution (DomainBed, commit b93c22a). In our
    dialect all methods share their learning rate and weight decay too; in DomainBed's, some have draws of their own.
    """
    seed = seed_hash(hparam_seed, trial_seed)
    values = {}
    for name, hparam in hparams.items():
        draw = _distribution(hparam, hparams).draw
        own = None if dialect == OURS else hparam.redrawn_as
        seed_name = own or hparam.seed_name or name.split(".")[1]
        values[name] = (
            hparam.default_in(dialect) if draw is None else draw(np.random.RandomState(seed_hash(seed, seed_name)))
        )
    return values


def _draw_in_order(hparams: Mapping[str, Hparam], hparam_seed: int, trial_seed: int, dialect: str) -> dict[str, Value]:
    """Return the setting number ``hparam_seed`` of a trial.

    All names draw from one generator, in the order of DomainBed's published table (commit 7df6f06) and of SWAD. A name
    without a distribution draws nothing; of two draws of a name the later counts.
    """
    random = np.random.RandomState(seed_hash(hparam_seed, trial_seed))
    again = [name for name in _REDRAWN if name in hparams and hparams[name].redrawn_as is not None]
    by_axis = [name for axis in PART_AXES for name in hparams if name.startswith(f"{axis}.")]
    once = dict.fromkeys(name for name in [*_FIRST, *by_axis, *hparams] if name in _FIRST or name not in again)
    order = [name for name in once if name in hparams]
    first = [name for name in order if name in _FIRST]
    values = {}
    for name in [*first, *again, *order[len(first) :]]:
        of = _distribution(hparams[name], hparams)
        draw = of.published_draw or of.draw
        values[name] = hparams[name].default_in(dialect) if draw is None else draw(random)
    return values


def _distribution(hparam: Hparam, hparams: Mapping[str, Hparam]) -> Hparam:
    """Return the hyperparameter whose distribution one is drawn from."""
    return hparams[hparam.relative_to] if hparam.draw is None and hparam.relative_to is not None else hparam


def _like(default: Value, value: Value) -> Value:
    """Return a whole number as a float if the default is a float: 1 and 1.0 are one setting."""
    return float(value) if isinstance(default, float) and type(value) is int else value
