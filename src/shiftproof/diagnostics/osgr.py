r"""The one-step generalization ratio (OSGR): from moments of gradients, from real steps, and by its definition.

The OSGR of an update :math:`u` computed from a set :math:`D` of n samples is

.. math::
    R = \frac{E[L_{D'}(\theta) - L_{D'}(\theta - u)]}{E[L_D(\theta) - L_D(\theta - u)]}
    \approx \frac{E[u \cdot g_{D'}]}{E[u \cdot g_D]}

with :math:`D'` as large as :math:`D` and independent of it. To first order in the step size, it needs only gradients.
For an elementwise :math:`u = P g_D`, with a :math:`P` that does not depend on :math:`D`, the moments of the gradient
are enough. Sources: Liu et al., "Understanding Why Neural Networks Generalize Well Through GSNR of Parameters", ICLR
2020; Cho, Kim and Kim, "One-Step Generalization Ratio Guided Optimization for Domain Generalization", ICML 2025.

Moments here are elementwise tensors of equal shape: ``mean_square`` is :math:`\mu^2` of the gradient of one sample,
``variance`` is its :math:`s^2`, and ``gsnr`` is :math:`r = \mu^2 / s^2`; ``n`` is the number of samples in a step. For
batches stratified by domain, :math:`\mu` is the mean over the domains and :math:`s^2` the mean variance within them.
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
"""A set of samples as one batch (inputs, targets) per domain. Its loss is the mean of the domains' losses."""


def osgr(p: Tensor, mean_square: Tensor, variance: Tensor, n: float) -> float:
    r"""Return :math:`\sum p \mu^2 / \sum p (\mu^2 + s^2 / n)`, the OSGR of the preconditioner p (GENIE, Corollary 1).

    If ``mean_square`` is corrected for bias, and so may be negative, the result need not be in [0, 1]. It is nan if the
    denominator is 0.

    Raises:
        ValueError: shapes differ, a variance is negative, or n is not above 0.

    Examples:
        >>> import torch
        >>> from shiftproof.diagnostics import osgr
        >>> mean_square, variance = torch.tensor([1.0, 0.01]), torch.tensor([1.0, 1.0])
        >>> round(osgr(torch.tensor([1.0, 1.0]), mean_square, variance, n=10), 3)
        0.835
    """
    total = _second_moment(mean_square, variance, n)
    if p.shape != total.shape:
        raise ValueError(f"a preconditioner of shape {tuple(p.shape)} for moments of shape {tuple(total.shape)}")
    denominator = float((p.double() * total).sum())
    return float((p.double() * mean_square.double()).sum()) / denominator if denominator else math.nan


def preconditioners(mean_square: Tensor, variance: Tensor, n: float) -> dict[str, Tensor]:
    r"""Return the preconditioners of SGD, Adam, uniform weights and GENIE's Corollary 2, by name.

    With :math:`E[g_D^2] = \mu^2 + s^2/n` they are 1 ("sgd"), :math:`E[g_D^2]^{-1/2}` ("adam"),
    :math:`E[g_D^2]^{-1}` ("uniform") and :math:`(r + 1/n) / E[g_D^2]` ("genie"). The last equals :math:`1/s^2`, so
    Corollary 2 amounts to dividing by the variance of the gradient. Estimates of :math:`\mu^2` below 0 count as 0.
    Elements that never have a gradient get weight 0.

    Raises:
        ValueError: see `osgr`; also if a gradient does not vary, because its weight would be infinite.

    Examples:
        >>> import torch
        >>> from shiftproof.diagnostics import preconditioners
        >>> list(preconditioners(torch.tensor([1.0, 0.01]), torch.tensor([1.0, 1.0]), n=10))
        ['sgd', 'adam', 'uniform', 'genie']
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
        value: the mean of the two estimates below; a large difference between them means that it is unreliable.
        forward: OSGR on the second half, with the preconditioner from the first.
        backward: OSGR on the first half, with the preconditioner from the second.
    """

    value: float
    forward: float
    backward: float


def osgr_of_moments(
    first: GradientMoments, second: GradientMoments, n: float, beta: float = 0.95
) -> dict[str, HalvesEstimate]:
    """Return the OSGR of each of `preconditioners` and of GENIE's step, estimated from two halves of the samples.

    The preconditioner comes from one half's moments and its OSGR from the other's, in both directions, and the two are
    averaged. If both came from the same samples, the elements with the most overestimated signal would get the largest
    weights. Single elements of the corrected ``mean_square`` may be negative, but the OSGR uses only sums of them.
    Elements whose gradient does not vary in both halves are left out. "genie_step" is `genie_factor`.

    Args:
        first: moments of one half of the samples.
        second: moments of the other half, at the same weights.
        n: number of images in a step, over all domains.
        beta: decay of the moving averages in `genie_factor`.

    Raises:
        ValueError: see `osgr`.
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
    r"""Return :math:`1 - 1 / (n\, \mathrm{mean}(r + 1/n))` (GENIE, Corollary 2), for true or plug-in r.

    Examples:
        >>> import torch
        >>> from shiftproof.diagnostics import genie_osgr
        >>> round(genie_osgr(torch.tensor([1.0, 0.01]), n=10), 3)
        0.835
    """
    return 1 - 1 / (n * float(_checked(gsnr, n).mean()) + 1)


def uniform_osgr(gsnr: Tensor, n: float) -> float:
    r"""Return :math:`1 - \mathrm{mean}(1 / (r + 1/n)) / n`, GENIE's R_pre. It is never above `genie_osgr`.

    Examples:
        >>> import torch
        >>> from shiftproof.diagnostics import uniform_osgr
        >>> round(uniform_osgr(torch.tensor([1.0, 0.01]), n=10), 3)
        0.5
    """
    return 1 - float((1 / (n * _checked(gsnr, n) + 1)).mean())


class GenieDistance(NamedTuple):
    """How far the factor in GENIE's step is from the preconditioner of its Corollary 2.

    Attributes:
        step_osgr: OSGR of the step's factor as a preconditioner, without the effect of momentum.
        corollary_osgr: OSGR of Corollary 2's preconditioner.
        sgd_osgr: OSGR without a preconditioner.
        cosine: cosine between the two as vectors.
        rank_correlation: Spearman's rank correlation between the two.
    """

    step_osgr: float
    corollary_osgr: float
    sgd_osgr: float
    cosine: float
    rank_correlation: float


def genie_distance(mean_square: Tensor, variance: Tensor, n: float, beta: float = 0.95) -> GenieDistance:
    """Compare `genie_factor` with the preconditioner of Corollary 2 under the same moments.

    Raises:
        ValueError: see `preconditioners`.
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
    r"""Return :math:`\tanh(1/\sigma^2)\, m^2 / v`, by which GENIE's Algorithm 1 multiplies the mean gradient.

    The moving averages take the values expected if the gradient's moments do not change:
    :math:`m^2 = \mu^2 + \frac{1-\beta}{1+\beta} s^2/n`, :math:`v = \mu^2 + s^2/n`, :math:`\sigma^2 = v - m^2`.

    Raises:
        ValueError: see `osgr`.
    """
    square = mean_square.double().clamp(min=0)
    v = _second_moment(square, variance, n)
    m_square = square + (1 - beta) / (1 + beta) * (v - square)
    return torch.where(v > 0, (1 / (v - m_square)).tanh() * m_square / v, 0)


