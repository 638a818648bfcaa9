"""docs/explanation/theory_convergence.md, section 5: mean squared gradients against the number of steps."""

import math

import pytest
import torch
from torch import Tensor

from shiftproof.optim import GENIE

SEEDS = 8
MANY = [4**5, 4**6, 4**7]


def _gradient(x: Tensor) -> Tensor:
    """Return the gradient of the sum of x^2 / (1 + x^2): bounded by 0.65, with a Lipschitz constant of 2."""
    return 2 * x / (1 + x * x) ** 2


def _mean_squares(form: str, deviation: float, rate: float, steps: int, beta: float = 0.95) -> Tensor:
    """Return the mean over the steps of the squared gradient of an element, one mean per seed.

    A seed is a parameter of its own, with its own gradient noise, GENIE noise and mask.
    """
    start = torch.linspace(-1.5, 1.5, 32)
    params = [torch.nn.Parameter(start.clone()) for _ in range(SEEDS)]
    optimizer = GENIE(params, lr=rate / math.sqrt(steps), beta=beta, form=form)
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(SEEDS, dtype=torch.float64)
    for _ in range(steps):
        true = _gradient(torch.stack([p.detach() for p in params]))
        noise = deviation * torch.randn(true.shape, generator=generator)
        for p, gradient in zip(params, true + noise, strict=True):
            p.grad = gradient
        optimizer.step()
        total += true.double().square().mean(1)
    return total / steps


def _slope(numbers_of_steps: list[int], means: Tensor) -> tuple[float, float]:
    """Return the slope of log(mean) against log(steps), its mean over seeds and that one's standard error."""
    x = torch.tensor(numbers_of_steps, dtype=torch.float64).log()
    x -= x.mean()
    slopes = (x[:, None] * means.log()).sum(0) / x.square().sum()
    return float(slopes.mean()), float(slopes.std() / math.sqrt(means.shape[1]))


@pytest.mark.parametrize(("form", "deviation", "rate"), [("paper", 0.3, 3.0), ("released", 1.0, 1.0)])
def test_the_mean_squared_gradient_falls_as_the_inverse_root_of_the_steps(form, deviation, rate):
    numbers = [256, 512, 1024]
    slope, error = _slope(numbers, torch.stack([_mean_squares(form, deviation, rate, steps) for steps in numbers]))
    assert error < 0.05
    assert slope <= -0.5 + 2 * error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "deviation", "rate"),
    [
        ("paper", 0.3, 10.0),
        ("released", 0.3, 1.0),
        ("released", 1.0, 1.0),
    ],
)
def test_the_rate_holds_over_many_steps(form, deviation, rate):
    slope, error = _slope(MANY, torch.stack([_mean_squares(form, deviation, rate, steps) for steps in MANY]))
    print(f"{form}, deviation {deviation}: slope {slope:.3f} +- {error:.3f}")
    assert error < 0.02
    assert slope <= -0.5 + 2 * error


@pytest.mark.slow
def test_where_its_noise_acts_the_published_form_is_slower_at_first():
    # its factor is about mu^2 until the averages' own variance takes over: T^(-1/4), and then T^(-1/2)
    slope, error = _slope(MANY, torch.stack([_mean_squares("paper", 1.0, 10.0, steps) for steps in MANY]))
    print(f"paper, deviation 1.0: slope {slope:.3f} +- {error:.3f}")
    assert -0.5 + 2 * error < slope < -0.25 - 2 * error
    soon, error = _slope(MANY, torch.stack([_mean_squares("paper", 1.0, 2.0, steps, beta=0.7) for steps in MANY]))
    print(f"paper, deviation 1.0, beta 0.7: slope {soon:.3f} +- {error:.3f}")
    assert soon < -0.47


@pytest.mark.parametrize(
    ("form", "deviation", "expected"),
    [("paper", 0.3, 0.077), ("paper", 1.0, 0.059), ("released", 0.3, 0.66)],
)
def test_averages_keep_the_factor_above_zero_where_the_gradient_vanishes(form, deviation, expected):
    mean = 0.1 * deviation
    params = [torch.nn.Parameter(torch.zeros(20_000, dtype=torch.float64))]
    optimizer = GENIE(params, lr=1.0, form=form, dropout=0, noise=0)
    generator = torch.Generator().manual_seed(0)
    for step in range(400):
        if step == 100:
            before = params[0].detach().clone()
        params[0].grad = mean + deviation * torch.randn(20_000, generator=generator, dtype=torch.float64)
        optimizer.step()
    factor = float((before - params[0].detach()).mean()) / 300 / mean
    assert factor == pytest.approx(expected, rel=0.12)


def _oracle_means(exponent: int, rate: float, factor: str, numbers_of_steps: list[int]) -> Tensor:
    """Descend x^k / (1 + x^k) with the theorem's preconditioner at its true moments; a row per number of steps."""
    variance, seeds = 0.25, 64
    steps = torch.tensor(numbers_of_steps, dtype=torch.float64)[:, None]
    x = torch.full((len(numbers_of_steps), seeds), 0.6, dtype=torch.float64)
    total = torch.zeros_like(x)
    generator = torch.Generator().manual_seed(0)
    for t in range(max(numbers_of_steps)):
        true = exponent * x ** (exponent - 1) / (1 + x**exponent) ** 2
        total += torch.where(t < steps, true**2, 0)
        p = true**2 / ((true**2 + variance) * variance) if factor == "without 1/n" else 1 / variance
        x -= rate / steps.sqrt() * p * (true + math.sqrt(variance) * torch.randn(x.shape, generator=generator).double())
    return total / steps


def test_without_one_over_n_the_true_factor_vanishes_and_the_rate_with_it():
    numbers = [256, 1024, 4096, 16384]
    slope, error = _slope(numbers, _oracle_means(4, 1.0, "without 1/n", numbers))
    assert slope - 10 * error > -0.45  # the flow's own is -3/8
    slope, error = _slope(numbers, _oracle_means(4, 0.1, "with 1/n", numbers))
    assert slope <= -0.5 + 2 * error
