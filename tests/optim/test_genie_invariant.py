"""Form "invariant" of GENIE: the unit of the loss does not matter, and noise is not inert."""

import math

import numpy as np
import pytest
import torch

from shiftproof.optim import GENIE

from . import genie_transcription as transcription
from .test_genie import FOREACH, FORLOOP, FUSED, IMPLEMENTATIONS, Twin, assert_same_bits, bits, step_with

SWITCHES = pytest.mark.parametrize(
    ("precondition", "noise", "dropout"), [(p, z, d) for p in (True, False) for z in (0.0, 1.0) for d in (0.0, 0.4)]
)
STEPS = 60
# The for-loop is foreach bit for bit: test_genie.py.
VECTORISED = pytest.mark.parametrize("implementation", [FOREACH, FUSED], ids=["foreach", "fused"])


def trained(c, dtype, form="invariant", lr=0.02, **options):
    """A small network's weights on every step, and noisy fractions by step, where the loss is multiplied by ``c``."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    params = [normal(4, 6).requires_grad_(), normal(4).requires_grad_(), normal(1, 4).requires_grad_()]
    inputs, targets = normal(STEPS, 8, 6), normal(STEPS, 8, 1)
    optimizer = GENIE(params, lr=lr / c, form=form, seed=3, **options)
    weights, noisy = [], {}
    for index in range(STEPS):
        optimizer.zero_grad()
        outputs = torch.tanh(inputs[index] @ params[0].T + params[1]) @ params[2].T
        (c * (outputs - targets[index]).square().mean()).backward()
        optimizer.step()
        weights.append(torch.cat([param.detach().flatten() for param in params]))
        if index in (0, 1, STEPS - 1):
            noisy[index + 1] = optimizer.statistics()[0].noisy_fraction
    return torch.stack(weights), noisy


def largest_change(one, other):
    return ((one - other).abs().max() / one.abs().max()).item()


# ------------------------------------------------------------------------------------------- invariance


@SWITCHES
def test_the_factor_of_the_loss_is_the_learning_rates(precondition, noise, dropout):
    options = {"precondition": precondition, "noise": noise, "dropout": dropout}
    reference, noisy = trained(1.0, torch.float64, **options)
    assert largest_change(reference[0], reference[-1]) > 0.1
    assert noisy[1] == 0
    assert (noisy[2] > 0.9) == (noisy[STEPS] > 0.9) == bool(noise)
    for c in (1e-4, 0.37, 1000.0):
        weights, noisy_too = trained(c, torch.float64, **options)
        assert largest_change(reference, weights) < 1e-11
        assert noisy_too == noisy


@VECTORISED
@SWITCHES
def test_powers_of_two_change_no_bit_in_float32(implementation, precondition, noise, dropout):
    options = {"precondition": precondition, "noise": noise, "dropout": dropout}
    options |= implementation.options(torch.zeros(1))
    reference, noisy = trained(1.0, torch.float32, **options)
    assert (noisy[STEPS] > 0.9) == bool(noise)
    for c in (2.0**-12, 2.0**20):
        assert torch.equal(trained(c, torch.float32, **options)[0], reference)


@pytest.mark.parametrize("form", ["paper", "released"])
def test_the_other_forms_depend_on_the_unit_of_the_loss(form):
    """They have noise in one unit and none in another, and the released preconditioner is another one."""
    lr = transcription.DEFAULT_LR[form]
    runs = {c: trained(c, torch.float32, form, lr) for c in (1e-4, 1.0, 1000.0)}
    assert runs[1e-4][1][STEPS] == 0
    assert runs[1000.0][1][STEPS] > 0.9
    assert largest_change(runs[1.0][0], runs[1000.0][0]) > 0.1
    assert largest_change(runs[1.0][0], runs[1e-4][0]) > 1e-2


@IMPLEMENTATIONS
def test_each_tensor_has_its_own_unit(implementation):
    """Layers differ in their gradients by orders of magnitude; the one does not decide on the other's noise."""
    dtype = implementation.dtype
    gradients = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    runs = []
    for c in (1.0, 2.0**-14):
        params = [torch.zeros(50, dtype=dtype, requires_grad=True) for _ in range(2)]
        groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.5 / c}]
        optimizer = GENIE(groups, lr=0.5, form="invariant", **implementation.options())
        for gradient in gradients:
            step_with(optimizer, gradient, c * gradient.flip(0))
        runs.append(params)
    assert_same_bits(*runs)


