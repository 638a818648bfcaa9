r"""Flatness in weight space: increases of the loss nearby, and the largest eigenvalue and trace of its Hessian.

Losses nearby are measured at perturbations :math:`\epsilon` that change every filter by at most ``rho`` times its norm,

.. math:: \lVert \epsilon_f \rVert \le \rho\, \lVert \theta_f \rVert

for every filter ``f``. This is a ball in the norm "largest relative change of a filter". Sharpness in absolute units
depends on the size of the weights, which a net with ReLUs or normalisation can change without changing its output (Dinh
et al., "Sharp Minima Can Generalize For Deep Nets", ICML 2017). Relative to filters it does not, so nets of different
scale can be compared. Biases and the factors of normalisation layers are held fixed, as in Li et al., "Visualizing the
Loss Landscape of Neural Nets", NeurIPS 2018; see `filter_norms`. The Hessian's eigenvalue and trace are the plain ones,
over all weights that train, and do depend on scale.

All functions use the mean loss over all samples of ``batches``, in evaluation mode, and leave the model unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from shiftproof.base.batch import Batch
from shiftproof.base.precise_sums import dot, norm
from shiftproof.base.randomness import generator
from shiftproof.diagnostics.filters import filter_norms, random_units, units, weight_norms
from shiftproof.diagnostics.mean_loss import MeanLoss, checked
from shiftproof.gradients import Loss


class DrawnMean(NamedTuple):
    """A mean over random draws and its standard error."""

    mean: float
    error: float


class Eigenvalue(NamedTuple):
    r"""An eigenvalue found by power iteration.

    Attributes:
        value: the Rayleigh quotient of the last vector :math:`v`, of length 1.
        iterations: number of Hessian-vector products taken.
        residual: :math:`\lVert H v - \text{value} \cdot v \rVert`; an eigenvalue lies within this distance of
            ``value``, and near convergence much closer.
    """

    value: float
    iterations: int
    residual: float


@dataclass(frozen=True)
class Sharpness:
    """How sharp the loss is at the weights of a model, for one set of samples.

    Attributes:
        loss: mean loss at the weights.
        rho: radius of the ball, as a relative change of filters.
        average: mean increase of the loss in a random direction; see `average_increase`.
        worst: largest increase in the ball; see `worst_increase`.
        eigenvalue: largest eigenvalue of the Hessian; see `largest_eigenvalue`.
        trace: trace of the Hessian; see `hessian_trace`.
    """

    loss: float
    rho: float
    average: DrawnMean
    worst: float
    eigenvalue: Eigenvalue
    trace: DrawnMean


def sharpness(model: nn.Module, loss: Loss, batches: Sequence[Batch], *, rho: float = 0.05, seed: int = 0) -> Sharpness:
    """Measure all of `Sharpness` for one set of samples, such as those of the source domains or of the target.

    This costs as much as about 120 to 700 gradients, depending on how fast power iteration converges.

    Args:
        model: the model, evaluated at its weights.
        loss: mean loss of a batch, from outputs and targets.
        batches: batches of inputs and targets, evaluated one by one.
        rho: radius of the ball.
        seed: key of all draws.

    Raises:
        ValueError: ``rho`` is not above 0, there are no samples or no filters, or the loss is not finite.
    """
    return Sharpness(
        loss=_loss_there(MeanLoss(model, loss, batches)),
        rho=rho,
        average=average_increase(model, loss, batches, rho=rho, seed=seed),
        worst=worst_increase(model, loss, batches, rho=rho, seed=seed),
        eigenvalue=largest_eigenvalue(model, loss, batches, seed=seed),
        trace=hessian_trace(model, loss, batches, seed=seed),
    )


def average_increase(
    model: nn.Module, loss: Loss, batches: Sequence[Batch], *, rho: float = 0.05, draws: int = 20, seed: int = 0
) -> DrawnMean:
    r"""Estimate :math:`E[L(\theta + \epsilon)] - L(\theta)` when every filter moves by ``rho`` times its norm.

    Every filter's direction is uniform. Each perturbation is paired with its opposite, so that the slope, which cancels
    in the mean, does not add to the error either.

    Args:
        model: the model, evaluated at its weights.
        loss: mean loss of a batch, from outputs and targets.
        batches: batches of inputs and targets, evaluated one by one.
        rho: relative change of each filter, above 0.
        draws: number of pairs of a perturbation and its opposite, at least 2.
        seed: key of the draws.

    Raises:
        ValueError: an argument is out of its range, there are no samples or no filters, or a loss is not finite.
    """
    _check_radius(rho)
    _check_draws("draws", draws)
    mean_loss, norms = MeanLoss(model, loss, batches), weight_norms(model)
    there = _loss_there(mean_loss)
    increases = []
    for draw in range(draws):
        offset = rho * norms * random_units(model, seed, "average increase", draw)
        pair = mean_loss(mean_loss.weights + offset), mean_loss(mean_loss.weights - offset)
        increases.append(math.fsum(pair) / 2 - there)
    return _estimate(increases, "a loss nearby")


def worst_increase(
    model: nn.Module,
    loss: Loss,
    batches: Sequence[Batch],
    *,
    rho: float = 0.05,
    steps: int = 10,
    starts: int = 3,
    seed: int = 0,
) -> float:
    r"""Search the ball for the largest :math:`L(\theta + \epsilon) - L(\theta)`; the result is a lower bound of it.

    The search is projected gradient ascent in which every filter moves along its own part of the gradient, the steepest
    ascent in the ball's geometry. The first ascent starts one step of length ``rho`` from the weights, which is SAM's
    perturbation (Foret et al., ICLR 2021) in this geometry; the others start from random points of the surface. Steps
    begin with the ball's radius. A step is taken if the loss rises; otherwise the next ones are half as long. So the
    result is at least SAM's, and at least 0.

    Args:
        model: the model, evaluated at its weights.
        loss: mean loss of a batch, from outputs and targets.
        batches: batches of inputs and targets, evaluated one by one.
        rho: radius of the ball, above 0.
        steps: number of steps of each ascent, at least 0.
        starts: number of ascents, at least 1.
        seed: key of the random starts.

    Raises:
        ValueError: an argument is out of its range, there are no samples or no filters, or a loss is not finite.
    """
    _check_radius(rho)
    if steps < 0 or starts < 1:
        raise ValueError(f"the ascent needs steps >= 0 and starts >= 1, not {steps} and {starts}")
    mean_loss, norms = MeanLoss(model, loss, batches), weight_norms(model)

    def evaluate(point: Tensor) -> tuple[float, Tensor]:
        """Return the loss and the direction of steepest ascent at a point, in units of the filters' norms."""
        value, gradient = mean_loss.gradient(mean_loss.weights + norms * point)
        return value, units(model, norms * gradient)

    there, upwards = evaluate(torch.zeros_like(norms))
    worst = there
    for start in range(starts):
        point = rho * (random_units(model, seed, "worst increase", start) if start else upwards)
        value, ascent = evaluate(point)
        length = rho
        for _ in range(steps):
            candidate = point + length * ascent
            candidate /= (filter_norms(model, candidate) / rho).clamp_min(1)  # back into the ball
            risen, further = evaluate(candidate)
            if risen > value:
                point, value, ascent = candidate, risen, further
            else:
                length /= 2
        worst = max(worst, value)
    return worst - there


