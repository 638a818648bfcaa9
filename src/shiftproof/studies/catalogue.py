"""Everything that can be named on the command line and in study files, with what it is and where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from functools import partial
from typing import Any, NamedTuple

from shiftproof.algorithms import ALGORITHMS
from shiftproof.annealing import ANNEALERS
from shiftproof.base.hparams import Hparam
from shiftproof.base.plugins import plugin_of
from shiftproof.base.registry import Registry, UnknownNameError, did_you_mean
from shiftproof.data import AUGMENTATIONS, DATASETS
from shiftproof.models import MODELS, timm_names
from shiftproof.optim import OPTIMIZERS
from shiftproof.protocol import MEASURES, RULES
from shiftproof.studies.named_files import named_studies, study_summary
from shiftproof.training.tracking import TRACKERS


class NoMatchError(ValueError):
    """No name matches a pattern."""

    def __init__(self, kind: str, pattern: str, names: list[str]) -> None:
        hint = did_you_mean(pattern, names)
        super().__init__(f"no {kind} match '{pattern}'{'.' if hint else ''}{hint}")


class Listed(NamedTuple):
    """Something that has a name.

    Attributes:
        name: its name.
        summary: what it is, in one line.
        origin: the plug-in or the module that registered it; "shiftproof" if it is built in.
        hparams: its hyperparameters by name, with the defaults and the ranges of the short search.
        start: "random" if these are for training from a random start, and given weights have others.
    """

    name: str
    summary: str
    origin: str
    hparams: Mapping[str, Hparam] = {}
    start: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        hparams = {
            name: {"default": hparam.default, "range": hparam.range or None, **_elsewhere(hparam)}
            for name, hparam in self.hparams.items()
        }
        search = {"search": "short"} if hparams else {}
        start = {"start": self.start} if self.start else {}
        return {
            "name": self.name,
            "summary": self.summary,
            "origin": self.origin,
            **search,
            **start,
            "hyperparameters": hparams,
        }


def _elsewhere(hparam: Hparam) -> dict[str, Any]:
    return {"in_dialects": dict(hparam.in_dialects)} if hparam.in_dialects else {}


def _listed(
    registry: Registry[Any],
    hparams: Callable[[Any], Mapping[str, Hparam]] = lambda entry: {},
    start: str | None = None,
) -> list[Listed]:
    return [
        Listed(name, registry.summary(name), _origin(registry, name), hparams(registry[name]), start)
        for name in registry
    ]


def _origin(registry: Registry[Any], name: str) -> str:
    plugin, place = plugin_of(registry, name), registry.place(name)
    if plugin is not None:
        return plugin.name
    return "shiftproof" if place.is_ours else place.module


def _studies() -> list[Listed]:
    return [Listed(name, study_summary(file), "shiftproof") for name, file in named_studies().items()]


LISTED: Mapping[str, Callable[[], list[Listed]]] = {
    "algorithms": partial(_listed, ALGORITHMS, lambda entry: {**entry.hparams, **entry.short_hparams}),
    "optimizers": partial(_listed, OPTIMIZERS, lambda entry: entry.search_space(False, "short"), "random"),
    "annealers": partial(_listed, ANNEALERS, lambda entry: entry.hparams),
    "datasets": partial(_listed, DATASETS),
    "models": partial(_listed, MODELS, lambda entry: entry.hparams),
    "augmentations": partial(_listed, AUGMENTATIONS),
    "measures": partial(_listed, MEASURES),
    "rules": partial(_listed, RULES),
    "trackers": partial(_listed, TRACKERS),
    "studies": _studies,
}
"""What lists the names of each kind."""


def list_names(kind: str | None = None, pattern: str | None = None) -> dict[str, list[Listed]]:
    """Return what has a name, by kind.

    Args:
        kind: "algorithms", "optimizers", "annealers", "datasets", "models", "augmentations", "measures", "rules",
            "trackers" or "studies"; None for all.
        pattern: only names that match it, with ``*`` and ``?`` for other characters, or that contain it. Models then
            include those of timm.

    Raises:
        UnknownNameError: there is no such kind.
        NoMatchError: no name matches; the message suggests near ones.
    """
    if kind is not None and kind not in LISTED:
        raise UnknownNameError("kind", kind, list(LISTED))
    found = {name: LISTED[name]() for name in ([kind] if kind else LISTED)}
    if pattern is None:
        return found
    if "models" in found:
        found["models"] += [
            Listed(name, "One of timm's models.", "timm") for name in timm_names() if name not in MODELS
        ]
    matching = {name: [one for one in listed if _matches(one.name, pattern)] for name, listed in found.items()}
    if not any(matching.values()):
        raise NoMatchError(kind or "names", pattern, [one.name for listed in found.values() for one in listed])
    return {name: listed for name, listed in matching.items() if listed}


def _matches(name: str, pattern: str) -> bool:
    lower = pattern.lower()
    return lower in name.lower() or fnmatch(name.lower(), lower)
