"""Planes in weight space: the principal directions of training paths, and the loss around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from shiftproof.base.batch import Batch
from shiftproof.base.drawing import COLUMN, STYLE, method_colors
from shiftproof.diagnostics.mean_loss import MeanLoss
from shiftproof.gradients import Loss

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLOCK = 2**18  # number of weights to read at once
_MARGIN = 0.15  # margin around the paths, as a fraction of their extent
_LEVELS = 12


@dataclass(frozen=True)
class Plane:
    """The points ``origin + x * directions[0] + y * directions[1]``.

    Attributes:
        origin: weights, of shape (n,).
        directions: directions of shape (2, n); orthonormal if they come from `principal_plane`.
        explained: the share of the paths' squared distance from the origin that lies along each direction; None if the
            plane does not come from paths.
        paths: for each path, the coordinates of the points of the plane nearest to its snapshots, float64 of shape
            (snapshots, 2).
    """

    origin: Tensor
    directions: Tensor
    explained: tuple[float, float] | None = None
    paths: tuple[Tensor, ...] = ()

    def grid(self, points: int = 25) -> tuple[Tensor, Tensor]:
        """Return coordinates along x and along y that cover the paths with a margin; without paths, -1 to 1.

        Args:
            points: number of coordinates along each axis.
        """
        if not self.paths:
            axis = torch.linspace(-1, 1, points, dtype=torch.float64, device="cpu")
            return axis, axis.clone()
        corners = torch.cat(self.paths)
        low, high = corners.amin(dim=0), corners.amax(dim=0)
        margin = _MARGIN * (high - low)
        xs, ys = (
            torch.linspace(float(a), float(b), points, dtype=torch.float64, device="cpu")
            for a, b in zip(low - margin, high + margin, strict=True)
        )
        return xs, ys


def principal_plane(paths: Sequence[Sequence[Tensor]]) -> Plane:
    r"""Return the plane in which one or several training paths move most.

    For one path this follows Li et al., "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018, section 7: the
    origin is the final weights, and the directions are the first two principal directions, not centred, of the
    snapshots' offsets from it. Several paths, for example from several optimizers, must begin with the same weights;
    that start is the origin, and the directions come from all snapshots together. Paths with more snapshots weigh more.

    The ``m`` snapshots enter through the scalar products of their offsets, an (m, m) matrix whose eigenvectors give the
    singular vectors. They are read block by block, so besides them memory holds little more than the two directions.

    Args:
        paths: for each path, its snapshots in order, each with all weights as one vector (n,); see `flat_weights`.

    Raises:
        ValueError: a path has no snapshots, shapes differ, several paths do not begin at the same weights, a weight is
            not finite, or the snapshots lie on a line.
    """
    if not paths or not all(paths):
        raise ValueError("a plane needs at least one path, and at least one snapshot in every path")
    snapshots = [snapshot for path in paths for snapshot in path]
    if len(shapes := {tuple(snapshot.shape) for snapshot in snapshots}) > 1 or snapshots[0].ndim != 1:
        raise ValueError(f"snapshots must be vectors of one length, not of the shapes {sorted(shapes)}")
    if not all(torch.equal(path[0], paths[0][0]) for path in paths):
        raise ValueError("several paths must begin with the same weights to share a plane")
    origin = paths[0][-1 if len(paths) == 1 else 0]

    def distances(begin: int) -> Tensor:
        block = slice(begin, begin + _BLOCK)
        return torch.stack([snapshot[block].double() for snapshot in snapshots]) - origin[block].double()

    blocks = range(0, len(origin), _BLOCK)
    gram = torch.zeros(len(snapshots), len(snapshots), dtype=torch.float64, device=origin.device)
    for begin in blocks:
        block = distances(begin)
        gram.addmm_(block, block.T)
    if not gram.isfinite().all():
        raise ValueError("a snapshot has weights that are not finite")
    squares, vectors = torch.linalg.eigh(gram)  # ascending
    squares, vectors = squares.flip(0).clamp_min(0), vectors.flip(1)
    # a zero eigenvalue can become this large by rounding of the sums
    if len(squares) < 2 or not squares[1] > len(squares) * torch.finfo(torch.float64).eps * squares[0]:
        raise ValueError("the snapshots lie on a line through the origin: they span no plane")
    squares, vectors = squares / squares.sum(), vectors[:, :2]
    # the sign of eigenvectors is arbitrary: put the snapshot farthest along a direction on its positive side
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True)).sign()
    coordinates = gram @ vectors
    coordinates /= (lengths := (vectors * coordinates).sum(dim=0).sqrt())
    directions = torch.cat([((vectors / lengths).T @ distances(begin)).to(origin.dtype) for begin in blocks], dim=1)
    return Plane(
        origin=origin.clone(),
        directions=directions,
        explained=(float(squares[0]), float(squares[1])),
        paths=coordinates.cpu().split([len(path) for path in paths]),
    )


def losses_on_plane(
    model: nn.Module,
    loss: Loss,
    batches: Sequence[Batch],
    plane: Plane,
    xs: Tensor,
    ys: Tensor,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Compute the mean loss over all samples at the points of a grid.

    The model is evaluated in evaluation mode and left unchanged. It uses its own buffers (running statistics of batch
    norms) at all points, so pass the model in its state at the plane's origin.

    Args:
        model: the model, whose trained weights the plane's points replace.
        loss: mean loss of a batch, from outputs and targets.
        batches: batches of inputs and targets, evaluated one by one.
        plane: the plane.
        xs: coordinates along its first direction.
        ys: coordinates along its second direction.
        on_progress: called after each point with the number of points done and their total.

    Returns:
        The losses, float64 of shape (len(ys), len(xs)) on the CPU; some may not be finite.

    Raises:
        ValueError: the plane does not fit the model's weights, or there are no samples.
    """
    mean_loss = MeanLoss(model, loss, batches)
    if plane.directions.shape != (2, len(mean_loss.weights)) or len(plane.origin) != len(mean_loss.weights):
        raise ValueError(
            f"a plane among {len(plane.origin)} weights with directions of shape {tuple(plane.directions.shape)} does "
            f"not fit a model of which {len(mean_loss.weights)} weights train"
        )
    losses = torch.empty(len(ys), len(xs), dtype=torch.float64, device="cpu")
    origin, (first, second) = plane.origin.to(mean_loss.weights), plane.directions.to(mean_loss.weights)
    for row, y in enumerate(ys.tolist()):
        for column, x in enumerate(xs.tolist()):
            losses[row, column] = mean_loss(origin + x * first + y * second)
            on_progress(row * len(xs) + column + 1, losses.numel())
    return losses