def largest_eigenvalue(
    model: nn.Module,
    loss: Loss,
    batches: Sequence[Batch],
    *,
    tolerance: float = 1e-2,
    iterations: int = 100,
    seed: int = 0,
) -> Eigenvalue:
    """Return the largest eigenvalue (signed, not by magnitude) of the Hessian over the weights that train.

    Power iteration finds the eigenvalue of largest magnitude. If that is not positive, it continues with the Hessian
    plus that magnitude times the identity, which has no negative eigenvalue.

    Args:
        model: the model, evaluated at its weights.
        loss: mean loss of a batch, from outputs and targets.
        batches: batches of inputs and targets, evaluated one by one.
        tolerance: the residual, relative to the magnitude of the (shifted) eigenvalue, at which iteration stops.
        iterations: the largest number of iterations, and again of those with the shift; at least 1. If iteration stops
            here, the residual is above the tolerance.
        seed: key of the starting vector.

    Raises:
        ValueError: an argument is out of its range, there are no samples, or the Hessian is not finite.

    Examples:
        >>> import torch
        >>> from shiftproof.diagnostics import largest_eigenvalue
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> inputs = torch.tensor([[2.0, 0.0], [0.0, 1.0]])  # the loss has the Hessian diag(4, 1)
        >>> found = largest_eigenvalue(model, torch.nn.functional.mse_loss, [(inputs, torch.zeros(2, 1))])
        >>> round(found.value, 1)
        4.0
    """
    if not tolerance > 0 or iterations < 1:
        raise ValueError(f"power iteration needs tolerance > 0 and iterations >= 1, not {tolerance} and {iterations}")
    mean_loss = MeanLoss(model, loss, batches)

    def iterate(vector: Tensor, shift: float) -> tuple[Eigenvalue, Tensor, float]:
        iteration = 0
        while True:
            iteration += 1
            product = mean_loss.hessian_product(vector).add_(vector, alpha=shift)
            size = norm(product)
            quotient = float(dot(vector, product))
            residual = norm(product.sub(vector, alpha=quotient))
            if residual <= tolerance * size or iteration == iterations:
                return Eigenvalue(quotient - shift, iteration, residual), vector, size
            vector = _unit(product)

    found, vector, size = iterate(_random_unit(mean_loss.weights, seed, 0), 0.0)
    if size == 0 or (found.value > 0 and found.residual <= tolerance * size):
        return found
    # a vector that converged to a negative eigenvalue no longer contains other eigenvectors
    start = vector if found.value > 0 else _random_unit(vector, seed, 1)
    shifted, _, _ = iterate(start, size)
    return shifted._replace(iterations=found.iterations + shifted.iterations)