class StepContributions(NamedTuple):
    """First-order decreases of losses in one step: scalar products of an update with gradients at the step's start.

    The taken update is the optimizer's own. The frozen update is the batch's gradient times the preconditioner from
    before the step; its products are None if the preconditioner is not known.

    Attributes:
        taken_batch: decrease by the taken update on the step's own batch.
        taken_fresh: decrease by the taken update on a batch of the source domains that was never trained on.
        taken_unseen: decrease by the taken update on an unseen domain; None without one.
        frozen_batch: decrease by the frozen update on the step's own batch.
        frozen_fresh: decrease by the frozen update on a batch of the source domains that was never trained on.
        frozen_unseen: decrease by the frozen update on an unseen domain; None without one.
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
    """Compute one step's contributions to the OSGR, with sums in float64.

    All gradients are at the weights before the step.

    Args:
        update: weights before the step minus weights after it, one tensor per parameter.
        gradient: gradient on the step's own batch.
        preconditioner: the preconditioner before the step, so that it does not depend on the batch; None if not known.
        fresh: gradient on a batch of the source domains that was never trained on.
        unseen: gradient on a domain that is not trained on.

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

    The intervals assume independent steps, which holds within a run only for steps measured far enough apart. The first
    steps of a run, where losses fall fastest, dominate means over the whole run.

    Args:
        contributions: contributions of at least one step.

    Returns:
        ``osgr`` for the steps as taken and ``osgr_frozen`` for :math:`u = P_t g_D`; ``transfer`` and
        ``transfer_frozen``, the same with :math:`D'` from the unseen domain. Each covers the steps at which it was
        measured (most optimizers have a preconditioner only from the second step on), and is left out if there are
        none.

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
        model: the model, whose parameters that require a gradient count.
        loss: maps outputs and targets to the mean loss over samples.
        draws: pairs of sets, independent of each other and of the preconditioner; see `Batches`.
        preconditioner: one tensor per parameter that requires a gradient; None for 1.

    Raises:
        ValueError: there are no draws, no parameter trains or one is complex, or the preconditioner does not have one
            tensor per parameter.
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
    r"""Measure the OSGR by its definition: step, evaluate the losses of both sets, and average over draws of (D, D').

    Every draw takes its step :math:`\theta - \eta P g_D` from the same weights, which are restored bit for bit. The
    model is in evaluation mode meanwhile, and no ``.grad`` is touched. Decreases are differences of two losses, so
    small steps need a model in float64.

    Args:
        model: the model, whose parameters that require a gradient are stepped.
        loss: maps outputs and targets to the mean loss over samples.
        draws: pairs of sets, independent of each other and of the preconditioner; see `Batches`.
        preconditioner: P, one tensor per parameter that requires a gradient; None for 1.
        lr: step size :math:`\eta`.

    Raises:
        ValueError: there are no draws, no parameter trains or one is complex, or the preconditioner does not have one
            tensor per parameter.
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
    """Put a model into evaluation mode, and yield the parameters that train with their factors."""
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
    """Return the second moment of the mean gradient of n samples."""
    if mean_square.shape != variance.shape:
        raise ValueError(f"moments of shapes {tuple(mean_square.shape)} and {tuple(variance.shape)}")
    if not n > 0 or (variance < 0).any():
        raise ValueError(
            f"n is {n} and the least variance {float(variance.min())}: n must be above 0, and no variance below 0"
        )
    return mean_square.double() + variance.double() / n


def _checked(gsnr: Tensor, n: float) -> Tensor:
    if not n > 0 or not (gsnr.isfinite() & (gsnr >= 0)).all():
        raise ValueError(f"n is {n}: it must be above 0, and every signal-to-noise ratio finite and at least 0")
    return gsnr.double()


def _ranks(values: Tensor) -> Tensor:
    """Return ranks, counted from 0; ties get their mean rank."""
    distinct: tuple[Tensor, Tensor, Tensor] = torch.unique(values, return_inverse=True, return_counts=True)
    _, inverse, counts = distinct
    return (counts.cumsum(0) - (counts + 1) / 2).double()[inverse]
