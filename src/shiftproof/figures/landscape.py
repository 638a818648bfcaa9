"""Where optimizers end on a simulated landscape, and the paths of real runs with the loss around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from torch import Tensor
from tqdm import tqdm

from shiftproof.base.drawing import write_figure
from shiftproof.diagnostics import Plane, losses_on_plane, plane_figure, principal_plane, simulate
from shiftproof.figures.flatness import draw_flatness, flatness, held_out
from shiftproof.figures.traces import DIAGNOSTICS_FOLDER, Subject, Trace, traced
from shiftproof.optim import OPTIMIZERS
from shiftproof.studies import Study
from shiftproof.training import reproducible

POINTS = 21
"""Number of grid points along each direction of a plane."""


def draw_paths(subject: Subject, traces: Mapping[str, Trace], folder: Path) -> list[Path]:
    """Draw the paths of runs that start from the same weights, on the plane in which they move most; return the files.

    Args:
        subject: one of the runs, which determines the images and the model.
        traces: traces by name of the optimizer.
        folder: folder to write to.
    """
    plane = principal_plane([list(trace.path) for trace in traces.values()])
    model = subject.algorithm()  # with the start's buffers, because the plane of several paths has its origin there
    if len(traces) == 1:
        model = subject.algorithm(next(iter(traces.values())).state)
    xs, ys = plane.grid(POINTS)
    drawn = []
    for side, batches in held_out(subject).items():
        with reproducible(), tqdm(unit="point", desc=f"loss of the {side}") as bar:
            losses = losses_on_plane(model, subject.loss, batches, plane, xs, ys, _shown_by(bar))
        label = "loss of the sources" if side == "sources" else "loss of the unseen domain"
        figure = plane_figure(plane, xs, ys, losses, list(traces), label)
        assert plane.explained is not None  # noqa: S101  (the plane was made from paths)
        caption = (
            f"Paths of training on the plane of their two principal directions, which hold {plane.explained[0]:.0%} "
            f"and {plane.explained[1]:.0%} of their squared distance from its origin, and the mean {label} on "
            f"held-out images at the plane's points, which the paths need not pass through: {subject.setting}. "
            "Square: start; stars: ends."
        )
        rows = [*_path_rows(plane, traces), *_loss_rows(xs, ys, losses)]
        drawn += write_figure(figure, folder, f"path_{side}", ("what", "step", "x", "y", "loss"), rows, caption)
    return drawn


def _shown_by(bar: tqdm[NoReturn]) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return show


def _path_rows(plane: Plane, traces: Mapping[str, Trace]) -> list[tuple[object, ...]]:
    return [
        (name, step, *point, "")
        for (name, trace), path in zip(traces.items(), plane.paths, strict=True)
        for step, point in zip(trace.path_steps, path.tolist(), strict=True)
    ]


def _loss_rows(xs: Tensor, ys: Tensor, losses: Tensor) -> list[tuple[object, ...]]:
    return [
        ("plane", "", x, y, loss)
        for y, row in zip(ys.tolist(), losses.tolist(), strict=True)
        for x, loss in zip(xs.tolist(), row, strict=True)
    ]


def draw_simulation(optimizers: Sequence[str], folder: Path) -> list[Path]:
    """Run optimizers on the simulated landscape at their default hyperparameters except the learning rate; draw it.

    Args:
        optimizers: names of the optimizers.
        folder: folder to write to.

    Returns:
        The files.
    """
    with tqdm(unit="run", desc="simulated landscape") as bar:
        simulation = simulate({name: OPTIMIZERS[name] for name in optimizers}, on_progress=_shown_by(bar))
    return write_figure(
        simulation.plot(), folder, "landscape", simulation.HEADER, simulation.rows(), simulation.caption()
    )


def figure_landscape(study: Study, output: Path, trial_seed: int = 0) -> list[Path]:
    """Draw where optimizers end on the simulated landscape, and the paths and surroundings of real runs.

    Args:
        study: a study with one data set and at most one set of targets; without targets its first domain is left out.
        output: folder of the figures; runs that it holds are not trained again.
        trial_seed: number of the trial.

    Returns:
        The files.

    Raises:
        ValueError: the study is not valid, or its parts cannot work together.
    """
    for name in study.optimizers:
        if OPTIMIZERS[name].needs_graph:
            raise ValueError(
                f"the simulated landscape gives gradients without a graph, which {name} needs: leave it out"
            )
    runs, folder = traced(study, output, trial_seed), output / DIAGNOSTICS_FOLDER
    subject = next(iter(runs.values()))[0]
    found = {name: flatness(one, one.algorithm(run.state)) for name, (one, run) in runs.items()}
    return [
        *draw_simulation(study.optimizers, folder),
        *draw_paths(subject, {name: run for name, (_, run) in runs.items()}, folder),
        *draw_flatness(found, folder, subject.setting),
    ]
