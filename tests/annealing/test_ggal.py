"""GGA-L: the noise and what it is scaled by."""

from itertools import combinations

import pytest
import torch
from torch.nn import functional as F

from annealing.made_up_domains import Counted, made_up
from shiftproof.annealing import GGAL


def _gradient(model, losses):
    model.zero_grad()
    (sum(loss() for loss in losses) / len(losses)).backward()
    return [p.grad.clone() for p in model.parameters()]


def _mean_cosine(model, losses):
    flat = [torch.cat([g.flatten() for g in _gradient(model, [loss])]) for loss in losses]
    cosines = [F.cosine_similarity(a, b, dim=0).item() for a, b in combinations(flat, 2)]
    return sum(cosines) / len(cosines)


@pytest.mark.parametrize("noise", ["uniform", "normal"])
@pytest.mark.parametrize("alone", [True, False])
def test_the_gradient_gets_gamma_times_one_minus_the_mean_cosine_times_noise(noise, alone):
    model, losses = made_up(3)
    similarity, gradient = _mean_cosine(model, losses), _gradient(model, losses)
    if alone:
        model.zero_grad()
    counted = Counted(losses)
    annealer = GGAL(gamma=0.5, noise=noise, seed=3)
    annealer.edit_gradients(model.parameters(), 9, counted)
    assert counted.forward == counted.backward == 3
    assert annealer.extra_passes == (0 if alone else 1)
    xi = torch.cat(
        [((p.grad - g) / (0.5 * (1 - similarity))).flatten() for p, g in zip(model.parameters(), gradient, strict=True)]
    )
    assert annealer.report()["similarity_before"] == pytest.approx(similarity)
    if noise == "uniform":
        assert 0 <= xi.min() < 0.1
        assert 0.9 < xi.max() < 1
    else:
        assert xi.min() < -1
        assert xi.max() > 1


@pytest.mark.parametrize(("noise", "mean", "variance"), [("uniform", 0.5, 1 / 12), ("normal", 0.0, 1.0)])
def test_the_noise_has_the_mean_and_variance_of_its_distribution_and_is_a_function_of_seed_and_step(
    noise, mean, variance
):
    def draw(seed, step, shape=(200, 200)):
        p = torch.zeros(shape, requires_grad=True)
        p.grad = torch.zeros(shape)
        GGAL(noise=noise, seed=seed)._add_noise([p], step, 1.0)
        return p.grad

    xi = draw(1, 2)
    assert xi.mean() == pytest.approx(mean, abs=0.02)
    assert xi.var() == pytest.approx(variance, rel=0.03)
    assert torch.equal(xi, draw(1, 2))
    assert not torch.equal(xi, draw(2, 2))
    assert not torch.equal(xi, draw(1, 3))


def test_a_parameter_without_a_gradient_gets_none_and_shifts_no_other_noise():
    model, losses = made_up(2)
    annealer = GGAL(gamma=1.0)
    annealer.edit_gradients(model.parameters(), 1, losses)
    first = [p.grad.clone() for p in model.parameters()]
    unused = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    model.zero_grad()
    annealer.edit_gradients([*model.parameters(), unused], 1, losses)
    assert unused.grad is None
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), first, strict=True))


def test_nothing_else_changes():
    model, losses = made_up(3, torch.float32, dropout=0.5, batch_norm=True)
    weights = [p.detach().clone() for p in model.parameters()]
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    state = torch.get_rng_state()
    GGAL().edit_gradients(model.parameters(), 1, losses)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), weights, strict=True))
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -1.0}, "Invalid gamma value: -1.0; it must be at least 0"),
        ({"gamma": "x"}, "Invalid gamma value: 'x'; it must be a number"),
        ({"noise": "cauchy"}, "Invalid noise value: cauchy; it must be one of uniform, normal"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GGAL(**options)