# --------------------------------------------------------------------------------------- noise that acts


@VECTORISED
@pytest.mark.parametrize(("std", "certainty"), [(1.0, math.tanh(1)), (2.0, math.tanh(1 / 4))])
def test_certainty_of_what_varies_as_much_as_the_tensor(implementation, std, certainty):
    """0.76 for elements of the tensor's own root mean square, 0.24 for those of twice that; others are certain."""
    n, steps, unit, dtype = 512, 300, 1e-4, implementation.dtype
    varying = torch.arange(n) % int(std**2) == 0
    gradient = unit * std * varying.to(dtype)
    runs = []
    for noise in (1.0, 0.0):
        param = torch.zeros(n, dtype=dtype, requires_grad=True)
        # A long average: the two signs leave little of the mean, and the estimate of the variance is that of v.
        options = {"lr": 1 / unit, "beta": 0.99, "dropout": 0.0, "noise": noise, "form": "invariant"}
        optimizer = GENIE([param], **options, **implementation.options())
        moves = []
        for index in range(steps):
            with torch.no_grad():
                param.zero_()
            step_with(optimizer, gradient if index % 2 else -gradient)
            moves.append(param.detach().clone().double())
        runs.append(torch.stack(moves[-20:]))
    loud, quiet = runs[0], runs[1]
    assert (loud - quiet)[:, ~varying].abs().sum() < 1e-6 * quiet.abs().sum()
    # The noise's deviation is spread * (1 - a), where spread * sum(a) is the sum of all absolute updates.
    deviation = (loud - quiet)[:, varying].square().mean().sqrt().item()
    update, share = quiet[:, varying].abs().mean().item(), varying.double().mean().item()
    expected = (1 - certainty) * share * update / (share * certainty + 1 - share)
    assert deviation == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("std", [1e-5, 1e-3, 1.0])
def test_noise_acts_at_ordinary_sizes_of_gradients(std):
    """Where the absolute forms have none at all in float32."""
    twins = {form: Twin(([(400,)], {}), dtype=torch.float32, form=form) for form in ("paper", "released", "invariant")}
    for _ in range(40):
        for twin in twins.values():
            twin.step(std, mean=0.0)
    statistics = {form: twin.optimizer.statistics()[0] for form, twin in twins.items()}
    assert statistics["invariant"].noisy_fraction > 0.99
    assert 0.2 < statistics["invariant"].noise_to_update < 1
    assert (statistics["released"].noisy_fraction > 0) == (std == 1.0)
    assert (statistics["paper"].noisy_fraction > 0) == (std == 1.0)


# ------------------------------------------------------------------------------------ no scale, no gradient


@IMPLEMENTATIONS
@pytest.mark.parametrize("noise", [0.0, 1e6])
def test_the_first_step_is_the_gradient(implementation, noise):
    """There is no scale yet, and so neither noise nor anything to tell certain from uncertain elements by."""
    gradient = torch.logspace(-9, 3, 100, dtype=implementation.dtype) * (-1) ** torch.arange(100)
    gradient[50] = 0
    param = torch.zeros(100, dtype=implementation.dtype, requires_grad=True)
    options = {"form": "invariant", "lr": 0.5, "dropout": 0.0, "noise": noise}
    step_with(GENIE([param], **options, **implementation.options()), gradient)
    torch.testing.assert_close(param.detach(), -0.5 * gradient, rtol=implementation.tolerance(1), atol=0)


def followed(implementation, gradients, **options):
    """Weights after each of some gradients, of GENIE and of its transcription."""
    param = torch.zeros(gradients[0].shape, dtype=implementation.dtype, requires_grad=True)
    optimizer = GENIE([param], form="invariant", **options, **implementation.options())
    weight, state, seen = np.zeros(param.numel()), {}, []
    for gradient in gradients:
        step_with(optimizer, gradient.to(param.dtype))
        weight = transcription.step(weight, param.grad.double().numpy().ravel(), state, 0, form="invariant", **options)
        seen.append((param.detach().double().numpy().ravel().copy(), weight))
    return seen, optimizer.state[param]


