"""Sums in more than the elements' precision, and that what compares gradients takes them."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shiftproof.annealing import GGA, GGAL, domain_similarities
from shiftproof.base.precise_sums import dot, norm
from shiftproof.diagnostics import Recorder, gradient_agreement, gradient_moments, hessian_trace
from shiftproof.diagnostics.mean_loss import flat_weights
from shiftproof.diagnostics.osgr import step_contributions
from shiftproof.diagnostics.preconditioner import preconditioner
from shiftproof.gradients.domains import DomainGradient, cosine, direction
from shiftproof.gradients.samples import PerSampleGradients


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (0,), (3, 70_000), (4, 3, 5, 5)])
def test_a_scalar_product_is_that_of_the_elements_in_float64(dtype, shape):
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=random).to(dtype) for _ in range(2))
    if len(shape) == 4:
        a = a.contiguous(memory_format=torch.channels_last)  # of another layout than the other
    found = dot(a, b)
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(float((a.double() * b.double()).sum()), rel=1e-12, abs=1e-12)
    assert norm(a) == pytest.approx(float(a.double().norm()), rel=1e-13)


def test_ten_million_elements_in_float32_keep_their_digits():
    random = torch.Generator().manual_seed(0)
    a, b = (torch.rand(10_000_000, generator=random) for _ in range(2))
    exact = float(torch.dot(a.double(), b.double()))
    assert float(dot(a, b)) == pytest.approx(exact, rel=1e-13)
    expected = exact / math.sqrt(float(torch.dot(a.double(), a.double())) * float(torch.dot(b.double(), b.double())))
    directions = [direction(DomainGradient(0.0, (v,)), [v]) for v in (a, b)]
    assert cosine(*directions) == pytest.approx(expected, rel=1e-13)
    assert cosine(directions[0], directions[0]) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize(
    ("values", "expected"), [([0.0, 0.0], 0.0), ([math.nan, 1.0], math.nan), ([math.inf, 1.0], None)]
)
def test_cosines_of_what_points_nowhere(values, expected):
    a, b = (direction(DomainGradient(0.0, (v,)), [v]) for v in (torch.tensor(values), torch.tensor([3.0, 4.0])))
    found = cosine(a, b)
    assert found == expected if expected == 0 else math.isnan(found)


def _model(dtype=torch.bfloat16):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(40, 50), nn.Tanh(), nn.LayerNorm(50), nn.Linear(50, 3)).to(dtype)


def _batch(seed, dtype=torch.bfloat16):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(8, 40, generator=random).to(dtype), torch.randint(3, (8,), generator=random)


def _gradients(model, batches):
    """Flat and in float64, but computed in the model's precision."""
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(F.cross_entropy(model(x), y), parameters) for x, y in batches]
    return [torch.cat([g.flatten() for g in parts]).double() for parts in gradients]


def test_bfloat16_gradients_are_compared_in_float64():
    model, batches = _model(), [_batch(1), _batch(2)]
    losses = [lambda x=x, y=y: F.cross_entropy(model(x), y) for x, y in batches]
    a, b = _gradients(model, batches)
    expected = float(a @ b / (a.norm() * b.norm()))
    assert domain_similarities(model.parameters(), losses) == pytest.approx([expected] * 2, rel=1e-12)
    assert domain_similarities(model.parameters(), losses[:1] * 2) == pytest.approx([1, 1], abs=1e-12)
    agreement = gradient_agreement(model, F.cross_entropy, batches)
    assert agreement.mean == pytest.approx(expected, rel=1e-12)
    assert all(
        cosines.least == pytest.approx(1, abs=1e-12)
        for cosines in gradient_agreement(model, F.cross_entropy, batches[:1] * 2).layers.values()
    )
    gga = GGA(start=1, end=1, candidates=1, radius=1e-9)
    gga.before_step(model.parameters(), 1, losses)
    assert gga.report()["similarity_before"] == pytest.approx(expected, rel=1e-12)
    ggal = GGAL()
    ggal.edit_gradients(model.parameters(), 1, losses)
    assert ggal.report()["similarity_before"] == pytest.approx(expected, rel=1e-12)


def test_the_search_accepts_what_raises_the_cosine_in_float64_and_nothing_else():
    """In bfloat16 the cosines of these gradients are all equal; in float64 the third candidate's is the highest."""
    random = torch.Generator().manual_seed(0)
    first = torch.randn(4000, generator=random)
    slightly = torch.randn(4000, generator=random) * first.norm() / 4000**0.5
    turned = {0.0: 0.101, 1.0: 0.1015, 2.0: 0.101, 3.0: 0.1005}  # by candidate, 0 being the start
    p = nn.Parameter(torch.zeros(4000, dtype=torch.bfloat16))
    called = iter([start for start in turned for _ in range(2)])

    def loss(which):
        shift = turned[next(called)] if which else next(called) * 0
        return (p.float() * (first + shift * slightly).bfloat16().float()).sum().bfloat16()

    annealer = GGA(start=1, end=1, candidates=3, radius=1e-30)
    annealer._rejects_early = False
    found = []
    evaluate = annealer._evaluate
    annealer._evaluate = lambda *args: found.append(evaluate(*args)) or found[-1]
    annealer.before_step([p], 1, [lambda: loss(0), lambda: loss(1)])
    assert [point is not None for point in found] == [True, False, False, True]
    g = [(first + shift * slightly).bfloat16().double() for shift in (0, *turned.values())]
    expected = [float(g[0] @ other / (g[0].norm() * other.norm())) for other in g[1:]]
    assert found[0].similarity == pytest.approx(expected[0], rel=1e-12)
    assert found[3].similarity == pytest.approx(expected[3], rel=1e-12)


