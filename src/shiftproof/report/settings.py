"""The hyperparameters that were chosen for every target and trial of a method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shiftproof.base.hparams import Value
from shiftproof.studies import Grid, Method, Outcome, Results


@dataclass(frozen=True)
class ChosenSettings:
    """A method's chosen settings.

    Attributes:
        method: the method that was trained.
        same: the hyperparameters with equal values in all its chosen runs.
        differing: the names of the other hyperparameters.
        outcomes: one outcome per target and trial.
    """

    method: Method
    same: dict[str, Value]
    differing: list[str]
    outcomes: list[Outcome]


def chosen_settings(results: Results, grid: Grid, method: Method) -> ChosenSettings:
    """Return the settings that the study's first rule chose for a method, separating the values that are all equal."""
    found = results.outcomes(grid, results.plan.selection[0], method)
    hparams = [one.row["hparams"] for one in found if one.row]
    same = equal_in_all(hparams)
    names = list(hparams[0]) if hparams else []
    return ChosenSettings(method, same, [name for name in names if name not in same], found)


def equal_in_all(hparams: Sequence[dict[str, Any]]) -> dict[str, Value]:
    """Return the hyperparameters that all settings have with the same value."""
    if not hparams:
        return {}
    return {
        name: value
        for name, value in hparams[0].items()
        if all(name in setting and setting[name] == value for setting in hparams)
    }
