"""Checks of a study's fields, which run before anything is opened or trained."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from shiftproof.algorithms import ALGORITHMS
from shiftproof.annealing import ANNEALERS
from shiftproof.base.field_error import FieldError
from shiftproof.base.hparams import is_finite
from shiftproof.base.method import find_method
from shiftproof.base.plugins import PluginError, import_plugins
from shiftproof.base.registry import Registry, UnknownNameError
from shiftproof.data import AUGMENTATIONS, DATASETS
from shiftproof.models import HUB, check_normalisation, check_trained, default_image_size, published_weights
from shiftproof.optim import OPTIMIZERS
from shiftproof.protocol import (
    MEASURES,
    PROTOCOLS,
    RULES,
    applies,
    check_fixed,
    hyperparameters,
    known_names,
    written_for,
)
from shiftproof.studies.field_info import TABLE_FIELDS
from shiftproof.studies.published_results import published
from shiftproof.studies.study import Study, Variant, field_types
from shiftproof.training import check_device_name


def check_study(study: Study) -> None:
    """Raise unless every field of a study has a valid value and none contradicts another.

    Raises:
        FieldError: the first field that is invalid, with the reason.
    """
    _check_types(study)
    try:
        import_plugins(study.imports)
    except PluginError as error:
        raise FieldError("imports", str(error)) from error
    _check_numbers(study)
    _check_names(study)
    _check_variants(study)
    _check_together(study)


def _check_types(study: Study) -> None:
    for name, kind in field_types().items():
        _check_type(name, getattr(study, name), kind, name)
    for variant in study.variants:
        for name, kind in get_type_hints(Variant).items():
            _check_type("variants", getattr(variant, name), kind, f"{name} of variant {variant.name}")


def _check_type(field_name: str, value: object, kind: Any, what: str) -> None:
    """Raise unless a value is of the type of a field; numbers and hyperparameters are left to their own checks."""
    if NoneType in get_args(kind):
        if value is None:
            return
        [kind] = [one for one in get_args(kind) if one is not NoneType]
    if get_origin(kind) is tuple:
        if not isinstance(value, (tuple, list)):
            raise FieldError(field_name, f"{what} must be a tuple, not {value!r}; for one entry, ({value!r},)")
        for one in value:
            _check_type(field_name, one, get_args(kind)[0], f"an entry of {what}")
        return
    expected, description = _TYPES.get(get_origin(kind) or kind, (object, ""))
    if not isinstance(value, expected):
        raise FieldError(field_name, f"{what} must be {description}, not {value!r}")


_TYPES: Mapping[Any, tuple[type, str]] = {
    bool: (bool, "True or False"),
    str: (str, "a str"),
    Literal: (str, "a str"),
    Path: (Path, "a Path"),
    dict: (Mapping, "a mapping of hyperparameters to values"),
    Mapping: (Mapping, "a mapping of hyperparameters to values"),
    Variant: (Variant, "a Variant"),
}


def _check_numbers(study: Study) -> None:
    for declared in fields(study):
        name, kind = declared.name, field_types()[declared.name]
        numbers, value = {int, float} & {kind, *get_args(kind)}, getattr(study, name)
        if numbers and not (value is None and NoneType in get_args(kind)):
            _check_positive(name, value, name, whole=int in numbers, or_zero=declared.default == 0)
    if study.image_size == 1:
        raise FieldError("image_size", "image_size must be at least 2 pixels, not 1")
    if study.layer_decay > 1:
        raise FieldError("layer_decay", f"layer_decay must be at most 1, not {study.layer_decay!r}")


def _check_names(study: Study) -> None:
    for name in (*names_by_field(), *_CHECKS):
        given = getattr(study, name)
        if get_origin(field_types()[name]) is tuple:
            kind = names_by_field()[name].kind
            if not given:
                raise FieldError(name, f"name at least one {kind}")
            for one in given:
                check_name(name, one)
            _check_distinct(name, kind, given)
        elif given is not None:
            check_name(name, given)


def _check_variants(study: Study) -> None:
    if not study.variants:
        raise FieldError("variants", "name at least one variant")
    methods = [hyperparameters(*method[:3]) for method in study.combinations]
    check_fixed(study.fixed, methods)
    _check_distinct("variants", "variant", [variant.name for variant in study.variants])
    for variant in study.variants:
        _check_positive(
            ("variants", f"variants.{variant.name}.times"), variant.times, f"times of variant {variant.name}"
        )
        fits = any(applies(variant.fixed, names) for names in methods)
        try:
            check_fixed({n: v for n, v in variant.fixed.items() if not (fits and _is_elsewhere(n, methods))}, methods)
            if variant.published is not None:
                check_name("published", variant.published)
        except FieldError as error:
            place = f"variants.{variant.name}.{error.field}"
            raise FieldError(("variants", place), f"variant {variant.name}: {error}") from error
        for method, names in zip(study.combinations, methods, strict=True):
            if not applies(variant.fixed, names):
                continue
            of_study, of_variant = (written_for(fixed, *method[:3]) for fixed in (study.fixed, variant.fixed))
            if both := [name for name in of_variant if name in of_study]:
                ours, theirs = (", ".join(of[name] for name in both) for of in (of_variant, of_study))
                raise FieldError("variants", f"variant {variant.name} fixes {ours}, and the study {theirs}")
    if not study.methods:
        raise FieldError("variants", "no method has the hyperparameters of any variant")


def _is_elsewhere(name: str, methods: Sequence[Collection[str]]) -> bool:
    """Return whether a hyperparameter is of a part that the study does not have."""
    return not any(name in names for names in methods) and name in known_names()


def _check_table(study: Study) -> None:
    """Raise for fields of a table that are missing, contradict each other, or have no table."""
    if not any(DATASETS[name].table for name in study.datasets):
        for name in TABLE_FIELDS:
            if getattr(study, name) not in (None, (), "error"):
                raise FieldError((name, "datasets"), f"only the data set table takes {name}")
        return
    for name, what in (
        ("metadata", "its file"),
        ("domain", "the column of the domains"),
        ("labels", "the column to predict"),
    ):
        if not getattr(study, name):
            option = {"labels": "label"}.get(name, name)
            raise FieldError((name, "datasets"), f"the data set table needs {name}, {what}: --{option}")
    _check_distinct("labels", "label", study.labels)
    _check_distinct("features", "column", study.features)
    if study.task in ("classification", "regression") and len(study.labels) > 1:
        raise FieldError(
            ("task", "labels"), f"{study.task} is of one label, not of {len(study.labels)}: {', '.join(study.labels)}"
        )
    if study.image is not None and study.features:
        raise FieldError(("features", "image"), "features contradict image: pictures are all that is predicted from")
    if all(DATASETS[name].table for name in study.datasets):
        if study.data_dir is not None:
            raise FieldError("data_dir", "the data set table takes no data_dir: its file is metadata")
        for name in ("kind", "image_size"):
            if study.image is None and getattr(study, name) is not None:
                raise FieldError(name, f"{name} is of pictures, and no column of them is named: set image")


def _check_together(study: Study) -> None:
    _check_table(study)
    if study.weights == HUB:
        if study.model is None:
            raise FieldError(("model", "weights"), "no model is named: name the one whose published weights to take")
        published_weights(study.model)
    own = {name: DATASETS[name].kind for name in study.datasets}
    if study.kind is not None and None not in own.values() and set(own.values()) != {study.kind}:
        kinds = ", ".join(f"{name} has {kind}" for name, kind in own.items())
        raise FieldError("kind", f"{kinds}; only the data sets folder and table take a kind")
    if study.targets is not None and not study.targets:
        raise FieldError("targets", "name at least one target")
    if study.single_source and study.targets is not None:
        raise FieldError("targets", "targets contradict single_source: it leaves out all domains but one in turn")
    if study.single_source:
        for rule in study.selection:
            if RULES[rule].needs_pairs:
                raise FieldError("selection", f"{rule} contradicts single_source: no source domain would be left")
    if study.all_data:
        for rule in study.selection:
            if RULES[rule].every_step:
                raise FieldError(
                    ("selection", "all_data"),
                    f"{rule} contradicts all_data: a second pass is scored only at the step that validation chose",
                )
    rows = [str(method) for method in study.methods]
    if study.baseline is not None and find_method(study.baseline, study.methods) is None:
        raise FieldError("baseline", str(UnknownNameError("baseline", study.baseline, rows)))


@cache
def names_by_field() -> Mapping[str, Registry[Any]]:
    """Return the registries of known names, by the field that takes the names."""
    literals = {
        name: get_args(one)
        for name, kind in field_types().items()
        for one in (kind, *get_args(kind))
        if get_origin(one) is Literal
    }
    return {
        "datasets": DATASETS,
        "algorithms": ALGORITHMS,
        "optimizers": OPTIMIZERS,
        "annealers": ANNEALERS,
        "selection": RULES,
        "metric": MEASURES,
        "augmentation": AUGMENTATIONS,
        "protocol": PROTOCOLS,
        **{name: _choices(name, choices) for name, choices in literals.items()},
    }


def _choices(kind: str, names: Sequence[str]) -> Registry[None]:
    registry: Registry[None] = Registry(kind)
    for name in names:
        registry.register(name, None)
    return registry


_CHECKS: Mapping[str, Callable[[str], object]] = {
    "device": check_device_name,
    "model": default_image_size,
    "normalisation": check_normalisation,
    "published": published,
    "trained": check_trained,
}
"""Checks of the fields whose names are not in a registry; each raises ValueError for an unknown name."""


def check_name(field_name: str, name: str) -> None:
    """Raise if a name in a field of a study is unknown; fields that hold no names always pass.

    Targets and baselines depend on the rest of the study and are not checked here.

    Raises:
        FieldError: the name is unknown; the message suggests similar ones.
    """
    known = names_by_field()
    try:
        if field_name in known and name not in known[field_name]:
            raise known[field_name].error(name)
        if field_name in _CHECKS:
            _CHECKS[field_name](name)
    except ValueError as error:
        raise FieldError(field_name, str(error)) from error


def _check_positive(
    at_fault: str | tuple[str, ...], value: Any, name: str, *, whole: bool = True, or_zero: bool = False
) -> None:
    kind = int if whole else (int, float)
    is_number = isinstance(value, kind) and not isinstance(value, bool) and is_finite(value)
    if not is_number or value < 0 or (value == 0 and not or_zero):
        too_large = isinstance(value, (int, float)) and not is_finite(value)
        number = "a whole number" if whole else "a finite number" if too_large else "a number"
        raise FieldError(at_fault, f"{name} must be {number}{', at least 0' if or_zero else ' above 0'}, not {value!r}")


def _check_distinct(field_name: str, kind: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise FieldError(field_name, f"{kind} {name} is named twice")
