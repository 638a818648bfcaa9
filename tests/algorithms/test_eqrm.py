import math
from statistics import NormalDist

import pytest
import torch

from algorithms.made_up_batches import defaults
from algorithms.made_up_runs import (
    assert_continues_bit_equal,
    domain_losses,
    gradients,
    made_up,
    small,
    steps_of,
)
from shiftproof.algorithms import ERM
from shiftproof.algorithms.eqrm import EQRM, kernel_quantile
from shiftproof.protocol.settings import search_space, setting


def _bandwidth(risks):
    mean = sum(risks) / len(risks)
    return 1.06 * math.sqrt(sum((r - mean) ** 2 for r in risks) / (len(risks) - 1)) * len(risks) ** -0.2


def _quantile(risks, alpha):
    """By bisection on the distribution function, in plain Python."""
    width = _bandwidth(risks)
    low, high = min(risks) - 10 * width, max(risks) + 10 * width
    for _ in range(200):
        middle = (low + high) / 2
        below = sum(NormalDist(r, width).cdf(middle) for r in risks) / len(risks)
        low, high = (low, middle) if below > alpha else (middle, high)
    return low


def _slopes(risks, alpha):
    """Of the quantile to each risk, by central differences."""
    step, slopes = 1e-5, []
    for i in range(len(risks)):
        ends = [_quantile([r + sign * step * (i == j) for j, r in enumerate(risks)], alpha) for sign in (1, -1)]
        slopes.append((ends[0] - ends[1]) / (2 * step))
    return slopes


@pytest.mark.parametrize("risks", [(0.4, 1.3), (0.2, 0.9, 1.0), (2.0, 0.1, 0.5, 0.6, 0.7)])
@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.75, 0.99])
def test_quantile_and_slopes(risks, alpha):
    tensor = torch.tensor(risks, dtype=torch.float64, requires_grad=True)
    found = kernel_quantile(tensor, alpha)
    assert float(found.detach()) == pytest.approx(_quantile(risks, alpha), rel=1e-9)
    found.backward()
    assert tensor.grad.tolist() == pytest.approx(_slopes(risks, alpha), rel=1e-4, abs=1e-6)
    assert float(tensor.grad.sum()) == pytest.approx(1)  # all risks higher by 1: the quantile too