def hessian_trace(
    model: nn.Module, loss: Loss, batches: Sequence[Batch], *, probes: int = 20, seed: int = 0
) -> DrawnMean:
    r"""Estimate the trace of the Hessian over the weights that train.

    This is Hutchinson's estimator: the mean of :math:`v \cdot H v` over vectors of random signs.

    Args:
        model: the model, evaluated at its weights.
        loss: mean loss of a batch, from outputs and targets.
        batches: batches of inputs and targets, evaluated one by one.
        probes: number of vectors, at least 2.
        seed: key of the signs.

    Raises:
        ValueError: there are fewer than 2 probes or no samples, or the Hessian is not finite.

    Examples:
        >>> import torch
        >>> from shiftproof.diagnostics import hessian_trace
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> inputs = torch.tensor([[2.0, 0.0], [0.0, 1.0]])  # the loss has the Hessian diag(4, 1)
        >>> round(hessian_trace(model, torch.nn.functional.mse_loss, [(inputs, torch.zeros(2, 1))]).mean, 3)
        5.0
    """
    _check_draws("probes", probes)
    mean_loss = MeanLoss(model, loss, batches)
    products = []
    for probe in range(probes):
        bits = generator(seed, "trace", probe).integers(0, 2, len(mean_loss.weights), dtype=np.int8)
        signs = torch.from_numpy(2 * bits - 1).to(mean_loss.weights)
        products.append(float(dot(signs, mean_loss.hessian_product(signs))))
    return _estimate(products, "the trace")


def _loss_there(mean_loss: MeanLoss) -> float:
    return checked(mean_loss(mean_loss.weights), "the loss at the model's weights")


def _estimate(values: Sequence[float], name: str) -> DrawnMean:
    mean = checked(math.fsum(values) / len(values), name)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return DrawnMean(mean, math.sqrt(variance / len(values)))


def _unit(vector: Tensor) -> Tensor:
    """Scale a vector to length 1; zeros stay zeros."""
    return vector.div(max(norm(vector), torch.finfo(vector.dtype).tiny))


def _random_unit(like: Tensor, seed: int, start: int) -> Tensor:
    normal = generator(seed, "power iteration", start).standard_normal(len(like), dtype=np.float32)
    return _unit(torch.from_numpy(normal).to(like))


def _check_radius(rho: float) -> None:
    if not 0 < rho < math.inf:
        raise ValueError(f"Invalid rho value: {rho}; it must be above 0")


def _check_draws(name: str, number: int) -> None:
    if number < 2:
        raise ValueError(f"Invalid {name} value: {number}; a standard error needs at least 2")
