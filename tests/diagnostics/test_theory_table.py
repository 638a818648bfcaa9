"""docs/explanation/theory_preconditioners.md, section 3: what optimizers multiply a stationary gradient by."""

from functools import partial
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch.optim import SGD, Adam

from shiftproof.diagnostics.osgr import osgr
from shiftproof.optim import GENIE, AdaBelief, GENIEAdamW, Yogi

BETA = 0.99

# Per element: the mean of the gradient and the standard deviation of a batch's, with n = 1 image in it.
MEAN = torch.tensor([0.05, 0.2, 0.5, 0.3, 0.3], dtype=torch.float64)
DEVIATION = torch.tensor([0.15, 0.06, 0.3, 1.2, 0.03], dtype=torch.float64)
VARIANCE = DEVIATION**2
SECOND = MEAN**2 + VARIANCE  # E[g_D^2]
X = MEAN**2 / VARIANCE + 1  # r + 1/n
Q = MEAN**2 / SECOND  # r / (r + 1/n)

# An average of factor beta has this share of the variance of one gradient.
RHO = (1 - BETA) / (1 + BETA)


def _yogi_scale(signal):
    """Return kappa of v = kappa E[g^2]: half of E[g^2] comes from gradients with g^2 below v."""
    square = (signal + np.sqrt(1 - signal**2) * np.random.default_rng(0).standard_normal(400_000)) ** 2
    square.sort()
    mass = square.cumsum()
    return float(square[np.searchsorted(mass, mass[-1] / 2)])


def _paper_factor():
    return torch.tanh(1 / VARIANCE) * (MEAN**2 + 3 * RHO * VARIANCE) / SECOND  # E[m^3] / (mu E[v])


def _released_factor():
    averaged_alignment = MEAN**2 / (MEAN**2 + RHO * VARIANCE)
    return torch.tanh((1 / VARIANCE).clamp(max=10)) * averaged_alignment


def _long_adamw_factor():
    return MEAN**2 / (MEAN**2 + RHO * VARIANCE) / SECOND.sqrt()


def _adamw_factor(beta1=0.9):
    # a short average, so E[m^3 / (m^2 + rho V)] / mu is taken from its distribution, which is normal
    rho = (1 - beta1) / (1 + beta1)
    m = MEAN[:, None] + (rho * VARIANCE).sqrt()[:, None] * torch.from_numpy(
        np.random.default_rng(0).standard_normal(400_000)
    )
    rest = (SECOND[:, None] - m**2).clamp(min=0)
    return (m**3 / (m**2 + rho * rest)).mean(1) / MEAN / SECOND.sqrt()


def _belief():
    # (g - m)^2 with g in m: beta_1^2 (1 + (1 - beta_1) / (1 + beta_1)) of the variance
    return 1 / (0.9**2 * 2 / 1.9 * VARIANCE).sqrt()


def _yogi():
    kappa = torch.tensor([_yogi_scale(float(q.sqrt())) for q in Q], dtype=torch.float64)
    assert kappa.max() < 2.366  # the median of the chi-squared distribution of 3 degrees, that of no signal
    return (kappa * SECOND) ** -0.5


def _mean_factor(make, steps=1500, warm_up=900, copies=200):
    """Return the mean update over the mean gradient, per element, after a warm-up, over copies and steps."""
    mean, deviation = MEAN.repeat_interleave(copies), DEVIATION.repeat_interleave(copies)
    weights = torch.nn.Parameter(torch.zeros_like(mean))
    optimizer = make([weights])
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        if step == warm_up:
            before = weights.detach().clone()
        weights.grad = mean + deviation * torch.randn(mean.shape, generator=generator, dtype=torch.float64)
        optimizer.step()
    update = (before - weights.detach()).reshape(-1, copies).mean(1) / (steps - warm_up)
    return update / MEAN


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (partial(SGD, lr=1.0, momentum=0.9), lambda: torch.full_like(MEAN, 10)),
        (partial(Adam, lr=1.0, betas=(0.9, BETA)), lambda: SECOND**-0.5),
        (partial(Yogi, lr=1.0, betas=(0.9, BETA), eps=1e-8), _yogi),
        (partial(AdaBelief, lr=1.0, betas=(0.9, BETA)), _belief),
        (partial(GENIE, lr=1.0, beta=BETA, dropout=0, noise=0), _paper_factor),
        (partial(GENIE, lr=1.0, beta=BETA, dropout=0, noise=0, form="released"), _released_factor),
        (partial(GENIEAdamW, lr=1.0, betas=(BETA, 0.999), weight_decay=0), _long_adamw_factor),
        (partial(GENIEAdamW, lr=1.0, betas=(0.9, 0.999), weight_decay=0), _adamw_factor),
    ],
    ids=["momentum", "adam", "yogi", "adabelief", "paper", "released", "genie_adamw", "genie_adamw, short"],
)
def test_optimizers_have_the_preconditioners_of_the_table(make, expected):
    # the element with the least signal has a standard error of 0.03
    torch.testing.assert_close(_mean_factor(make), expected(), rtol=0.07, atol=0)


def test_adahessian_divides_by_the_norm_of_a_row_of_the_hessian():
    random = np.random.default_rng(0)
    hessian = random.standard_normal((6, 6))
    hessian += hessian.T
    signs = np.array(list(product([-1, 1], repeat=6)))
    squares = (signs * (signs @ hessian)) ** 2
    np.testing.assert_allclose(squares.mean(0), (hessian**2).sum(1))


def test_convergence_times_alignment_is_the_preconditioner():
    size = MEAN.abs()
    torch.testing.assert_close(1 / size * Q.sqrt(), SECOND**-0.5)  # Adam
    torch.testing.assert_close(1 / size * (X - 1).sqrt(), VARIANCE**-0.5)  # AdaBelief, n = 1
    torch.testing.assert_close(1 / SECOND * X, 1 / VARIANCE)  # Corollary 2
    torch.testing.assert_close(1 / SECOND * (X - 1), Q / VARIANCE)  # the same without 1/n


@pytest.mark.parametrize(("scale", "power"), [(1e-3, 0), (1e3, 1)])
def test_the_published_step_divides_by_the_variance_only_where_that_is_far_above_one(scale, power):
    random = torch.rand(2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    variance = scale * (random[0] + 0.5)  # of a batch's gradient
    square = random[1] * variance
    alignment = square / (square + variance)
    step = torch.tanh(1 / variance) * alignment
    expected = alignment / variance**power
    assert float((step * expected).sum() / (step.norm() * expected.norm())) == pytest.approx(1, abs=1e-5)
    other = alignment / variance ** (1 - power)
    assert float((step * other).sum() / (step.norm() * other.norm())) < 0.99


def test_order_of_the_ratios_that_always_holds():
    random = np.random.default_rng(0)
    for _ in range(200):
        variance = torch.from_numpy(np.exp(3 * random.standard_normal(30)))
        square = torch.from_numpy(np.exp(3 * random.standard_normal(30)))
        n = int(random.integers(1, 100))
        second = square + variance / n
        q = square / second
        # uniform, Corollary 2, the same without 1/n; SGD, the paper's form where tanh is 1
        for chain in ((1 / second, 1 / variance, q / variance), (torch.ones_like(q), q)):
            ratios = [osgr(p, square, variance, n) for p in chain]
            assert all(a <= b + 1e-12 for a, b in pairwise(ratios))
            assert ratios[-1] <= float(q.max()) + 1e-12
