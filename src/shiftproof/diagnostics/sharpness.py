r"""Flatness in weight space: what the loss gains nearby, and the extremes and the sum of its curvature.

Losses nearby are measured where every filter changes by at most ``rho`` of its norm, the perturbations
:math:`\epsilon` with

.. math:: \lVert \epsilon_f \rVert \le \rho\, \lVert \theta_f \rVert

for every filter ``f``: a ball in the largest relative change of a filter. Sharpness in absolute units depends on the
weights' size, which a net with ReLUs or normalisation can change without changing what it computes (Dinh et al., "Sharp
Minima Can Generalize For Deep Nets", ICML 2017); relative to filters it does not, and nets of different scale can be
compared. Biases and the factors of normalisation layers are held still, as in Li et al., "Visualizing the Loss
Landscape of Neural Nets", NeurIPS 2018; see `filter_norms`. The Hessian's eigenvalue and trace are the plain ones, over
all weights that train, and do depend on scale.

Everything is of the mean loss over all samples of ``batches``, in evaluation mode, and leaves the model as it was.
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
    r"""An eigenvalue as power iteration found it.

    Attributes:
        value: the Rayleigh quotient of the last vector :math:`v` of length 1.
        iterations: Hessian-vector products that were taken.
        residual: :math:`\lVert H v - \text{value} \cdot v \rVert`; an eigenvalue lies no farther than this from
            ``value``, and near convergence far closer.
    """

    value: float
    iterations: int
    residual: float


@dataclass(frozen=True)
class Sharpness:
    """How sharp the loss is at the weights of a model, for one set of samples.

    Attributes:
        loss: its mean there.
        rho: radius of the ball, a relative change of filters.
        average: increase of the loss in a random direction, see `average_increase`.
        worst: largest increase in the ball, see `worst_increase`.
        eigenvalue: the Hessian's largest, see `largest_eigenvalue`.
        trace: the Hessian's, see `hessian_trace`.
    """

    loss: float
    rho: float
    average: DrawnMean
    worst: float
    eigenvalue: Eigenvalue
    trace: DrawnMean


def sharpness(model: nn.Module, loss: Loss, batches: Sequence[Batch], *, rho: float = 0.05, seed: int = 0) -> Sharpness:
    """Measure everything for one set of samples, such as those of the source domains or of the target.

    Costs the equivalent of some 120 to 700 gradients, by how fast power iteration converges.

    Args:
        model: evaluated at its weights.
        loss: the mean loss of a batch, from outputs and targets.
        batches: inputs and targets, evaluated one by one.
        rho: radius of the ball.
        seed: key of all draws.

    Raises:
        ValueError: ``rho`` is not above 0, there is no sample or no filter, or the loss is not finite.
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
    r"""Return :math:`E[L(\theta + \epsilon)] - L(\theta)` where every filter moves by ``rho`` of its norm.

    Every filter's direction is uniform. Each perturbation is taken with its opposite, so that the slope, which has no
    part in the mean, has none in the error.

    Args:
        model: evaluated at its weights.
        loss: the mean loss of a batch, from outputs and targets.
        batches: inputs and targets, evaluated one by one.
        rho: relative change of each filter, above 0.
        draws: number of perturbations and their opposites, at least 2.
        seed: key of the draws.

    Raises:
        ValueError: an argument is out of its range, there is no sample or no filter, or a loss is not finite.
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
    r"""Return the largest :math:`L(\theta + \epsilon) - L(\theta)` found in the ball, a lower bound of the largest.

    Projected gradient ascent, in which every filter has a step of its own along its part of the gradient: the steepest
    in the ball's geometry. The first ascent starts from the single such step by ``rho`` from the weights, SAM's (Foret
    et al., ICLR 2021) in this geometry; the others from random points of the surface. Steps have the ball's radius and
    are taken if the loss rises, else the next ones are half as long; so the result is at least SAM's, and at least 0.

    Args:
        model: evaluated at its weights.
        loss: the mean loss of a batch, from outputs and targets.
        batches: inputs and targets, evaluated one by one.
        rho: radius of the ball, above 0.
        steps: of each ascent, at least 0.
        starts: number of ascents, at least 1.
        seed: key of the random starts.

    Raises:
        ValueError: an argument is out of its range, there is no sample or no filter, or a loss is not finite.
    """
    _check_radius(rho)
    if steps < 0 or starts < 1:
        raise ValueError(f"the ascent needs steps >= 0 and starts >= 1, not {steps} and {starts}")
    mean_loss, norms = MeanLoss(model, loss, batches), weight_norms(model)

    def evaluate(point: Tensor) -> tuple[float, Tensor]:
        """Return the loss and the steepest ascent at a point in units of the filters' norms."""
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
    """Return the largest eigenvalue (not in size: with its sign) of the Hessian over the weights that train.

    Power iteration finds the eigenvalue of largest size. Unless that is positive, it goes on with the Hessian plus
    that size times the identity, which has none below 0.

    Args:
        model: evaluated at its weights.
        loss: the mean loss of a batch, from outputs and targets.
        batches: inputs and targets, evaluated one by one.
        tolerance: the residual, relative to the size of the (shifted) eigenvalue, at which iteration stops.
        iterations: the most of them, and once more that many with the shift; at least 1. The result of iteration that
            ended here has a larger residual.
        seed: key of the vector from which it starts.

    Raises:
        ValueError: an argument is out of its range, there is no sample, or the Hessian is not finite.
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
    # a vector that converged to a negative eigenvalue has lost the others
    start = vector if found.value > 0 else _random_unit(vector, seed, 1)
    shifted, _, _ = iterate(start, size)
    return shifted._replace(iterations=found.iterations + shifted.iterations)


def hessian_trace(
    model: nn.Module, loss: Loss, batches: Sequence[Batch], *, probes: int = 20, seed: int = 0
) -> DrawnMean:
    r"""Return the trace of the Hessian over the weights that train.

    Hutchinson's estimator, the mean of :math:`v \cdot H v` over vectors of random signs.

    Args:
        model: evaluated at its weights.
        loss: the mean loss of a batch, from outputs and targets.
        batches: inputs and targets, evaluated one by one.
        probes: number of vectors, at least 2.
        seed: key of the signs.

    Raises:
        ValueError: there are fewer than 2 probes, there is no sample, or the Hessian is not finite.
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
    """Return a vector at length 1; zeros stay zeros."""
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
