"""The one-step generalization ratio: closed forms, real steps and the definition, against each other."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from shiftproof.diagnostics.osgr import (
    StepContributions,
    genie_distance,
    genie_factor,
    genie_osgr,
    osgr,
    osgr_by_definition,
    osgr_of_gradients,
    osgr_of_moments,
    preconditioners,
    step_contributions,
    step_ratios,
    uniform_osgr,
)
from shiftproof.optim.genie.rule import paper_terms

FLOAT = torch.float64
EXAMPLE = (torch.tensor([1000.0, 0.0], dtype=FLOAT), torch.tensor([100.0, 0.01], dtype=FLOAT))  # r = (10, 0)
NAMES = ["sgd", "adam", "uniform", "genie"]


def _random_moments(generator, count=None):
    """Moments over many orders of magnitude; a tenth of the elements has no signal."""
    count = int(torch.randint(1, 200, (), generator=generator)) if count is None else count
    spread = 10 ** (4 * torch.randn(2, count, dtype=FLOAT, generator=generator))
    signal = spread[0] * (torch.rand(count, generator=generator) > 0.1)
    return signal, spread[1]


# from moments


def test_both_forms_of_corollary_1_are_equal():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        mean_square, variance = _random_moments(generator)
        p = torch.rand(len(variance), dtype=FLOAT, generator=generator)
        n = float(torch.randint(1, 500, (), generator=generator))
        share = p * (mean_square + variance / n)
        other = 1 - (share / share.sum() / (mean_square / variance + 1 / n)).sum() / n
        assert osgr(p, mean_square, variance, n) == pytest.approx(float(other), abs=1e-12)


def test_the_example_in_which_genies_ratio_is_the_least():
    found = {name: osgr(p, *EXAMPLE, 16) for name, p in preconditioners(*EXAMPLE, 16).items()}
    assert round(found["sgd"], 3) == 0.994
    assert round(found["adam"], 3) == 0.993
    assert round(found["genie"], 3) == 0.988
    assert found["uniform"] == pytest.approx(0.5 * 10 / 10.0625)
    assert genie_osgr(EXAMPLE[0] / EXAMPLE[1], 16) == pytest.approx(found["genie"], abs=1e-15) == 1 - 1 / 81


def test_jensens_ordering_of_true_and_plug_in_moments():
    generator = torch.Generator().manual_seed(1)
    gaps = []
    for _ in range(300):
        mean_square, variance = _random_moments(generator)
        n = float(torch.randint(1, 500, (), generator=generator))
        scale = (mean_square + variance).sqrt()
        samples = mean_square.sqrt() + scale * torch.randn(8, len(variance), dtype=FLOAT, generator=generator)
        for square, spread in ((mean_square, variance), (samples.mean(0).square(), samples.var(0))):
            r = square / spread
            uniform, genie = uniform_osgr(r, n), genie_osgr(r, n)
            assert 0 <= uniform <= genie + 1e-15
            assert genie <= 1
            by_name = preconditioners(square, spread, n)
            assert osgr(by_name["uniform"], square, spread, n) == pytest.approx(uniform, abs=1e-9)
            assert osgr(by_name["genie"], square, spread, n) == pytest.approx(genie, abs=1e-9)
            gaps.append(genie - uniform)
    assert sum(gap > 0.01 for gap in gaps) > 0.9 * len(gaps)


def test_the_preconditioner_of_corollary_2_is_the_inverse_variance():
    mean_square, variance = _random_moments(torch.Generator().manual_seed(2), 50)
    n = 12
    literal = (mean_square / variance + 1 / n) / (mean_square + variance / n)
    torch.testing.assert_close(preconditioners(mean_square, variance, n)["genie"], literal, rtol=1e-12, atol=0)


def test_elements_without_gradients_have_no_weight():
    mean_square, variance = _random_moments(torch.Generator().manual_seed(3), 30)
    nothing = torch.zeros(7, dtype=FLOAT)
    wider = torch.cat([mean_square, nothing]), torch.cat([variance, nothing])
    by_name = preconditioners(*wider, 5)
    assert list(by_name) == NAMES
    for name, p in preconditioners(mean_square, variance, 5).items():
        assert torch.equal(by_name[name], torch.cat([p, nothing]))
        assert osgr(by_name[name], *wider, 5) == pytest.approx(osgr(p, mean_square, variance, 5), rel=1e-14)
    assert math.isnan(osgr(nothing, nothing, nothing, 5))


def test_an_estimate_below_zero_counts_as_zero_in_a_preconditioner_only():
    mean_square, variance = torch.tensor([-0.1, 1.0]), torch.tensor([1.0, 1.0])
    by_name = preconditioners(mean_square, variance, 4)
    assert by_name["uniform"].tolist() == pytest.approx([4.0, 0.8])
    assert osgr(by_name["sgd"], mean_square, variance, 4) == pytest.approx(0.9 / 1.4)


def test_what_is_no_moment_is_refused():
    ones = torch.ones(3)
    with pytest.raises(ValueError, match="shapes"):
        osgr(ones, ones, torch.ones(2), 4)
    with pytest.raises(ValueError, match="preconditioner of shape"):
        osgr(torch.ones(2), ones, ones, 4)
    with pytest.raises(ValueError, match="n is 0"):
        osgr(ones, ones, ones, 0)
    with pytest.raises(ValueError, match=r"least variance -1\.0"):
        preconditioners(ones, -ones, 4)
    with pytest.raises(ValueError, match="2 elements have a gradient that does not vary"):
        preconditioners(ones, torch.tensor([0.0, 0.0, 1.0]), 4)
    for gsnr in (torch.tensor([math.nan]), torch.tensor([-1.0]), torch.tensor([math.inf])):
        with pytest.raises(ValueError, match="signal-to-noise"):
            genie_osgr(gsnr, 4)


class _Moments(SimpleNamespace):
    """Moments of samples, one (n, d) tensor per domain, as `GradientMoments` has them."""

    def __init__(self, domains):
        variances = torch.stack([samples.var(0) for samples in domains])
        counts = torch.tensor([len(samples) for samples in domains], dtype=FLOAT)
        mean = torch.stack([samples.mean(0) for samples in domains]).mean(0)
        mean_error = (variances / counts[:, None]).sum(0) / len(domains) ** 2
        super().__init__(mean=mean, mean_square=mean**2 - mean_error, within=variances.mean(0))

    def flat(self, name):
        return getattr(self, name)


def test_from_two_halves_the_estimate_is_that_of_the_preconditioner_not_of_the_noise():
    """Most elements have no signal, so what one half overestimates the other must not confirm."""
    generator = torch.Generator().manual_seed(4)
    mean = torch.zeros(2, 300, dtype=FLOAT)
    mean[:, :30] = 0.15 * torch.randn(2, 30, dtype=FLOAT, generator=generator) + 0.2  # domains differ
    deviation = 10 ** torch.randn(2, 300, dtype=FLOAT, generator=generator).mul(0.3)
    square, variance, n = mean.mean(0).square(), deviation.square().mean(0), 32

    def half():
        return _Moments(
            [mean[k] + deviation[k] * torch.randn(100, 300, dtype=FLOAT, generator=generator) for k in (0, 1)]
        )

    estimates, truths, naive = [], [], []
    for _ in range(60):
        first, second = half(), half()
        estimates.append(osgr_of_moments(first, second, n))
        by_name = [preconditioners(part.mean_square, part.within, n) for part in (first, second)]
        truths.append({name: sum(osgr(p[name], square, variance, n) for p in by_name) / 2 for name in NAMES})
        naive.append(osgr(by_name[0]["genie"], first.mean**2, first.within, n))
    for name in NAMES:
        differences = torch.tensor([e[name].value - t[name] for e, t in zip(estimates, truths, strict=True)])
        assert abs(differences.mean()) < 3 * differences.std() / math.sqrt(60) + 0.005  # of a ratio: bias of order 1/d
        assert differences.std() < 0.06
    truth = sum(t["genie"] for t in truths) / 60
    assert sum(naive) / 60 > truth + 0.05


def test_elements_that_do_not_vary_in_one_of_the_halves_are_left_out():
    generator = torch.Generator().manual_seed(5)
    first, second = torch.randn(2, 2, 10, 8, dtype=FLOAT, generator=generator)  # of two domains, 10 samples each
    expected = osgr_of_moments(_Moments(first), _Moments(second), 6)
    constant = torch.ones(2, 10, 3, dtype=FLOAT)
    first, second = (torch.cat([half, constant], 2) for half in (first, second))
    first[..., 8] = second[..., 9] = torch.randn(2, 10, dtype=FLOAT, generator=generator)
    assert osgr_of_moments(_Moments(first), _Moments(second), 6) == expected


# the linear-Gaussian problem: a quadratic loss, in which a sample adds a normal vector to the gradient


class _Quadratic(nn.Module):
    """Loss h w^2 / 2 + x w of a sample x, so that its gradient is h w + x."""

    def __init__(self):
        super().__init__()
        self.curvature = torch.tensor([1.0, 3.0, 0.3, 0.1, 2.0], dtype=FLOAT)
        self.w = nn.Parameter(torch.tensor([0.3, -0.1, 0.5, 0.0, 0.02], dtype=FLOAT))

    def forward(self, x):
        return 0.5 * (self.curvature * self.w**2).sum() + x @ self.w


def _mean_output(outputs, targets):
    return outputs.mean()


class _Domains:
    """Two domains with means and variances of their own; sets are stratified, of n samples together."""

    n = 12
    means = torch.tensor([[0.1, 0.2, 0.0, 0.1, 0.0], [-0.1, 0.1, 0.05, -0.1, 0.3]], dtype=FLOAT)
    deviations = torch.tensor([[1.0, 2.0, 0.5, 0.1, 0.3], [0.5, 1.5, 1.0, 0.3, 0.1]], dtype=FLOAT)

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self):
        half = self.n // 2
        noise = torch.randn(2, half, 5, dtype=FLOAT, generator=self.generator)
        x = self.means[:, None] + self.deviations[:, None] * noise
        return [(x[k], torch.zeros(half)) for k in range(2)]

    def draws(self, count):
        return [(self.draw(), self.draw()) for _ in range(count)]

    def moments(self, model):
        """True mean square, variance within domains, and n."""
        mean = model.curvature * model.w.detach() + self.means.mean(0)
        return mean.square(), self.deviations.square().mean(0), self.n


@pytest.mark.parametrize("name", NAMES)
def test_moments_gradients_and_definition_agree_with_the_closed_form(name):
    model, domains, lr = _Quadratic(), _Domains(0), 0.05
    moments = domains.moments(model)
    p = preconditioners(
        *moments,
    )[name]
    p = p / p.max()
    draws = domains.draws(500)
    closed = osgr(p, *moments)
    by_gradients = osgr_of_gradients(model, _mean_output, draws, [p])
    _agrees(by_gradients, closed)
    # a step of finite size loses lr / 2 u H u on both sets
    second = moments[0] + moments[1] / moments[2]
    lost = lr / 2 * (model.curvature * p**2 * second).sum()
    exact = float(((p * moments[0]).sum() - lost) / ((p * second).sum() - lost))
    by_definition = osgr_by_definition(model, _mean_output, draws, [p], lr)
    _agrees(by_definition, exact)
    few = draws[:50]
    small = osgr_by_definition(model, _mean_output, few, [p], 1e-7)
    assert small == pytest.approx(osgr_of_gradients(model, _mean_output, few, [p]), abs=1e-5)
    if name == "genie":
        assert closed == pytest.approx(genie_osgr(moments[0] / moments[1], moments[2]), abs=1e-14)


def _agrees(ratio, exact):
    """The interval is tight, and 1.5 of it, three standard errors, hold the exact value."""
    assert ratio.low < ratio.value < ratio.high
    assert ratio.high - ratio.low < 0.2
    assert abs(ratio.value - exact) < 0.75 * (ratio.high - ratio.low)


@pytest.mark.parametrize("name", ["sgd", "genie"])
def test_momentum_raises_the_ratio_of_a_real_step_and_not_that_of_its_preconditioner(name):
    beta, count = 0.8, 2000
    model, domains = _Quadratic(), _Domains(1)
    square, variance, n = domains.moments(model)
    p = preconditioners(square, variance, n)[name]
    lr, weights = 1e-3, model.w.detach().clone()
    mean = model.curvature * weights + domains.means.mean(0)
    half = n // 2
    noise = torch.randn(count, 2, 2, half, 5, dtype=FLOAT, generator=domains.generator)
    gradients = mean + (domains.deviations[:, None] * noise).mean((2, 3))  # (count, 2 sets, 5)
    optimizer = torch.optim.SGD([model.w], lr=lr, momentum=beta, dampening=beta)
    optimizer.state[model.w]["momentum_buffer"] = p * mean  # near where it is after many steps
    contributions = []
    for batch, fresh in gradients:
        with torch.no_grad():
            model.w.copy_(weights)
        model.w.grad = p * batch  # so that momentum averages what is preconditioned
        optimizer.step()
        update = weights - model.w.detach()
        contributions.append(step_contributions([update], [batch], [lr * p], [fresh]))
    ratios = step_ratios(contributions)
    signal, spread = (p * square).sum(), (p * variance).sum() / n
    expected = float(signal / (signal + (1 - beta) * spread))
    _agrees(ratios["osgr"], expected)
    _agrees(ratios["osgr_frozen"], osgr(p, square, variance, n))
    assert ratios["osgr"].low > ratios["osgr_frozen"].high


# of a net


class _Net(nn.Module):
    """Has what must be left alone: batch norm, dropout, a frozen parameter, one that is not used."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.dropout, self.second = (
            nn.Linear(4, 8),
            nn.BatchNorm1d(8),
            nn.Dropout(0.5),
            nn.Linear(8, 3),
        )
        self.unused = nn.Parameter(torch.ones(2))
        self.second.bias.requires_grad_(False)
        self.double()

    def forward(self, x):
        return self.second(self.dropout(self.norm(self.first(x)).tanh()))


