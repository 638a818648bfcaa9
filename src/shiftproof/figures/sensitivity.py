"""The sensitivity of an optimizer's result to its hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from shiftproof.base.drawing import COLUMN, INK, STYLE, method_colors, write_figure
from shiftproof.figures.traces import DIAGNOSTICS_FOLDER, figure_subjects
from shiftproof.optim import OPTIMIZERS
from shiftproof.studies import Results, Study, Variant, run_study
from shiftproof.tables import estimate, write_csv

LR_FACTORS = (0.1, 10**-0.5, 1.0, 10**0.5, 10.0)
"""Multiples of an optimizer's default learning rate."""
GENIE_VALUES: Mapping[str, Sequence[float]] = {"dropout": (0.1, 0.4, 0.6, 0.8), "beta": (0.8, 0.9, 0.95, 0.99)}
"""The values of GENIE's own two hyperparameters, which are varied one at a time in optimizers that have them."""
_LABELS = {"lr": "learning rate / default", "dropout": "dropout probability", "beta": "factor of the averages"}
_QUANTITIES = {"unseen": ("-", "unseen domain"), "validation": (":", "held-out images of the sources")}


class Sensitivity(NamedTuple):
    """Accuracies at one value of one hyperparameter, all others at their defaults.

    Attributes:
        optimizer: name of the optimizer.
        hyperparameter: "lr", "dropout" or "beta".
        value: value of the hyperparameter.
        relative: for a learning rate, its multiple of the default; else the value.
        trial: number of the trial.
        unseen: accuracy on the target, in [0, 1], at the step of the best validation; None for a failed run.
        validation: accuracy on the sources' held-out images at that step.
    """

    optimizer: str
    hyperparameter: str
    value: float
    relative: float
    trial: int
    unseen: float | None
    validation: float | None


def measure_sensitivity(study: Study, output: Path, jobs: int) -> list[Sensitivity]:
    """Train every optimizer of a study at several values of its hyperparameters, as comparisons do.

    Every optimizer gets its own study in the output, which can be read and continued like any other.

    Args:
        study: a study with one data set, one algorithm, one annealer and at most one set of targets.
        output: folder that holds the studies.
        jobs: number of runs trained at a time.

    Raises:
        ValueError: the study is not valid.
    """
    measured = []
    for optimizer in study.optimizers:
        values = _values(study, optimizer)
        variants = [Variant(f"{name} {value:.4g}", fixed={f"optimizer.{name}": value}) for name, value, _ in values]
        one = replace(
            study.only(next(method for method in study.methods if method.optimizer == optimizer)),
            name=f"sensitivity to {optimizer}'s hyperparameters",
            variants=tuple(variants),
            hparam_trials=1,
            selection=("training_domain", "oracle", "last"),
        )
        folder = output / optimizer
        results = run_study(one, folder, jobs, on_end=partial(write_csv, output=folder))
        measured += _read(results, optimizer, values)
    return measured


def _values(study: Study, optimizer: str) -> list[tuple[str, float, float]]:
    """Return the hyperparameter, its value and its position in the figure for every variant of an optimizer."""
    space = OPTIMIZERS[optimizer].search_space(study.weights is not None, study.searched, part=study.trained != "all")
    lr = float(space["lr"].default)
    values = [("lr", lr * factor, factor) for factor in LR_FACTORS]
    own = {name: several for name, several in GENIE_VALUES.items() if name in space}
    return values + [(name, value, value) for name, several in own.items() for value in several]


def _read(results: Results, optimizer: str, values: Sequence[tuple[str, float, float]]) -> list[Sensitivity]:
    [grid] = results.plan.grids
    measured = []
    for method, (name, value, relative) in zip(grid.methods, values, strict=True):
        for outcome in results.outcomes(grid, "training_domain", method):
            found = outcome.selected or {"accuracy": None, "validation": None}
            measured.append(
                Sensitivity(optimizer, name, value, relative, outcome.trial, found["accuracy"], found["validation"])
            )
    return measured


