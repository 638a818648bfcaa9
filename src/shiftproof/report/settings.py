"""The hyperparameters that were chosen for every target and trial of a method."""

from __future__ import annotations

from dataclasses import dataclass

from shiftproof.hparams import Value
from shiftproof.report.outcomes import Outcome, Outcomes
from shiftproof.studies import Method


@dataclass(frozen=True)
class ChosenSettings:
    """A method's chosen settings.

    Attributes:
        method: what was trained.
        same: the hyperparameters that are equal in all its chosen runs.
        differing: the names of the others.
        outcomes: one per target and trial.
    """

    method: Method
    same: dict[str, Value]
    differing: list[str]
    outcomes: list[Outcome]


def chosen_settings(outcomes: Outcomes, method: Method) -> ChosenSettings:
    """Return a method's chosen settings, what is equal in all of them apart."""
    found = outcomes.of(method)
    hparams: list[dict[str, Value]] = [one.row["hparams"] for one in found if one.row]
    names = list(hparams[0]) if hparams else []
    same = {name: hparams[0][name] for name in names if len({setting[name] for setting in hparams}) == 1}
    return ChosenSettings(method, same, [name for name in names if name not in same], found)