@pytest.mark.parametrize("alpha", [0.5, 0.75, 0.99])
def test_the_second_derivatives_exist(alpha):
    risks = torch.tensor([0.3, 0.7, 1.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: kernel_quantile(r, alpha), risks, atol=1e-6)
    assert torch.autograd.gradgradcheck(lambda r: kernel_quantile(r, alpha), risks, atol=1e-4)


@pytest.mark.parametrize("risks", [(0.4, 1.3), (2.0, 0.1, 0.5, 0.6, 0.7)])
def test_bisected_it_is_the_code_that_differentiates_its_bisection(risks):
    """The ends are quantiles of the lowest and the highest risk's kernels; each halving is differentiated."""
    alpha = 0.8
    tensor = torch.tensor(risks, dtype=torch.float64, requires_grad=True)
    width = 1.06 * tensor.std() * len(risks) ** -0.2
    normal = torch.distributions.Normal(tensor.sort()[0], width)
    ends = [normal.icdf(torch.tensor(alpha, dtype=torch.float64))[i] for i in (0, -1)]
    for _ in range(32):
        middle = (ends[0] + ends[1]) / 2
        ends[int(normal.cdf(middle).mean() > alpha)] = middle
    middle = (ends[0] + ends[1]) / 2
    [expected] = torch.autograd.grad(middle, tensor)
    found = kernel_quantile(tensor, alpha, bisected=True)
    torch.testing.assert_close(found, middle, rtol=1e-8, atol=0)
    torch.testing.assert_close(torch.autograd.grad(found, tensor)[0], expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found, kernel_quantile(tensor, alpha), rtol=1e-8, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bisected", [False, True])
@pytest.mark.parametrize("value", [0.0, 0.7, 30.0])
def test_equal_risks_are_their_quantile(dtype, bisected, value):
    risks = torch.full((3,), value, dtype=dtype, requires_grad=True)
    found = kernel_quantile(risks, 0.75, bisected)
    found.backward()
    assert float(found.detach()) == pytest.approx(value, abs=1e-5 * (1 + value))
    assert risks.grad.isfinite().all()
    assert float(risks.grad.sum()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("counts", [(3, 4), (2, 5, 3), (1, 2, 3, 2, 1)])
def test_objective_and_gradient_are_those_of_the_quantile(counts):
    algorithm = small(EQRM, len(counts), dtype=torch.float64, quantile=0.8, anneal_steps=0)
    batches = made_up(counts, dtype=torch.float64)
    losses = domain_losses(algorithm, batches)
    risks = [float(loss.detach()) for loss in losses]
    assert float(algorithm.objective(batches).detach()) == pytest.approx(_quantile(risks, 0.8), rel=1e-9)
    weighted = sum(slope * loss for slope, loss in zip(_slopes(risks, 0.8), losses, strict=True))
    found = gradients(algorithm, batches)
    for p, gradient in zip(found.values(), torch.autograd.grad(weighted, list(algorithm.parameters())), strict=True):
        torch.testing.assert_close(p, gradient, rtol=1e-4, atol=1e-7)


def test_before_the_quantile_on_one_domain_and_on_equal_ones_it_is_erm():
    one, apart = made_up((4,), dtype=torch.float64), made_up((4, 4), dtype=torch.float64)
    for batches, steps in ((apart, 1), (one, 0), (one * 2, 0)):
        algorithm = small(EQRM, len(batches), dtype=torch.float64, anneal_steps=steps)
        expected = gradients(small(ERM, len(batches), dtype=torch.float64), batches)
        for name, gradient in gradients(algorithm, batches).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("hparams", "rates", "taken"),
    [
        ({"anneal_steps": 2}, [0.01, 0.01, 0.001, 0.001], [1, 2, 1, 2]),
        ({"anneal_steps": 2, "keeps_optimizer": True}, [0.01] * 4, [1, 2, 3, 4]),
        ({"anneal_steps": 0}, [0.001] * 4, [1, 2, 3, 4]),
    ],
)
def test_the_second_phase_has_an_optimizer_and_a_rate_of_its_own(hparams, rates, taken):
    steps = steps_of(small(EQRM, lr_ratio=0.1, **hparams), "adam")
    seen = []
    for step in range(1, 5):
        steps.take(made_up(seed=step), step)
        built = steps.algorithm.optimizers["all"]
        seen.append((built.param_groups[0]["lr"], int(next(iter(built.state.values()))["step"])))
    assert [count for _, count in seen] == taken
    assert [rate for rate, _ in seen] == pytest.approx(rates)


@pytest.mark.parametrize("optimizer", ["adam", "genie", "sam"])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_continues_bit_equal(optimizer, stop):
    assert_continues_bit_equal(lambda: small(EQRM, dropout=0.3, anneal_steps=2), optimizer, stop, 5)


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({"quantile": 0.0}, "Invalid quantile value: 0.0; it must be above 0 and below 1"),
        ({"quantile": 1.0}, "Invalid quantile value: 1.0"),
        ({"anneal_steps": 2.5}, "Invalid anneal_steps value: 2.5; it must be a whole number, at least 0"),
        ({"lr_ratio": 0.0}, "Invalid lr_ratio value: 0.0; it must be above 0"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(hparams, message):
    with pytest.raises(ValueError, match=message):
        small(EQRM, **hparams)


def test_defaults_are_domainbeds():
    registered, constructed = defaults(EQRM)
    assert registered == constructed
    space = search_space("PACS", "photographs", True, "eqrm", "adam", "none", "protocol")
    first = setting(space, {}, 0, 0, "domainbed-head")
    assert first["algorithm.lr_ratio"] * first["optimizer.lr"] == pytest.approx(1e-6)
    assert (first["algorithm.quantile"], first["algorithm.anneal_steps"]) == (0.75, 2500)
    assert first["algorithm.bisected"]
    assert first["algorithm.separate_passes"]


def test_the_second_rate_is_a_ratio_with_any_optimizer_and_drawn_by_itself_in_published_code():
    for optimizer in ("adam", "genie"):
        space = search_space("PACS", "photographs", True, "eqrm", optimizer, "none", "protocol")
        for seed in range(1, 20):
            ours, theirs = (setting(space, {}, seed, 0, dialect) for dialect in ("shiftproof", "domainbed-head"))
            assert 0.002 <= ours["algorithm.lr_ratio"] < 0.2
            of_default = theirs["algorithm.lr_ratio"] * theirs["optimizer.lr"] / space["optimizer"]["lr"].default
            assert of_default == pytest.approx(ours["algorithm.lr_ratio"])
            fixed = setting(space, {"algorithm.lr_ratio": 0.3}, seed, 0, "domainbed-head")
            assert fixed["algorithm.lr_ratio"] == 0.3