def _net_draws(count, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return [
            (shift + torch.randn(5, 4, dtype=FLOAT, generator=generator), torch.randint(3, (5,), generator=generator))
            for shift in (0.0, 0.5)
        ]

    return [(draw(), draw()) for _ in range(count)]


def test_the_definition_tends_to_the_ratio_of_gradients_as_the_step_shrinks():
    model = _Net()
    # trained a little, so that the ratio is well defined
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.02)
    generator = torch.Generator().manual_seed(9)
    teacher = torch.randn(4, 3, dtype=FLOAT, generator=generator)

    def draws(count):
        x = [torch.randn(count, 2, 10, 4, dtype=FLOAT, generator=generator) + shift for shift in (0.0, 0.5)]
        sets = [[[(part[i, j], (part[i, j] @ teacher).argmax(1)) for part in x] for j in (0, 1)] for i in range(count)]
        return [tuple(pair) for pair in sets]

    for batch, _ in draws(5):
        optimizer.zero_grad()
        sum(F.cross_entropy(model(x), y) for x, y in batch).backward()
        optimizer.step()
    p = [0.5 + torch.rand(q.shape, dtype=FLOAT, generator=generator) for q in parameters]
    fixed = draws(60)
    limit = osgr_of_gradients(model, F.cross_entropy, fixed, p)
    found = {lr: osgr_by_definition(model, F.cross_entropy, fixed, p, lr) for lr in (0.02, 0.01, 0.005)}
    differences = [ratio.value - limit.value for ratio in found.values()]
    assert abs(differences[0]) > 1e-5  # far above the rounding of the losses; all have the same draws
    assert differences[0] / differences[1] == pytest.approx(2, rel=0.1)
    assert differences[1] / differences[2] == pytest.approx(2, rel=0.05)
    for ratio in found.values():
        assert ratio.low < limit.value < ratio.high
        assert ratio.high - ratio.low < 0.2


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_nets_moments_over_a_finite_population_tell_the_ratio_of_sets_drawn_from_it(name):
    """Drawn with replacement, mean and variance of a sample's gradient are known exactly, and not of a normal."""
    model, per_domain = _Net().eval(), 4
    parameters = [p for p in model.parameters() if p.requires_grad]
    [(population, _)] = _net_draws(1, seed=3)
    gradients = []
    for x, y in population:
        of_samples = [
            torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), parameters, materialize_grads=True)
            for i in range(len(y))
        ]
        gradients.append(torch.stack([torch.cat([g.flatten() for g in parts]) for parts in of_samples]))
    square = torch.stack([g.mean(0) for g in gradients]).mean(0).square()
    variance = torch.stack([g.var(0, correction=0) for g in gradients]).mean(0)
    n = per_domain * len(population)
    p = preconditioners(square, variance, n)[name]
    generator = torch.Generator().manual_seed(4)

    def draw():
        chosen = [torch.randint(len(y), (per_domain,), generator=generator) for _, y in population]
        return [(x[i], y[i]) for (x, y), i in zip(population, chosen, strict=True)]

    split = [part.view_as(q) for part, q in zip(p.split([q.numel() for q in parameters]), parameters, strict=True)]
    draws = [(draw(), draw()) for _ in range(500)]
    _agrees(osgr_of_gradients(model, F.cross_entropy, draws, split), osgr(p, square, variance, n))


