r"""A simulated loss landscape with a sharp and a flat minimum, to see in which of them an optimizer ends.

At :math:`w \in R^2` the loss is a bowl in which two wells of equal depth and unequal width reach down to zero:

.. math:: L(w) = \left(1 + \tfrac{1}{20} \lVert w \rVert^2\right)
    \prod_i \left(1 - e^{-\lVert w - c_i \rVert^2 / (2 s_i^2)}\right)

The sharp minimum is at :math:`c = (-2, 0)` with width :math:`s = 0.3`, the flat one at :math:`(2, 0)` with width 1.
Both have a loss of exactly 0, and there is no other minimum. Their curvatures are 13.3 and 1.2, equal in all
directions. Gradients get Gaussian noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from shiftproof.base.drawing import COLUMN, STYLE, method_colors
from shiftproof.base.randomness import generator, torch_seed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BOWL = 0.1
"""Curvature of the bowl."""
NOISE = 0.5
"""Standard deviation of the noise on each of the gradient's two elements."""
LEARNING_RATES = tuple(10 ** (exponent / 2) for exponent in range(-6, 3))
"""The learning rates to try: half-decades from 0.001 to 10."""
START_SIDE = 4.0
"""Side of the square around the sharp minimum in which runs start."""


class Minimum(NamedTuple):
    """A minimum of the landscape; its basin contains all points within two widths of it."""

    name: str
    x: float
    y: float
    width: float


MINIMA = (Minimum("sharp", -2.0, 0.0, 0.3), Minimum("flat", 2.0, 0.0, 1.0))
NEITHER = len(MINIMA)
"""The index that `basins` gives to a point outside all basins."""
BASINS = (*(minimum.name for minimum in MINIMA), "neither")
_DRAWN = 4  # number of paths to draw for each optimizer
_DESCENT = "noise-free descent"


class Factory(Protocol):
    """Builds an optimizer for one run; entries of the registry of optimizers are such factories."""

    def __call__(self, params: list[Tensor], *, lr: float, seed: int) -> Optimizer:
        """Build the optimizer.

        Args:
            params: the point, as a single parameter of two elements.
            lr: learning rate.
            seed: key of the optimizer's own random numbers, if it draws any.
        """
        ...


