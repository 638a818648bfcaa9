r"""The one-step generalization ratio (OSGR): from moments of gradients, of real steps, and by its definition.

The OSGR of an update :math:`u` made from a set :math:`D` of n samples is

.. math::
    R = \frac{E[L_{D'}(\theta) - L_{D'}(\theta - u)]}{E[L_D(\theta) - L_D(\theta - u)]}
    \approx \frac{E[u \cdot g_{D'}]}{E[u \cdot g_D]}

with :math:`D'` as large as :math:`D` and independent of it; to first order in the step size it needs gradients only.
For :math:`u = P g_D`, element by element, with a :math:`P` that does not depend on :math:`D`, the moments of the
gradient are enough. Sources: Liu et al., "Understanding Why Neural Networks Generalize Well Through GSNR of
Parameters", ICLR 2020; Cho, Kim and Kim, "One-Step Generalization Ratio Guided Optimization for Domain
Generalization", ICML 2025.

Moments here are elementwise tensors of one shape: ``mean_square`` is :math:`\mu^2` of the gradient of one sample,
``variance`` its :math:`s^2`, ``gsnr`` :math:`r = \mu^2 / s^2`, and ``n`` the samples of a step. In batches that are
stratified by domain, :math:`\mu` is the mean over the domains and :math:`s^2` the mean variance within them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from shiftproof.base.precise_sums import dot
from shiftproof.diagnostics.mean_loss import trained_weights
from shiftproof.diagnostics.ratio import Ratio, ratio_of_means
from shiftproof.gradients import Loss, check_dense, evaluation_mode

if TYPE_CHECKING:
    from shiftproof.diagnostics.moments import GradientMoments

Batches = Sequence[tuple[Tensor, Tensor]]
"""A set of samples: inputs and targets of one batch per domain. Its loss is the mean of the domains' losses."""


def osgr(p: Tensor, mean_square: Tensor, variance: Tensor, n: float) -> float:
    r"""Return :math:`\sum p \mu^2 / \sum p (\mu^2 + s^2 / n)`, the OSGR of the preconditioner p (GENIE, Corollary 1).

    Where ``mean_square`` is corrected for its bias, and so may be negative, the result is not bound to [0, 1]. It is
    nan where the denominator is 0.

    Raises:
        ValueError: shapes differ, a variance is negative, or n is not above 0.
    """
    total = _second_moment(mean_square, variance, n)
    if p.shape != total.shape:
        raise ValueError(f"a preconditioner of shape {tuple(p.shape)} for moments of shape {tuple(total.shape)}")
    denominator = float((p.double() * total).sum())
    return float((p.double() * mean_square.double()).sum()) / denominator if denominator else math.nan


def preconditioners(mean_square: Tensor, variance: Tensor, n: float) -> dict[str, Tensor]:
    r"""Return the preconditioners of SGD, Adam, uniform weights and GENIE's Corollary 2, by name.

    With :math:`E[g_D^2] = \mu^2 + s^2/n` they are 1 ("sgd"), :math:`E[g_D^2]^{-1/2}` ("adam"),
    :math:`E[g_D^2]^{-1}` ("uniform") and :math:`(r + 1/n) / E[g_D^2]` ("genie"). The last is :math:`1/s^2`: what
    Corollary 2 asks for is to divide by the variance of the gradient. Estimates of :math:`\mu^2` below 0 count as 0. An
    element that never has a gradient has weight 0.

    Raises:
        ValueError: as `osgr`, or a gradient does not vary: its weight would be infinite.
    """
    total = _second_moment(mean_square.clamp(min=0), variance, n)
    live = total > 0
    if constant := int((live & (variance == 0)).sum()):
        raise ValueError(f"{constant} elements have a gradient that does not vary: their signal-to-noise is infinite")
    inverse = torch.where(live, 1 / total, 0)
    return {
        "sgd": live.double(),
        "adam": inverse.sqrt(),
        "uniform": inverse,
        "genie": torch.where(live, 1 / variance.double(), 0),
    }


class HalvesEstimate(NamedTuple):
    """An OSGR estimated from two halves of the samples.

    Attributes:
        value: the mean of the two; how far they lie apart says how little it may be worth.
        forward: with the preconditioner of the first half, on the second.
        backward: with that of the second, on the first.
    """

    value: float
    forward: float
    backward: float