def draw_sensitivity(measured: Sequence[Sensitivity], folder: Path, setting: str) -> list[Path]:
    """Draw the accuracies against the hyperparameters, and return the files.

    Every optimizer is in every panel: one that lacks the hyperparameter as a level line, at its default learning rate.

    Args:
        measured: measurements of one or more optimizers.
        folder: folder to write to.
        setting: description of the runs, for the caption.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = [name for name in _LABELS if any(one.hyperparameter == name for one in measured)]
    optimizers = list(dict.fromkeys(one.optimizer for one in measured))
    with rc_context(STYLE):
        figure = Figure(figsize=(2 * COLUMN, 2.9), layout="constrained")
        figure.suptitle("Sensitivity to hyperparameters")
        axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for axis, name in zip(axes, names, strict=True):
            values = sorted({one.relative for one in measured if one.hyperparameter == name})
            for optimizer, color in zip(optimizers, method_colors(optimizers), strict=True):
                has = any((one.optimizer, one.hyperparameter) == (optimizer, name) for one in measured)
                for quantity, (dashes, _) in _QUANTITIES.items():
                    points = _means(measured, optimizer, name if has else "lr", quantity)
                    if not has:
                        points = [(x, mean, error) for x in values for factor, mean, error in points if factor == 1]
                    if not points:
                        continue
                    xs, ys, errors = zip(*points, strict=True)
                    axis.errorbar(
                        xs, ys, errors if has else None, color=color, linestyle=dashes, linewidth=1.2,
                        marker="o" if has else "", markersize=2.5, label=optimizer if quantity == "unseen" else None,
                    )  # fmt: skip
            axis.set_xlabel(_LABELS[name])
            if name == "lr":
                axis.set_xscale("log")
                axis.set_xticks(LR_FACTORS, [f"{factor:.2g}" for factor in LR_FACTORS])
                axis.minorticks_off()
        axes[0].set_ylabel("accuracy, %")
        for dashes, label in _QUANTITIES.values():
            axes[0].plot([], [], color=INK, linestyle=dashes, linewidth=1.2, label=label)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))
        trials = len({one.trial for one in measured})
        caption = (
            f"Accuracy against one hyperparameter at a time, all others at their defaults: {setting}. Solid: the "
            "unseen domain at the step of the best validation; dotted: held-out images of the sources, which a "
            "search chooses by. Level lines without points: optimizers without the hyperparameter, at their default "
            f"learning rate. Means over {trials} "
            f"trial{'s' if trials > 1 else ''}{', with standard errors' if trials > 1 else ''}."
        )
        return write_figure(figure, folder, "sensitivity", Sensitivity._fields, measured, caption)


def _means(
    measured: Sequence[Sensitivity], optimizer: str, name: str, quantity: str
) -> list[tuple[float, float, float]]:
    """Return the position, mean in per cent and standard error of every value with a finished run."""
    found: dict[float, list[float]] = {}
    for one in measured:
        value = getattr(one, quantity)
        if (one.optimizer, one.hyperparameter) == (optimizer, name) and value is not None:
            found.setdefault(one.relative, []).append(100 * value)
    means = {relative: estimate(values) for relative, values in sorted(found.items())}
    return [(relative, one.mean, one.error or 0.0) for relative, one in means.items()]


def figure_sensitivity(study: Study, output: Path, jobs: int = 1) -> list[Path]:
    """Train every optimizer of a study at several values of its hyperparameters, draw it, and return the files.

    Args:
        study: a study with one data set, one algorithm and one annealer; without targets its first domain is left out.
        output: folder of the figures; runs that it holds are not trained again.
        jobs: number of runs trained at a time.

    Raises:
        ValueError: the study is not valid, or its parts cannot work together.
    """
    first = figure_subjects(study, 0)[0]
    study = replace(study, targets=("+".join(first.spec.targets),))
    measured = measure_sensitivity(study, output / "sensitivity", jobs)
    return draw_sensitivity(measured, output / DIAGNOSTICS_FOLDER, first.conditions)