class Share(NamedTuple):
    """A fraction of the runs, with Wilson's interval at one standard error, which never has zero length."""

    value: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """Half of the interval: the standard error."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Runs:
    """The runs of one optimizer.

    Attributes:
        lr: the chosen learning rate.
        tuning: mean final loss of the tuning runs, by learning rate; infinite if one diverged.
        starts: starting points of the runs, of shape (runs, 2).
        ends: end points of the runs, of shape (runs, 2).
        losses: losses at the ends, without noise, of shape (runs,); infinite for runs that diverged.
        paths: paths of the first few runs, of shape (runs drawn, steps + 1, 2).
    """

    lr: float
    tuning: dict[float, float]
    starts: Tensor
    ends: Tensor
    losses: Tensor
    paths: Tensor

    def shares(self) -> tuple[Share, ...]:
        """Return the fractions of runs that ended in each basin, and in neither."""
        return shares(basins(self.ends))


@dataclass(frozen=True)
class Simulation:
    """Runs of several optimizers on the landscape, all from the same starts and with the same noise.

    Attributes:
        runs: the runs of each optimizer, by its name.
        steps: number of steps of each run.
        tuning_runs: number of tuning runs with each learning rate.
        descent: fractions of the starts from which noise-free descent ends in each basin.
    """

    runs: dict[str, Runs]
    steps: int
    tuning_runs: int
    descent: tuple[Share, ...]

    HEADER: ClassVar[tuple[str, ...]] = (
        *("optimizer", "lr", "runs", "mean_final_loss"),
        *(column for basin in BASINS for column in (basin, f"{basin}_standard_error")),
    )

    def rows(self) -> list[tuple[Any, ...]]:
        """Return rows for noise-free descent and for each optimizer, with columns as in `HEADER`."""
        found: list[tuple[Any, ...]] = [(_DESCENT, "", self._num_runs, "", *_numbers(self.descent))]
        for name, runs in self.runs.items():
            found.append((name, runs.lr, self._num_runs, float(runs.losses.mean()), *_numbers(runs.shares())))
        return found

    def caption(self) -> str:
        """Describe the figure, and the terms of the simulation."""
        (sharp, flat), grid = MINIMA, LEARNING_RATES
        factors = " ".join(
            f"(1 - exp(-((x {'-+'[m.x < 0]} {abs(m.x):g})^2 + y^2) / (2 * {m.width:g}^2)))" for m in MINIMA
        )
        chosen = ", ".join(
            f"{name} {runs.lr:.2g}{' (the edge of the grid)' if runs.lr in (grid[0], grid[-1]) else ''}"
            for name, runs in self.runs.items()
        )
        return " ".join(
            [
                f"Where {self._num_runs} runs of {self.steps} steps end on the simulated landscape",
                f"L(x, y) = (1 + {BOWL / 2:g} (x^2 + y^2)) {factors},",
                f"which is 0 at its two minima, the sharp one at ({sharp.x:g}, {sharp.y:g})",
                f"and the flat one at ({flat.x:g}, {flat.y:g}).",
                f"Every gradient has Gaussian noise of standard deviation {NOISE:g} in each element,",
                "equal in all passes of a step;",
                f"starts are uniform in the square of side {START_SIDE:g} around the sharp minimum.",
                "All optimizers have the same starts and the same noise.",
                f"A run ends in a basin if it ends within two widths of its minimum ({2 * sharp.width:g} and",
                f"{2 * flat.width:g}).",
                f"The learning rate of each optimizer is that of the half-decades from {grid[0]:g} to {grid[-1]:g}",
                f"with the lowest mean final loss over {self.tuning_runs} other runs, measured without noise:",
                f"{chosen}; nothing else is tuned.",
                f"Above: the ends of all runs, the paths of {_DRAWN}, and dashed the square of the starts.",
                f"Below: fractions with Wilson's interval at one standard error; {_DESCENT} is from the same starts.",
            ]
        )

    def plot(self) -> Figure:
        """Draw the paths and ends of each optimizer, and the fractions that end in each basin."""
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        columns = min(4, len(self.runs))
        rows = -(-len(self.runs) // columns)
        below = 0.75 + 0.2 * (len(self.runs) + 1)
        with rc_context(STYLE):
            figure = Figure(figsize=(2 * COLUMN, 1.8 * rows + below + 0.2), layout="constrained")
            figure.suptitle("Where optimizers end on the simulated landscape")
            upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.8 * rows, below)).flat
            grid = upper.subplots(rows, columns, squeeze=False).flat
            colors = method_colors(list(self.runs))
            for axes, (name, runs), color in zip(grid, self.runs.items(), colors, strict=False):
                _draw_runs(axes, runs, color)
                axes.set_title(f"{name}\nlr {runs.lr:.2g}", fontsize=8)
            for axes in upper.axes[len(self.runs) :]:
                axes.remove()
            named = {_DESCENT: self.descent, **{name: runs.shares() for name, runs in self.runs.items()}}
            _draw_shares(lower.subplots(), named)
        return figure

    @property
    def _num_runs(self) -> int:
        return len(next(iter(self.runs.values())).ends)


def landscape(points: Tensor) -> Tensor:
    """Return the loss at points of shape (..., 2), of shape (...)."""
    centres = points.new_tensor([(m.x, m.y) for m in MINIMA])
    widths = points.new_tensor([m.width for m in MINIMA])
    squares = (points[..., None, :] - centres).square().sum(-1)
    walls = -torch.expm1(-squares / (2 * widths.square()))
    return (1 + BOWL / 2 * points.square().sum(-1)) * walls.prod(-1)


def landscape_at(x: float, y: float) -> tuple[float, float, float]:
    """Return the loss and the two elements of its gradient at one point, in floats: tensors would be slow here."""
    (x0, y0, width0), (x1, y1, width1) = (minimum[1:] for minimum in MINIMA)
    x0, y0, x1, y1 = x - x0, y - y0, x - x1, y - y1
    well0 = math.exp(-(x0 * x0 + y0 * y0) / (2 * width0 * width0))
    well1 = math.exp(-(x1 * x1 + y1 * y1) / (2 * width1 * width1))
    height, walls = 1 + BOWL / 2 * (x * x + y * y), (1 - well0) * (1 - well1)
    pull0 = height * (1 - well1) * well0 / (width0 * width0)
    pull1 = height * (1 - well0) * well1 / (width1 * width1)
    return (
        height * walls,
        BOWL * walls * x + pull0 * x0 + pull1 * x1,
        BOWL * walls * y + pull0 * y0 + pull1 * y1,
    )


def basins(points: Tensor) -> Tensor:
    """Return the index in `BASINS` for each of the points (n, 2), of shape (n,)."""
    found = torch.full((len(points),), NEITHER, device="cpu")
    for index, minimum in enumerate(MINIMA):
        found[(points - points.new_tensor((minimum.x, minimum.y))).norm(dim=1) <= 2 * minimum.width] = index
    return found


def shares(found: Tensor) -> tuple[Share, ...]:
    """Return the fraction of indices in each of `BASINS`, with Wilson's interval at one standard error.

    Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the American Statistical
    Association, 1927.
    """
    n = len(found)

    def share(p: float) -> Share:
        centre, half = p + 1 / (2 * n), math.sqrt(p * (1 - p) / n + 1 / (4 * n * n))
        # if p is 0 or 1, it is itself a bound, up to rounding
        return Share(p, min(p, (centre - half) / (1 + 1 / n)), max(p, (centre + half) / (1 + 1 / n)))

    return tuple(share(int((found == index).sum()) / n) for index in range(len(BASINS)))


def descend(points: Tensor, steps: int = 2000, lr: float = 0.05) -> Tensor:
    """Return the end points (n, 2) of noise-free gradient descent from points (n, 2)."""
    for _ in range(steps):
        points = points.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(landscape(points).sum(), points)
        points = points - lr * gradient
    return points.detach()


def simulate(
    optimizers: Mapping[str, Factory],
    *,
    steps: int = 300,
    runs: int = 100,
    tuning_runs: int = 10,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Simulation:
    """Run optimizers on the landscape, each with its best learning rate among `LEARNING_RATES`.

    The best learning rate has the lowest mean final loss, without noise, over tuning runs, whose starts and noise
    differ from those of the reported runs. Both minima have equal losses, so the choice favours neither. Run number
    ``i`` has the same start and noise for all optimizers. All evaluations within a step share the same noise, like
    passes over one batch. Every run builds its own optimizer.

    Args:
        optimizers: factories, by the names to show.
        steps: number of steps of each run, at least 1.
        runs: number of reported runs per optimizer, at least 1.
        tuning_runs: number of tuning runs per learning rate, at least 1.
        on_progress: called after each run with the number of runs done and their total.

    Raises:
        ValueError: there is no optimizer, a number is below 1, or an optimizer diverges with every learning rate.
    """
    if not optimizers:
        raise ValueError("there is no optimizer to simulate")
    for name, number in (("steps", steps), ("runs", runs), ("tuning_runs", tuning_runs)):
        if number < 1:
            raise ValueError(f"Invalid {name} value: {number}; it must be at least 1")
    total = len(optimizers) * (len(LEARNING_RATES) * tuning_runs + runs)
    done = 0

    def run_all(factory: Factory, lr: float, kind: str, number: int) -> Tensor:
        nonlocal done
        paths = []
        for run in range(number):
            paths.append(_run(factory, lr, steps, ("landscape", kind, run)))
            on_progress(done := done + 1, total)
        return torch.tensor(paths, dtype=torch.float64, device="cpu")

    results = {}
    for name, factory in optimizers.items():
        tuning = {lr: float(_final_losses(run_all(factory, lr, "tuning", tuning_runs)).mean()) for lr in LEARNING_RATES}
        lr = min(tuning, key=tuning.__getitem__)
        if tuning[lr] == math.inf:
            raise ValueError(f"{name} diverges with every learning rate from {LEARNING_RATES[0]:g}")
        paths = run_all(factory, lr, "reported", runs)
        starts, ends = paths[:, 0].clone(), paths[:, -1].clone()
        results[name] = Runs(lr, tuning, starts, ends, _final_losses(paths), paths[:_DRAWN].clone())
    return Simulation(results, steps, tuning_runs, shares(basins(descend(starts))))


def _run(factory: Factory, lr: float, steps: int, key: tuple[str | int, ...]) -> list[list[float]]:
    """Return the path of one run: its start, and the point after each step."""
    random = generator(*key)
    sides = random.uniform(-START_SIDE / 2, START_SIDE / 2, 2).tolist()
    point = torch.tensor([MINIMA[0].x + sides[0], MINIMA[0].y + sides[1]], device="cpu", requires_grad=True)
    noise: list[list[float]] = (NOISE * random.standard_normal((steps, 2))).tolist()
    optimizer = factory([point], lr=lr, seed=torch_seed(*key))
    path: list[list[float]] = [point.tolist()]

    def closure() -> float:
        loss, slope_x, slope_y = landscape_at(*point.tolist())
        noise_x, noise_y = noise[len(path) - 1]  # the same in all passes of a step
        point.grad = torch.tensor((slope_x + noise_x, slope_y + noise_y), device="cpu")
        return loss

    for _ in range(steps):
        optimizer.step(closure)
        path.append(point.tolist())
    return path


def _numbers(found: Sequence[Share]) -> list[float]:
    return [number for share in found for number in (share.value, share.error)]


def _final_losses(paths: Tensor) -> Tensor:
    losses = landscape(paths[:, -1])
    return losses.where(losses.isfinite(), math.inf)


def _draw_runs(axes: Axes, runs: Runs, color: str) -> None:
    """Draw contours, some paths and all ends."""
    x, y = torch.linspace(-4.6, 4.6, 116, device="cpu"), torch.linspace(-3.2, 3.2, 81, device="cpu")
    losses = landscape(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1))
    axes.grid(False)
    axes.set_aspect("equal")
    axes.contour(x, y, losses, levels=[0.15 * k for k in range(1, 13)], cmap="Greys_r", linewidths=0.4, vmax=3.0)
    (x0, y0), half = MINIMA[0][1:3], START_SIDE / 2
    square = [(x0 + half * a, y0 + half * b) for a, b in ((-1, -1), (-1, 1), (1, 1), (1, -1), (-1, -1))]
    axes.plot(*zip(*square, strict=True), color="black", linewidth=0.6, linestyle=(0, (3, 3)))
    for path in runs.paths:
        axes.plot(*path.T, color=color, linewidth=0.5, alpha=0.8)
    axes.plot(*runs.ends.T, color=color, linestyle="", marker="o", markersize=2, markeredgewidth=0)
    axes.set_xlim(float(x[0]), float(x[-1]))
    axes.set_ylim(float(y[0]), float(y[-1]))
    axes.set_xticks([minimum.x for minimum in MINIMA], [minimum.name for minimum in MINIMA])
    axes.set_yticks([])


def _draw_shares(axes: Axes, named: Mapping[str, Sequence[Share]]) -> None:
    """Draw fractions with their errors, one row per name and one marker per basin."""
    markers = (("D", "full"), ("o", "none"), ("x", "full"))
    colors = ["black", *method_colors(list(named)[1:])]  # the first is of no optimizer
    for basin, (marker, fill) in enumerate(markers):
        for row, values in enumerate(named.values()):
            value, low, high = values[basin]
            axes.errorbar(
                value,
                row + 0.23 * (basin - 1),
                xerr=[[value - low], [high - value]],
                color=colors[row],
                marker=marker,
                fillstyle=fill,
                markersize=4,
                linewidth=0.9,
            )
        axes.plot(
            [], [], color="#555555", linestyle="", marker=marker, fillstyle=fill, markersize=4, label=BASINS[basin]
        )
    axes.set_yticks(range(len(named)), list(named))
    axes.invert_yaxis()
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("fraction of runs that end in the basin")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
