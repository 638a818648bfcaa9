"""Hyperparameters that are fixed by hand: how they are named, and which methods they apply to.

"optimizer.lr", named by axis, is fixed for all methods that have it; "sgd.lr", named by part, for those with that part.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import get_args

from shiftproof.algorithms import ALGORITHMS
from shiftproof.annealing import ANNEALERS
from shiftproof.base.choices import Search
from shiftproof.base.field_error import FieldError
from shiftproof.base.hparams import Hparam, Value, check_value
from shiftproof.base.registry import UnknownNameError
from shiftproof.models import MODELS
from shiftproof.optim import OPTIMIZERS
from shiftproof.protocol.settings import PART_AXES, search_space

_AXES = ("data", "model", *PART_AXES)


def hyperparameters(algorithm: str, optimizer: str, annealer: str) -> dict[str, Hparam]:
    """Return the hyperparameters of a method, by axis ("optimizer.lr") and by part ("sgd.lr").

    Their types of values are the same for all data and searches, and the names are those of all. The defaults and
    distributions are those of the short search on photographs, from scratch, for what it has.
    """
    parts = dict(zip(PART_AXES, (algorithm, optimizer, annealer), strict=True))
    by_axis = {f"model.{name}": hparam for model in MODELS for name, hparam in MODELS[model].hparams.items()}
    by_part: dict[str, Hparam] = {}
    for search in get_args(Search):
        space = search_space("", "photographs", False, algorithm, optimizer, annealer, search)
        for axis, named in space.items():
            by_axis |= {f"{axis}.{name}": hparam for name, hparam in named.items()}
            by_part |= {f"{parts[axis]}.{name}": hparam for name, hparam in named.items() if axis in parts}
    return by_axis | {name: hparam for name, hparam in by_part.items() if not _is_by_axis(name)}


def known_names() -> list[str]:
    """Return the names of the hyperparameters of all methods, as `hyperparameters` has them."""
    methods = [
        *((algorithm, "sgd", "none") for algorithm in ALGORITHMS),
        *(("erm", optimizer, "none") for optimizer in OPTIMIZERS),
        *(("erm", "sgd", annealer) for annealer in ANNEALERS),
    ]
    return list(dict.fromkeys(name for method in methods for name in hyperparameters(*method)))


def unknown_hyperparameter(name: str, valid: Collection[str]) -> UnknownNameError:
    """Return the error of a name that is not valid; it lists the names of the same part, or else those by axis."""
    part = name.rpartition(".")[0]
    of_part = [] if part in _AXES else [one for one in valid if one.rpartition(".")[0] == part]
    return UnknownNameError("hyperparameter", name, of_part or [one for one in valid if _is_by_axis(one)])


def check_fixed(fixed: Mapping[str, Value], methods: Iterable[Mapping[str, Hparam]]) -> None:
    """Raise unless every fixed hyperparameter belongs to a method of the comparison and has a valid value.

    Args:
        fixed: values given by hand, by the names of `hyperparameters`.
        methods: the `hyperparameters` of every method.

    Raises:
        FieldError: no method has the hyperparameter, or its value is not finite or not of its default's type.
    """
    valid = {name: hparam for method in methods for name, hparam in method.items()}
    for name, value in fixed.items():
        if name not in valid:
            if name in known_names():
                raise FieldError(name, f"no method of the study has {name}")
            raise FieldError(name, str(unknown_hyperparameter(name, valid)))
        check_value(name, value, valid[name].default)


def applies(fixed: Collection[str], names: Collection[str]) -> bool:
    """Return whether a method has what a variant fixes: all of it by axis, and some of what it fixes for parts.

    Args:
        fixed: names of what the variant fixes.
        names: those of the method's `hyperparameters`.
    """
    of_parts = [name for name in fixed if not _is_by_axis(name)]
    has_its_parts = not of_parts or any(name in names for name in of_parts)
    return has_its_parts and all(name in names for name in fixed if _is_by_axis(name))


def fixed_for(fixed: Mapping[str, Value], algorithm: str, optimizer: str, annealer: str) -> dict[str, Value]:
    """Return the values that are fixed for a method, by "axis.name"; one for a part comes before one for all.

    Args:
        fixed: values given by hand, by the names of `hyperparameters`.
        algorithm: name of the method's algorithm.
        optimizer: name of its optimizer.
        annealer: name of its annealer.
    """
    return {axis_name: fixed[name] for axis_name, name in written_for(fixed, algorithm, optimizer, annealer).items()}


def written_for(fixed: Collection[str], algorithm: str, optimizer: str, annealer: str) -> dict[str, str]:
    """Return how the names that are fixed for a method are written, by "axis.name".

    Args:
        fixed: the names, as `hyperparameters` has them.
        algorithm: name of the method's algorithm.
        optimizer: name of its optimizer.
        annealer: name of its annealer.
    """
    by_axis = {name: name for name in fixed if _is_by_axis(name)}
    by_part = {
        f"{axis}.{name.removeprefix(f'{part}.')}": name
        for axis, part in zip(PART_AXES, (algorithm, optimizer, annealer), strict=True)
        for name in fixed
        if name.startswith(f"{part}.") and not _is_by_axis(name)
    }
    return by_axis | by_part


def _is_by_axis(name: str) -> bool:
    return name.partition(".")[0] in _AXES