@IMPLEMENTATIONS
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_a_tensor_whose_gradient_appears_late(implementation, noise):
    """While its unit is zero there is no noise, as on a first step; from the step after there is."""
    draws = torch.randn(10, 70, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws[:4] = 0
    seen, state = followed(implementation, draws, noise=noise, dropout=0.0, lr=1.0)
    scale = max(np.abs(weight).max() for _, weight in seen)
    for actual, expected in seen:
        assert np.isfinite(actual).all()
        np.testing.assert_allclose(actual, expected, rtol=0, atol=implementation.tolerance(10) * scale)
    assert not any(actual.any() for actual, _ in seen[:4])
    momentum = (0.05 / (1 - 0.95**5)) * draws[4].numpy()
    np.testing.assert_allclose(seen[4][0], -momentum, rtol=implementation.tolerance(1))
    assert (state["scale"] > 0).all()


@IMPLEMENTATIONS
def test_elements_whose_gradient_appears_late(implementation):
    """Their variance is beyond any unit of the step before: they have noise and no update, and stay finite."""
    draws = torch.randn(10, 70, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws[:4, ::2] = 0
    draws[4:, ::2] *= 1e6
    seen, _ = followed(implementation, draws)
    scale = max(np.abs(weight).max() for _, weight in seen)
    for actual, expected in seen:
        assert np.isfinite(actual).all()
        np.testing.assert_allclose(actual, expected, rtol=0, atol=implementation.tolerance(10) * scale)
    # Not quite none in float64, where tanh(10) is 4e-9 from 1.
    moved = [np.abs(actual[::2]).max() / np.abs(actual[1::2]).max() for actual, _ in seen[:4]]
    assert max(moved) < 1e-7 if implementation.dtype == torch.float64 else max(moved) == 0
    assert np.abs(seen[4][0][::2]).max() < np.abs(seen[4][0][1::2]).max()


@IMPLEMENTATIONS
def test_a_tensor_whose_gradient_vanishes(implementation):
    """The unit falls with the moving average, down to zero, and weights come to rest."""
    draws = torch.randn(3, 70, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen, state = followed(implementation, [*draws, *torch.zeros(400, 70)], beta=0.5)
    assert all(np.isfinite(actual).all() for actual, _ in seen)
    assert np.array_equal(seen[-1][0], seen[-100][0])
    assert state["scale"][1] < 1e-40


@IMPLEMENTATIONS
def test_squares_that_underflow_leave_no_scale(implementation):
    """Gradients whose squares are zero in the moments' precision are none, and have no noise."""
    size = {torch.float64: 1e-170, torch.float32: 1e-25}[implementation.dtype]
    param = torch.zeros(70, dtype=implementation.dtype, requires_grad=True)
    optimizer = GENIE([param], form="invariant", lr=1.0, noise=1e6, **implementation.options())
    for _ in range(5):
        step_with(optimizer, torch.full_like(param, size))
    assert not optimizer.state[param]["scale"].any()
    assert (param.abs() <= 10 * size).all()


@IMPLEMENTATIONS
def test_noise_waits_for_a_unit(implementation):
    """`init_state` and a step on zero gradients leave the unit at zero; neither is a scale to measure in."""
    twin = Twin(([(50,), (3, 3)], {}), form="invariant", implementation=implementation, noise=1e6, dropout=0.0)
    twin.optimizer.init_state()
    before = bits(twin.params)
    twin.step(std=0.0)
    assert_same_bits(twin.params, before)
    twin.step()
    largest = max((param - old).abs().max().item() for param, old in zip(twin.params, before, strict=True))
    assert largest < 0.1
    twin.step()
    assert (twin.params[0] - before[0]).abs().max() > 100
    twin.check()


@pytest.mark.parametrize("implementation", [FORLOOP, FUSED], ids=["forloop", "fused"])
def test_a_single_element_is_its_own_unit(implementation):
    """Its variance is at most its mean square, about: certain enough to move, uncertain enough for noise."""
    twin = Twin(([()], {}), form="invariant", implementation=implementation)
    for _ in range(30):
        twin.step(1e-3)
        assert twin.params[0].isfinite()
    twin.check()
    assert twin.optimizer.statistics()[0].noisy_fraction == 1