@pytest.mark.parametrize("build", [torch.optim.SGD, torch.optim.Adam])
def test_a_recorder_of_a_bfloat16_model_sums_in_float64(build):
    model, fresh = _model(), [_batch(1), _batch(1), _batch(2)]
    optimizer = build(model.parameters(), lr=0.3)
    with Recorder(model, optimizer, F.cross_entropy, lambda step: fresh, unseen=lambda step: _batch(3), every=1) as rec:
        for _ in range(2):
            before = [p.detach().double() for p in model.parameters()]
            factors = preconditioner(optimizer)
            gradients = _gradients(model, [_batch(0), *fresh, _batch(3)])
            optimizer.zero_grad()
            F.cross_entropy(model(_batch(0)[0]), _batch(0)[1]).backward()
            optimizer.step()
    own, unseen = gradients[0], gradients[-1]
    mean = sum(gradients[1:4]) / 3
    update = torch.cat([(b - p.detach().double()).flatten() for b, p in zip(before, model.parameters(), strict=True)])
    found = rec.contributions[-1]
    assert (found.taken_batch, found.taken_unseen) == pytest.approx(
        [float(update @ g) for g in (own, unseen)], rel=1e-6
    )
    assert found.taken_fresh == pytest.approx(float(update @ mean), rel=1e-6)
    assert all(factor.dtype == torch.float32 for factor in factors)
    scaled = torch.cat([factor.double().flatten() for factor in factors]) * own
    frozen = [float(scaled @ g) for g in (own, mean, unseen)]
    assert (found.frozen_batch, found.frozen_fresh, found.frozen_unseen) == pytest.approx(frozen, rel=1e-6)
    if build is torch.optim.SGD:
        assert found.frozen_batch == pytest.approx(0.3 * float(own @ own), rel=1e-6)
    assert rec.agreements[-1].overall.pairs[0, 1] == pytest.approx(1, abs=1e-12)


def test_contributions_of_opposite_infinities_are_not_a_number_rather_than_an_error():
    update = [torch.tensor([1.0]), torch.tensor([1.0])]
    gradient = [torch.tensor([math.inf]), torch.tensor([-math.inf])]
    assert math.isnan(step_contributions(update, gradient, None, gradient).taken_batch)


def test_single_gradients_of_a_bfloat16_model_are_summed_in_float32():
    model, (inputs, targets) = _model(), _batch(0)
    model.eval()
    _, sums, squares = PerSampleGradients(model, F.cross_entropy)(inputs, targets)
    parameters = dict(model.named_parameters())
    single = [
        torch.autograd.grad(F.cross_entropy(model(x[None]), y[None]), list(parameters.values()))
        for x, y in zip(inputs, targets, strict=True)
    ]
    for i, name in enumerate(parameters):
        gradients = torch.stack([parts[i].double() for parts in single])
        assert sums[name].dtype == squares[name].dtype == torch.float32
        # the gradients that autograd gives are rounded to bfloat16, those of the formulas are not
        scale = float(gradients.abs().max())
        torch.testing.assert_close(sums[name].double(), gradients.sum(0), rtol=0.01, atol=0.01 * scale)
        torch.testing.assert_close(squares[name].double(), gradients.square().sum(0), rtol=0.02, atol=0.02 * scale**2)


def test_variances_of_a_bfloat16_model_are_those_of_the_model_in_float64():
    """A difference of sums of squares, of which bfloat16 would leave nothing where samples hardly differ."""
    same = _batch(0)[0][:1].expand(64, -1)
    inputs = (same + 0.02 * torch.randn(64, 40, generator=torch.Generator().manual_seed(1))).bfloat16()
    targets = torch.zeros(64, dtype=torch.int64)
    found = gradient_moments(_model(), [[(inputs, targets)]], F.cross_entropy)
    exact = gradient_moments(_model().double(), [[(inputs.double(), targets)]], F.cross_entropy)
    for name in ("3.weight", "3.bias"):
        total, expected = float(found.within[name].sum()), float(exact.within[name].sum())
        assert total == pytest.approx(expected, rel=0.5), name


def test_weights_in_bfloat16_are_measured_as_a_vector_of_float32():
    model = _model()
    weights = flat_weights(model)
    assert weights.dtype == torch.float32
    assert torch.equal(weights, torch.cat([p.detach().float().flatten() for p in model.parameters()]))
    assert flat_weights(_model(torch.float64)).dtype == torch.float64
    batches = [_batch(1)]
    found = hessian_trace(model, F.cross_entropy, batches, probes=10)
    exact = hessian_trace(
        _model().double(), F.cross_entropy, [(x.double(), y) for x, y in batches], probes=10
    )  # the same signs
    assert found.mean == pytest.approx(exact.mean, rel=0.05)
