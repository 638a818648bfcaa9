"""The balance of updates over training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from shiftproof.base.drawing import write_figure
from shiftproof.diagnostics import (
    BALANCE_HEADER,
    Balance,
    BalanceHistory,
    UpdateBalance,
    balance_curves,
    balance_rows,
    heat_map,
)
from shiftproof.figures.traces import DIAGNOSTICS_FOLDER, Subject, Trace, traced
from shiftproof.studies import Study


def balance_history(subject: Subject, trace: Trace) -> BalanceHistory:
    """Return the balance of a run's updates."""
    parameters = {name: p for name, p in subject.algorithm().named_parameters() if p.requires_grad}
    return BalanceHistory(
        [int(record["step"]) for record in trace.records],
        [Balance(*(record[f"balance/{field}"] for field in Balance._fields)) for record in trace.records],
        trace.recorder["magnitudes"],
        UpdateBalance(parameters).layers,
    )


def draw_balance(histories: Mapping[str, BalanceHistory], folder: Path, setting: str) -> list[Path]:
    """Draw the heat map and the three numbers over training, and return the files.

    Args:
        histories: balance by name of the optimizer.
        folder: folder to write to.
        setting: description of the runs, for the caption.
    """
    first = next(iter(histories.values()))
    caption = (
        f"Magnitude of the update of {len(first.magnitudes[0])} parameters, spaced evenly over all of them, in "
        f"{len(first.steps)} steps spread over training: {setting}. Each step is divided by its own largest magnitude "
        "over all parameters; lines mark where tensors begin, and the largest are named. Beneath, means over the steps "
        "of numbers over all parameters: the Gini coefficient (0 is even), the normalised entropy (1 is even), the "
        "share of the largest 1 %."
    )
    rows = balance_rows(histories)
    drawn = write_figure(heat_map(histories), folder, "balance", BALANCE_HEADER, rows, caption)
    caption = f"The numbers of the balance of updates over all parameters, over training: {setting}."
    return [*drawn, *write_figure(balance_curves(histories), folder, "balance_numbers", BALANCE_HEADER, rows, caption)]


def figure_balance(study: Study, output: Path, trial_seed: int = 0) -> list[Path]:
    """Train every method of a study at its defaults, draw the balance of its updates, and return the files.

    Args:
        study: a study with one data set and at most one set of targets; without targets its first domain is left out.
        output: folder of the figures; runs that it holds are not trained again.
        trial_seed: number of the trial.

    Raises:
        ValueError: the study is not valid, or its parts cannot work together.
    """
    runs = traced(study, output, trial_seed)
    histories = {name: balance_history(*run) for name, run in runs.items()}
    return draw_balance(histories, output / DIAGNOSTICS_FOLDER, next(iter(runs.values()))[0].setting)