def osgr_of_moments(
    first: GradientMoments, second: GradientMoments, n: float, beta: float = 0.95
) -> dict[str, HalvesEstimate]:
    """Return the OSGR of each of `preconditioners` and of GENIE's step, estimated from two halves of the samples.

    The preconditioner is made from one half's moments and its OSGR estimated from the other's, in both directions, and
    the two are averaged: where both come from the same samples, the elements whose signal is overestimated have the
    largest weights. Of the corrected ``mean_square``, single elements of which may be negative, only sums are used.
    Elements whose gradient does not vary in both halves are left out. "genie_step" is `genie_factor`.

    Args:
        first: moments of one half of the samples, at the same weights.
        second: those of the other half.
        n: images of a step, of all domains together.
        beta: of `genie_factor`.

    Raises:
        ValueError: as `osgr`.
    """
    varies = (first.flat("within") > 0) & (second.flat("within") > 0)
    halves = [(half.flat("mean_square")[varies], half.flat("within")[varies]) for half in (first, second)]
    forward, backward = (
        {
            name: osgr(p, *halves[1 - i], n)
            for name, p in (preconditioners(*half, n) | {"genie_step": genie_factor(*half, n, beta)}).items()
        }
        for i, half in enumerate(halves)
    )
    return {
        name: HalvesEstimate((value + backward[name]) / 2, value, backward[name]) for name, value in forward.items()
    }


def genie_osgr(gsnr: Tensor, n: float) -> float:
    r"""Return :math:`1 - 1 / (n\, \mathrm{mean}(r + 1/n))` (GENIE, Corollary 2), for true or plug-in r."""
    return 1 - 1 / (n * float(_checked(gsnr, n).mean()) + 1)


def uniform_osgr(gsnr: Tensor, n: float) -> float:
    r"""Return :math:`1 - \mathrm{mean}(1 / (r + 1/n)) / n`, GENIE's R_pre. It is never above `genie_osgr`."""
    return 1 - float((1 / (n * _checked(gsnr, n) + 1)).mean())


class GenieDistance(NamedTuple):
    """How far the factor that GENIE's step has is from the one of its Corollary 2.

    Attributes:
        step_osgr: OSGR of the step's factor as a preconditioner, without what momentum adds.
        corollary_osgr: OSGR of Corollary 2's.
        sgd_osgr: OSGR of no preconditioner.
        cosine: between the two as vectors.
        rank_correlation: Spearman's.
    """

    step_osgr: float
    corollary_osgr: float
    sgd_osgr: float
    cosine: float
    rank_correlation: float


def genie_distance(mean_square: Tensor, variance: Tensor, n: float, beta: float = 0.95) -> GenieDistance:
    """Compare `genie_factor` with the preconditioner of Corollary 2 under the same moments.

    Raises:
        ValueError: as `preconditioners`.
    """
    by_name = preconditioners(mean_square, variance, n)
    step, corollary = genie_factor(mean_square, variance, n, beta), by_name["genie"]
    ranks = torch.stack([_ranks(step.flatten()), _ranks(corollary.flatten())])
    return GenieDistance(
        osgr(step, mean_square, variance, n),
        osgr(corollary, mean_square, variance, n),
        osgr(by_name["sgd"], mean_square, variance, n),
        float((step * corollary).sum() / (step.norm() * corollary.norm())),
        float(torch.corrcoef(ranks)[0, 1]),
    )


def genie_factor(mean_square: Tensor, variance: Tensor, n: float, beta: float = 0.95) -> Tensor:
    r"""Return :math:`\tanh(1/\sigma^2)\, m^2 / v`, which GENIE's Algorithm 1 multiplies the mean gradient by.

    The moving averages are at their expectations under gradients whose moments do not change:
    :math:`m^2 = \mu^2 + \frac{1-\beta}{1+\beta} s^2/n`, :math:`v = \mu^2 + s^2/n`, :math:`\sigma^2 = v - m^2`.

    Raises:
        ValueError: as `osgr`.
    """
    square = mean_square.double().clamp(min=0)
    v = _second_moment(square, variance, n)
    m_square = square + (1 - beta) / (1 + beta) * (v - square)
    return torch.where(v > 0, (1 / (v - m_square)).tanh() * m_square / v, 0)