def test_measuring_leaves_the_model_as_it_was():
    model = _Net().train()
    model.norm.eval()  # frozen statistics, as a user may have them
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    osgr_by_definition(model, F.cross_entropy, _net_draws(3), None, 0.5)
    osgr_of_gradients(model, F.cross_entropy, _net_draws(3))
    calls = []

    def fails(outputs, targets):
        calls.append(outputs)
        if len(calls) == 5:  # the first loss after the step
            raise RuntimeError("of the user's loss")
        return F.cross_entropy(outputs, targets)

    with pytest.raises(RuntimeError, match="of the user's loss"):
        osgr_by_definition(model, fails, _net_draws(1), None, 0.5)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all((p.grad == 7).all() for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_the_step_of_the_definition_is_the_one_that_is_asked_for():
    """One draw, against losses evaluated by hand."""
    model = _Net().eval()
    [(batch, fresh)] = _net_draws(1)
    parameters = [p for p in model.parameters() if p.requires_grad]
    p = [torch.full_like(q, 0.1 + i) for i, q in enumerate(parameters)]

    def losses(net):
        return [sum(F.cross_entropy(net(x), y).item() for x, y in part) / 2 for part in (batch, fresh)]

    moved = copy.deepcopy(model)
    (sum(F.cross_entropy(moved(x), y) for x, y in batch) / 2).backward()
    with torch.no_grad():
        for factor, q in zip(p, (q for q in moved.parameters() if q.requires_grad), strict=True):
            if q.grad is not None:
                q -= 0.3 * factor * q.grad
    decreases = [before - after for before, after in zip(losses(model), losses(moved), strict=True)]
    ratio = osgr_by_definition(model, F.cross_entropy, [(batch, fresh)], p, 0.3)
    assert ratio.value == pytest.approx(decreases[1] / decreases[0], rel=1e-10)
    assert (ratio.low, ratio.high) == (-math.inf, math.inf)


def test_a_preconditioner_of_another_shape_and_no_draws_are_refused():
    model = _Quadratic()
    with pytest.raises(ValueError, match="one tensor for each of the 1 parameters"):
        osgr_of_gradients(model, _mean_output, [], [torch.ones(4)])
    with pytest.raises(ValueError, match="no draw"):
        osgr_by_definition(model, _mean_output, [], None, 0.1)
    with pytest.raises(ValueError, match="no step"):
        osgr_of_gradients(model, _mean_output, [])
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        osgr_of_gradients(model.requires_grad_(False), _mean_output, [])


# of real steps


def test_contributions_are_scalar_products_in_float64():
    generator = torch.Generator().manual_seed(0)
    update, gradient, p, fresh, unseen = (
        [1e3 * torch.randn(shape, generator=generator) for shape in ((300, 20), (7,))] for _ in range(5)
    )
    found = step_contributions(update, gradient, p, fresh, unseen)

    def product(*factors):
        flat = [torch.cat([part.double().flatten() for part in factor]) for factor in factors]
        return float(torch.stack(flat).prod(0).sum())

    expected = StepContributions(
        product(update, gradient),
        product(update, fresh),
        product(update, unseen),
        product(p, gradient, gradient),
        product(p, gradient, fresh),
        product(p, gradient, unseen),
    )
    assert found[:3] == pytest.approx(expected[:3], rel=1e-9)
    assert found[3:] == pytest.approx(expected[3:], rel=1e-5)  # P g itself is in float32
    assert step_contributions(update, gradient, None, fresh) == (*found[:2], None, None, None, None)
    with pytest.raises(ValueError):
        step_contributions(update, gradient[:1], None, fresh)


def test_ratios_are_over_the_steps_at_which_they_were_measured():
    first = StepContributions(4.0, 1.0, -1.0, None, None, None)
    later = [StepContributions(2.0, 1.0, -1.0, 5.0, 4.0, 1.0)] * 5
    ratios = step_ratios([first, *later])
    assert ratios["osgr"].value == pytest.approx(6 / 14)
    assert ratios["transfer"].value == pytest.approx(-6 / 14)
    assert ratios["osgr_frozen"].value == pytest.approx(0.8)
    assert ratios["transfer_frozen"].value == pytest.approx(0.2)
    assert list(step_ratios([StepContributions(2.0, 1.0, None, None, None, None)])) == ["osgr"]
    with pytest.raises(ValueError, match="no step"):
        step_ratios([])


# GENIE's step is not Corollary 2's


def test_genies_factor_is_the_rules_at_expected_moments():
    mean_square, variance = _random_moments(torch.Generator().manual_seed(5), 40)
    mean_square[0] = variance[0] = 0
    n, beta = 20, 0.9
    v = mean_square + variance / n
    m = (mean_square + (1 - beta) / (1 + beta) * variance / n).sqrt()
    factor = genie_factor(mean_square, variance, n, beta)
    torch.testing.assert_close(factor, paper_terms(m, v, 1.0).factor, rtol=1e-6, atol=1e-12)
    assert factor[0] == 0


def test_the_expected_moments_are_those_of_moving_averages():
    generator = torch.Generator().manual_seed(6)
    beta, mean, deviation, n = 0.9, 0.3, 2.0, 16
    m = v = torch.zeros(20_000, dtype=FLOAT)
    for _ in range(150):
        g = mean + deviation / n**0.5 * torch.randn(20_000, dtype=FLOAT, generator=generator)
        m, v = beta * m + (1 - beta) * g, beta * v + (1 - beta) * g * g
    m_square, second = m.square().mean(), v.mean()
    expected = genie_factor(torch.tensor([mean**2]), torch.tensor([deviation**2]), n, beta)
    assert float((1 / (second - m_square)).tanh() * m_square / second) == pytest.approx(float(expected[0]), rel=0.02)


def test_the_distance_of_genies_step_from_its_corollary():
    # gradients of the size that nets have, for which certainty is 1; scales differ by layer, not signal-to-noise
    generator = torch.Generator().manual_seed(7)
    gsnr = 10 ** torch.randn(3000, dtype=FLOAT, generator=generator).sub(2)
    variance = 10 ** torch.randn(3000, dtype=FLOAT, generator=generator).sub(4)
    found = genie_distance(gsnr * variance, variance, 96)
    step = genie_factor(gsnr * variance, variance, 96)
    corollary = 1 / variance
    numbers = [osgr(p, gsnr * variance, variance, 96) for p in (step, corollary, torch.ones(3000))]
    assert found[:3] == pytest.approx(numbers, rel=1e-12)
    assert found.cosine == pytest.approx(float(step @ corollary / step.norm() / corollary.norm()), rel=1e-12)
    assert found.rank_correlation == pytest.approx(stats.spearmanr(step, corollary).statistic, abs=1e-12)
    # one prefers certain signs, the other small gradients
    assert found.cosine < 0.3
    assert abs(found.rank_correlation) < 0.05
    assert found.step_osgr > found.corollary_osgr > found.sgd_osgr
    assert genie_distance(*EXAMPLE, 16).rank_correlation == pytest.approx(-1)


def test_genies_own_factor_never_lowers_the_ratio_where_certainty_is_one():
    """It grows with the signal-to-noise ratio, so it moves weight to where the ratio is high (Chebyshev)."""
    generator = torch.Generator().manual_seed(8)
    lower = 0
    for _ in range(300):
        mean_square, variance = _random_moments(generator)
        scale = 1e-6 / (mean_square + variance).max()
        mean_square, variance = mean_square * scale, variance * scale
        n = float(torch.randint(1, 500, (), generator=generator))
        sgd = osgr(torch.ones_like(variance), mean_square, variance, n)
        assert osgr(genie_factor(mean_square, variance, n), mean_square, variance, n) >= sgd - 1e-12
        if (mean_square > 0).any():
            lower += genie_osgr(mean_square / variance, n) < sgd
    assert lower > 0  # which Corollary 2's can


def test_ties_share_their_rank():
    found = genie_distance(torch.tensor([0.0, 0.0, 1.0, 4.0]), torch.tensor([1.0, 1.0, 1.0, 2.0]), 8)
    step = genie_factor(torch.tensor([0.0, 0.0, 1.0, 4.0]), torch.tensor([1.0, 1.0, 1.0, 2.0]), 8)
    assert found.rank_correlation == pytest.approx(stats.spearmanr(step, [1, 1, 1, 0.5]).statistic, abs=1e-12)