def plane_figure(
    plane: Plane, xs: Tensor, ys: Tensor, losses: Tensor, names: Sequence[str] = (), label: str = "loss"
) -> Figure:
    """Draw the loss on a plane as contours at a constant ratio, and the paths on it.

    Paths show the projections of their snapshots, whose own losses differ from the loss of the plane at these points.

    Args:
        plane: the plane.
        xs: coordinates along its first direction.
        ys: coordinates along its second direction.
        losses: losses of shape (len(ys), len(xs)), from `losses_on_plane`. Points where the loss is not finite or not
            above 0 stay white.
        names: names of the paths, in their order; see `shiftproof.base.drawing.method_colors`.
        label: name of the loss.

    Raises:
        ValueError: the numbers of names and paths differ, or no loss is finite and above 0.
    """
    from matplotlib import rc_context
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    if len(names) != len(plane.paths):
        raise ValueError(f"{len(plane.paths)} paths need as many names, not {len(names)}")
    visible = losses[losses.isfinite() & (losses > 0)]
    if not len(visible):
        raise ValueError("no loss on the plane is finite and above 0")
    low, high = float(visible.min()), float(visible.max())
    # matplotlib needs ascending levels even if the loss is constant, where they serve no purpose
    levels = torch.logspace(0, 1, _LEVELS, dtype=torch.float64, base=max(high / low, 1 + 1e-9)).mul(low).tolist()
    levels[-1] = max(levels[-1], high)
    shown = losses.where(losses.isfinite() & (losses > 0), torch.nan).numpy()
    with rc_context(STYLE):
        legend = 0.2 * -(-len(names) // 2)
        figure = Figure(figsize=(COLUMN, 2.95 + legend), layout="constrained")
        figure.suptitle(f"Paths and the {label}" if names else label.capitalize(), fontsize=9)
        axes = figure.subplots()
        axes.grid(False)
        norm = LogNorm(low / (high / low) ** 0.15, high * (high / low) ** 0.6 + 1e-300)  # light enough for the paths
        shades = axes.contourf(xs, ys, shown, levels=levels, cmap="Greys", norm=norm)
        axes.contour(xs, ys, shown, levels=levels, colors="white", linewidths=0.5)
        bar = figure.colorbar(shades, ax=axes, format=LogFormatter(minor_thresholds=(9, 9)), ticks=levels[::2])
        bar.ax.set_yticklabels([f"{level:.2g}" for level in levels[::2]])
        bar.ax.minorticks_off()
        bar.set_label(label)
        for path, name, color in zip(plane.paths, names, method_colors(names), strict=True):
            x, y = path.T.numpy()
            axes.plot(x, y, color=color, linewidth=1.2, marker="o", markersize=1.6, label=name)
            axes.plot(x[-1], y[-1], color=color, marker="*", markersize=8, markeredgecolor="white", linestyle="")
        if len(plane.paths):
            start = plane.paths[0][0].numpy()
            axes.plot(*start, color="black", marker="s", markersize=4.5, markeredgecolor="white", linestyle="")
        shares = [""] * 2 if plane.explained is None else [f" ({share:.0%} explained)" for share in plane.explained]
        axes.set_xlabel(f"direction 1{shares[0]}")
        axes.set_ylabel(f"direction 2{shares[1]}")
        if names:
            figure.legend(loc="outside lower center", ncols=2)
    return figure