class StepContributions(NamedTuple):
    """First-order decreases of the loss by one step: scalar products of an update with gradients where it began.

    Attributes:
        taken_batch: of the update as taken, on the step's own batch.
        taken_fresh: of the update as taken, on a batch of the source domains that was never trained on.
        taken_unseen: of the update as taken, on an unseen domain; None without one.
        frozen_batch: of the batch's gradient times the preconditioner as it was before the step, on the step's own
            batch; None, as the next two, where the preconditioner is not known.
        frozen_fresh: of the same, on a batch of the source domains that was never trained on.
        frozen_unseen: of the same, on an unseen domain.
    """

    taken_batch: float
    taken_fresh: float
    taken_unseen: float | None
    frozen_batch: float | None
    frozen_fresh: float | None
    frozen_unseen: float | None


@torch.no_grad()
def step_contributions(
    update: Sequence[Tensor],
    gradient: Sequence[Tensor],
    preconditioner: Sequence[Tensor] | None,
    fresh: Sequence[Tensor],
    unseen: Sequence[Tensor] | None = None,
) -> StepContributions:
    """Return what one step contributes to its OSGR; sums are in float64.

    Args:
        update: weights before the step minus those after it, one tensor per parameter.
        gradient: of the step's own batch, at the weights before.
        preconditioner: as it was before the step, so that it does not depend on its batch; None if not known.
        fresh: gradient on a batch of the source domains that was never trained on, at the weights before.
        unseen: likewise on a domain that is not trained on.

    Raises:
        ValueError: the lists differ in length.
    """
    targets = (gradient, fresh, unseen)
    taken = [None if target is None else _dot(update, target) for target in targets]
    frozen: list[float | None] = [None, None, None]
    if preconditioner is not None:
        scaled = [factor * g for factor, g in zip(preconditioner, gradient, strict=True)]
        frozen = [None if target is None else _dot(scaled, target) for target in targets]
    return StepContributions(*taken, *frozen)  # type: ignore[arg-type]  # only unseen ones are None


def step_ratios(contributions: Sequence[StepContributions]) -> dict[str, Ratio]:
    r"""Return the ratios :math:`E[u \cdot g_{D'}] / E[u \cdot g_D]` over steps.

    Their intervals take the steps as independent, which those of one run are only if measured far enough apart. Means
    over a whole run are mostly of its first steps, where losses fall fastest.

    Args:
        contributions: of at least one step.

    Returns:
        ``osgr`` of the steps as taken and ``osgr_frozen`` of :math:`u = P_t g_D`; ``transfer`` and
        ``transfer_frozen``, the same with :math:`D'` from the unseen domain. Each is over the steps at which it was
        measured, as the preconditioner of most optimizers is from the second on, and left out where there is none.

    Raises:
        ValueError: there is no step.
    """
    if not contributions:
        raise ValueError("there is no step to take a ratio over")
    ratios = {}
    for name, kind, target in (
        ("osgr", "taken", "fresh"),
        ("osgr_frozen", "frozen", "fresh"),
        ("transfer", "taken", "unseen"),
        ("transfer_frozen", "frozen", "unseen"),
    ):
        pairs = [(getattr(c, f"{kind}_{target}"), getattr(c, f"{kind}_batch")) for c in contributions]
        measured = [pair for pair in pairs if None not in pair]
        if measured:
            ratios[name] = ratio_of_means(*torch.tensor(measured, dtype=torch.float64, device="cpu").unbind(1))
    return ratios


def osgr_of_gradients(
    model: nn.Module,
    loss: Loss,
    draws: Iterable[tuple[Batches, Batches]],
    preconditioner: Sequence[Tensor] | None = None,
) -> Ratio:
    r"""Return :math:`E[P g_D \cdot g_{D'}] / E[P g_D \cdot g_D]` at fixed weights, over draws of (D, D').

    The model is in evaluation mode meanwhile, and no ``.grad`` is touched.

    Args:
        model: its parameters that require a gradient count.
        loss: of outputs and targets, the mean over the samples.
        draws: pairs of sets, independent of each other and of the preconditioner; see `Batches`.
        preconditioner: one tensor per such parameter; None for 1.

    Raises:
        ValueError: there is no draw, no parameter trains or one is complex, or the preconditioner is not one tensor per
            parameter.
        RuntimeError: a gradient is sparse.
    """
    contributions = []
    with _measured(model, preconditioner) as (parameters, factors):
        for batch, fresh in draws:
            gradient, other = (_loss_and_gradient(model, loss, parameters, part)[1] for part in (batch, fresh))
            check_dense([*gradient, *other])
            update = [factor * g for factor, g in zip(factors, gradient, strict=True)]
            contributions.append(step_contributions(update, gradient, None, other))
    return step_ratios(contributions)["osgr"]


