"""Sharpness, against closed forms of quadratic losses and exact Hessians of small nets."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from shiftproof.diagnostics.mean_loss import MeanLoss, flat_weights
from shiftproof.diagnostics.sharpness import (
    average_increase,
    hessian_trace,
    largest_eigenvalue,
    sharpness,
    worst_increase,
)

FILTERS, INPUTS = 3, 4
FILTER_PARTS = [slice(INPUTS * i, INPUTS * (i + 1)) for i in range(FILTERS)]


class Linear(nn.Module):
    """One number per sample, linear in a weight of three filters."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        draws = torch.randn(FILTERS, INPUTS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(draws * torch.tensor([[0.3], [1.0], [4.0]]))

    def forward(self, inputs):
        return inputs @ self.weight.flatten()


def signed_squares(outputs, targets):
    """Quadratic in the weights, of any curvature: targets are values and factors."""
    return (0.5 * targets[:, 1] * (outputs - targets[:, 0]).square()).mean()


def quadratic(samples=30, negative=0.0, seed=1, apart=False):
    """Samples in batches of unequal size, the Hessian of their mean loss and its gradient at the weights.

    With ``apart``, each sample depends on one filter.
    """
    random = torch.Generator().manual_seed(seed)
    model = Linear()
    inputs = torch.randn(samples, FILTERS * INPUTS, dtype=torch.float64, generator=random)
    if apart:
        inputs *= torch.eye(FILTERS).repeat_interleave(INPUTS, dim=1).repeat(samples // FILTERS, 1)
    values = torch.randn(samples, dtype=torch.float64, generator=random)
    signs = torch.where(torch.rand(samples, generator=random) < negative, -1.0, 1.0).double()
    batches = list(zip(inputs.split(13), torch.stack([values, signs], dim=1).split(13), strict=True))
    curvature = inputs.T @ (signs[:, None] * inputs) / samples
    slope = inputs.T @ (signs * (inputs @ flat_weights(model) - values)) / samples
    return model, batches, curvature, slope


def largest_in_ball(curvature, slope, radius):
    """The maximum of a quadratic in a round ball, from its secular equation (Conn, Gould and Toint, 2000)."""
    values, vectors = torch.linalg.eigh(curvature)
    along = vectors.T @ slope

    def point(multiplier):
        return along / (multiplier - values)

    low = max(float(values[-1]), 0.0)
    if float(values[-1]) < 0 and float(point(0.0).norm()) <= radius:
        best = point(0.0)
    else:
        low, high = low + 1e-13, low + 1e6
        for _ in range(300):
            middle = (low + high) / 2
            low, high = (middle, high) if float(point(middle).norm()) > radius else (low, middle)
        best = point(high)
    return float(along @ best + 0.5 * (values * best.square()).sum())


def small_net(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    inputs, targets = torch.randn(40, 5, dtype=dtype), torch.randint(0, 3, (40,))
    return net, list(zip(inputs.split(17), targets.split(17), strict=True))


def exact_hessian(model, loss, batches):
    inputs, targets = (torch.cat(part) for part in zip(*batches, strict=True))
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def evaluate(weights):
        parts = weights.split([shape.numel() for shape in shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return loss(functional_call(model, named, (inputs,)), targets)

    return jacrev(jacrev(evaluate))(flat_weights(model))


@pytest.mark.parametrize("negative", [0.0, 0.4, 1.0])
def test_worst_increase_of_a_quadratic_is_that_of_its_secular_equation(negative):
    model, batches, curvature, slope = quadratic(negative=negative, apart=True)
    rho = 0.4
    expected = sum(  # of each filter, as no sample depends on two
        largest_in_ball(curvature[part, part], slope[part], rho * float(weight.norm()))
        for weight, part in zip(model.weight.detach(), FILTER_PARTS, strict=True)
    )
    found = worst_increase(model, signed_squares, batches, rho=rho, steps=150)
    assert found <= expected * (1 + 1e-9)
    assert found == pytest.approx(expected, rel=1e-4)
    assert worst_increase(model, signed_squares, batches, rho=rho) == pytest.approx(expected, rel=0.05)


def test_worst_increase_of_one_filter_is_that_of_its_secular_equation():
    random = torch.Generator().manual_seed(4)
    model = nn.Linear(6, 1, bias=False).double()
    inputs, values = torch.randn(20, 6, dtype=torch.float64, generator=random), torch.zeros(20, dtype=torch.float64)
    curvature, weight = inputs.T @ inputs / 20, model.weight.detach()[0]
    expected = largest_in_ball(curvature, curvature @ weight, 0.3 * float(weight.norm()))

    def loss(outputs, targets):
        return 0.5 * (outputs[:, 0] - targets).square().mean()

    assert worst_increase(model, loss, [(inputs, values)], rho=0.3, steps=100) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_worst_increase_is_at_least_that_of_one_step_and_of_any_draw(seed):
    model, batches = small_net(seed)
    rho = 0.3
    there = MeanLoss(model, F.cross_entropy, batches)
    loss, gradient = there.gradient(there.weights)
    step, begin = [], 0
    for p in model.parameters():  # SAM's step of every filter, by hand
        slope = gradient[begin : (begin := begin + p.numel())].view_as(p)
        for weight, g in zip(p.detach(), slope, strict=True) if p.ndim == 2 else []:
            step.append(rho * weight.norm() * g / g.norm())
        step += [torch.zeros_like(slope)] if p.ndim == 1 else []
    single = there(there.weights + torch.cat(step)) - loss
    assert single > 0
    worst = worst_increase(model, F.cross_entropy, batches, rho=rho)
    assert worst > single  # the ascent went on
    assert worst_increase(model, F.cross_entropy, batches, rho=rho, steps=0, starts=1) == pytest.approx(single)
    assert worst > average_increase(model, F.cross_entropy, batches, rho=rho).mean


def test_average_increase_of_a_quadratic_is_the_trace_over_filters():
    model, batches, curvature, _ = quadratic(negative=0.2)
    rho = 0.4
    squares = model.weight.detach().square().sum(dim=1)
    traces = curvature.diagonal().view(FILTERS, INPUTS).sum(dim=1)
    expected = float(0.5 * rho**2 * (squares * traces / INPUTS).sum())
    found = average_increase(model, signed_squares, batches, rho=rho, draws=1500)
    assert abs(found.mean - expected) < 3.5 * found.error
    assert found.error < 0.15 * abs(expected)
    # the error is what means of other seeds scatter by
    means = [average_increase(model, signed_squares, batches, rho=rho, draws=30, seed=seed) for seed in range(30)]
    scatter = torch.tensor([mean for mean, _ in means]).std().item()
    assert scatter == pytest.approx(sum(error for _, error in means) / len(means), rel=0.4)


@pytest.mark.parametrize("negative", [0.0, 0.5, 0.95, 1.0])
def test_eigenvalue_and_trace_of_a_quadratic(negative):
    model, batches, curvature, _ = quadratic(negative=negative)
    value, iterations, residual = largest_eigenvalue(model, signed_squares, batches, tolerance=1e-5, iterations=2000)
    exact = torch.linalg.eigvalsh(curvature)
    assert value == pytest.approx(exact[-1].item(), abs=1e-6)
    assert residual < 1e-4
    assert iterations > 2
    trace = hessian_trace(model, signed_squares, batches, probes=500)
    assert abs(trace.mean - curvature.trace().item()) < 3.5 * trace.error
    spread = math.sqrt(2 * (curvature.square().sum() - curvature.diagonal().square().sum()).item() / 500)
    assert trace.error == pytest.approx(spread, rel=0.15)  # Hutchinson's variance for random signs


@pytest.mark.parametrize(
    ("curvatures", "largest"), [((2.0, -2.0, 1.0), 2.0), ((-3.0, -1.0, -2.0), -1.0), ((0,) * 3, 0)]
)
def test_eigenvalues_of_equal_size_negative_ones_and_none(curvatures, largest):
    model = nn.Linear(3, 1, bias=False).double()
    inputs = torch.eye(3, dtype=torch.float64)
    targets = 3 * torch.tensor(curvatures, dtype=torch.float64)

    def loss(outputs, targets):
        return (0.5 * targets * outputs[:, 0].square()).mean()

    found = largest_eigenvalue(model, loss, [(inputs, targets)], tolerance=1e-8, iterations=500)
    assert found.value == pytest.approx(largest, abs=1e-7)
    assert hessian_trace(model, loss, [(inputs, targets)]) == pytest.approx((sum(curvatures), 0))  # of a diagonal


@pytest.mark.parametrize("factor", [1.0, -1.0])
def test_eigenvalue_and_trace_of_a_net_are_those_of_its_exact_hessian(factor):
    model, batches = small_net()

    def loss(outputs, targets):
        return factor * F.cross_entropy(outputs, targets)

    exact = exact_hessian(model, loss, batches)
    found = largest_eigenvalue(model, loss, batches, tolerance=1e-3, iterations=1000)
    assert found.value == pytest.approx(torch.linalg.eigvalsh(exact)[-1].item(), rel=1e-3)
    vector = torch.randn(len(exact), dtype=torch.float64)
    torch.testing.assert_close(MeanLoss(model, loss, batches).hessian_product(vector), exact @ vector)
    trace = hessian_trace(model, loss, batches, probes=100)
    assert abs(trace.mean - exact.trace().item()) < 3.5 * trace.error


def test_iteration_that_did_not_converge_says_so():
    model, batches = small_net()
    found = largest_eigenvalue(model, F.cross_entropy, batches, tolerance=1e-12, iterations=3)
    assert found.iterations == 6  # without the shift, and with it
    exact = torch.linalg.eigvalsh(exact_hessian(model, F.cross_entropy, batches))
    assert found.residual > 1e-6
    assert (exact - found.value).abs().min() <= found.residual


def test_rescaling_layers_that_computes_the_same_changes_no_relative_number():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    batches = [(torch.randn(30, 5, dtype=torch.float64), torch.randint(0, 3, (30,)))]

    def measure():
        return (
            average_increase(net, F.cross_entropy, batches, rho=0.2),
            worst_increase(net, F.cross_entropy, batches, rho=0.2),
            hessian_trace(net, F.cross_entropy, batches).mean,
        )

    average, worst, trace = measure()
    with torch.no_grad():
        net[0].weight *= 7
        net[0].bias *= 7
        net[2].weight /= 7
    average_after, worst_after, trace_after = measure()
    assert average_after == pytest.approx(average, rel=1e-10)
    assert worst_after == pytest.approx(worst, rel=1e-8)
    assert abs(trace_after / trace - 1) > 1  # that of the plain Hessian does depend on it


def test_one_call_measures_everything():
    model, batches = small_net()
    found = sharpness(model, F.cross_entropy, batches, rho=0.1, seed=5)
    inputs, targets = (torch.cat(part) for part in zip(*batches, strict=True))
    assert found.loss == pytest.approx(F.cross_entropy(model(inputs), targets).item(), rel=1e-12)
    assert found.rho == 0.1
    assert found.average == average_increase(model, F.cross_entropy, batches, rho=0.1, seed=5)
    assert found.worst == worst_increase(model, F.cross_entropy, batches, rho=0.1, seed=5)
    assert found.eigenvalue == largest_eigenvalue(model, F.cross_entropy, batches, seed=5)
    assert found.trace == hessian_trace(model, F.cross_entropy, batches, seed=5)
    assert found != sharpness(model, F.cross_entropy, batches, rho=0.1, seed=6)


class Drawing(nn.Module):
    """Draws in evaluation mode too."""

    def forward(self, inputs):
        return inputs + 0.1 * torch.randn_like(inputs)


def test_model_generators_and_gradients_are_left_as_they_were():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), Drawing(), nn.Linear(6, 3))
    model[1].running_mean += 0.3
    model[2].eval()
    model[0].bias.requires_grad_(False)
    batches = [(torch.randn(9, 5), torch.randint(0, 3, (9,)))]
    F.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = {name: (p.grad, None if p.grad is None else p.grad.clone()) for name, p in model.named_parameters()}
    flags = [module.training for module in model.modules()]
    generator_state = torch.get_rng_state()
    first = sharpness(model, F.cross_entropy, batches)
    assert torch.equal(torch.get_rng_state(), generator_state)
    assert first == sharpness(model, F.cross_entropy, batches)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for name, p in model.named_parameters():
        gradient, copy = gradients[name]
        assert p.grad is gradient
        assert gradient is None or torch.equal(gradient, copy)

    class Failing(RuntimeError):
        pass

    def fails(outputs, targets):
        raise Failing

    with pytest.raises(Failing):
        sharpness(model, fails, batches)
    assert [module.training for module in model.modules()] == flags


def test_evaluation_mode_normalises_by_running_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    batches = [(torch.randn(n, 5, dtype=torch.float64), torch.randint(0, 3, (n,))) for n in (4, 9)]
    whole = [tuple(torch.cat(part) for part in zip(*batches, strict=True))]
    one, two = (sharpness(model, F.cross_entropy, samples) for samples in (batches, whole))
    assert one.average == pytest.approx(two.average)
    assert one.worst == pytest.approx(two.worst)
    assert one.trace == pytest.approx(two.trace)
    model.eval()
    assert two.loss == pytest.approx(F.cross_entropy(model(whole[0][0]), whole[0][1]).item(), rel=1e-12)


def test_attention_and_shared_weights():
    torch.manual_seed(0)

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
            self.first = nn.Linear(4, 4)
            self.second = nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def forward(self, inputs):
            query = self.attention(inputs)
            mixed = F.scaled_dot_product_attention(query, query, self.first(query))
            return self.second(mixed).mean(dim=1)

    model = Shared().double()
    batches = [(torch.randn(6, 3, 4, dtype=torch.float64), torch.randint(0, 4, (6,)))]
    there = MeanLoss(model, F.cross_entropy, batches)
    assert len(there.weights) == sum(p.numel() for p in model.parameters())
    vector = torch.randn_like(there.weights)
    _, above = there.gradient(there.weights + 1e-5 * vector)
    _, below = there.gradient(there.weights - 1e-5 * vector)
    torch.testing.assert_close(there.hessian_product(vector), (above - below) / 2e-5, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (average_increase, {"rho": 0.0}, "rho value: 0.0"),
        (average_increase, {"draws": 1}, "draws value: 1"),
        (worst_increase, {"rho": math.nan}, "rho value: nan"),
        (worst_increase, {"starts": 0}, "not 10 and 0"),
        (largest_eigenvalue, {"iterations": 0}, "not 0.01 and 0"),
        (hessian_trace, {"probes": 1}, "probes value: 1"),
    ],
)
def test_bad_arguments_are_named(function, options, message):
    model, batches = small_net()
    with pytest.raises(ValueError, match=message):
        function(model, F.cross_entropy, batches, **options)


def test_what_cannot_be_measured_is_refused():
    model, batches = small_net()
    functions = (average_increase, worst_increase, largest_eigenvalue, hessian_trace)
    for function in functions:
        with pytest.raises(ValueError, match="no samples"):
            function(model, F.cross_entropy, [])
    with torch.no_grad():
        model[2].bias[0] = math.nan
    for function in functions:
        with pytest.raises(ValueError, match="nan"):
            function(model, F.cross_entropy, batches)
    without_filters = nn.LayerNorm(5)
    samples = [(torch.randn(4, 5), torch.randint(0, 5, (4,)))]
    for function in (average_increase, worst_increase):
        with pytest.raises(ValueError, match="there is no filter"):
            function(without_filters, F.cross_entropy, samples)
    assert largest_eigenvalue(without_filters, F.cross_entropy, samples).value > 0
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        hessian_trace(without_filters.requires_grad_(False), F.cross_entropy, samples)