def osgr_by_definition(
    model: nn.Module,
    loss: Loss,
    draws: Iterable[tuple[Batches, Batches]],
    preconditioner: Sequence[Tensor] | None,
    lr: float,
) -> Ratio:
    r"""Return the OSGR by its definition: step, evaluate the losses of both sets, and average over draws of (D, D').

    Every draw's step :math:`\theta - \eta P g_D` is taken from the same weights, which are restored bit for bit. The
    model is in evaluation mode meanwhile, and no ``.grad`` is touched. A decrease is a difference of two losses, so
    small steps need a model in float64.

    Args:
        model: its parameters that require a gradient are stepped.
        loss: of outputs and targets, the mean over the samples.
        draws: pairs of sets, independent of each other and of the preconditioner; see `Batches`.
        preconditioner: P, one tensor per such parameter; None for 1.
        lr: :math:`\eta`.

    Raises:
        ValueError: there is no draw, no parameter trains or one is complex, or the preconditioner is not one tensor per
            parameter.
    """
    decreases: list[tuple[float, float]] = []
    with _measured(model, preconditioner) as (parameters, factors):
        weights = [p.detach().clone() for p in parameters]
        for batch, fresh in draws:
            before, gradient = _loss_and_gradient(model, loss, parameters, batch)
            with torch.no_grad():
                before_fresh = float(_set_loss(model, loss, fresh))
                try:
                    for p, factor, g in zip(parameters, factors, gradient, strict=True):
                        p.sub_(lr * factor * g)
                    after, after_fresh = (float(_set_loss(model, loss, part)) for part in (batch, fresh))
                finally:
                    for p, weight in zip(parameters, weights, strict=True):
                        p.copy_(weight)
            decreases.append((before_fresh - after_fresh, before - after))
    if not decreases:
        raise ValueError("there is no draw to average over")
    numerators, denominators = torch.tensor(decreases, dtype=torch.float64, device="cpu").unbind(1)
    return ratio_of_means(numerators, denominators)


@contextmanager
def _measured(
    model: nn.Module, preconditioner: Sequence[Tensor] | None
) -> Iterator[tuple[list[nn.Parameter], Sequence[Tensor | float]]]:
    """Put a model into evaluation mode, and give the parameters that train with their factors."""
    parameters = list(trained_weights(model).values())
    factors: Sequence[Tensor | float] = [1.0] * len(parameters) if preconditioner is None else preconditioner
    if preconditioner is not None and [f.shape for f in preconditioner] != [p.shape for p in parameters]:
        raise ValueError(f"the preconditioner must have one tensor for each of the {len(parameters)} parameters")
    with evaluation_mode(model):
        yield parameters, factors


def _set_loss(model: nn.Module, loss: Loss, batches: Batches) -> Tensor:
    return torch.stack([loss(model(inputs), targets) for inputs, targets in batches]).mean()


def _loss_and_gradient(
    model: nn.Module, loss: Loss, parameters: Sequence[nn.Parameter], batches: Batches
) -> tuple[float, tuple[Tensor, ...]]:
    with torch.enable_grad():
        value = _set_loss(model, loss, batches)
    return float(value.detach()), torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return sum(float(dot(x, y)) for x, y in zip(a, b, strict=True))


def _second_moment(mean_square: Tensor, variance: Tensor, n: float) -> Tensor:
    """Return the second moment of the gradient of n samples."""
    if mean_square.shape != variance.shape:
        raise ValueError(f"moments of shapes {tuple(mean_square.shape)} and {tuple(variance.shape)}")
    if not n > 0 or (variance < 0).any():
        raise ValueError(f"n is {n}, the least variance {float(variance.min())}: n must be above 0, no variance below")
    return mean_square.double() + variance.double() / n


def _checked(gsnr: Tensor, n: float) -> Tensor:
    if not n > 0 or not (gsnr.isfinite() & (gsnr >= 0)).all():
        raise ValueError(f"n is {n}: it must be above 0, and every signal-to-noise ratio finite and at least 0")
    return gsnr.double()


def _ranks(values: Tensor) -> Tensor:
    """Return ranks from 0; ties have their mean."""
    distinct: tuple[Tensor, Tensor, Tensor] = torch.unique(values, return_inverse=True, return_counts=True)
    _, inverse, counts = distinct
    return (counts.cumsum(0) - (counts + 1) / 2).double()[inverse]
