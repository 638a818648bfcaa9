import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shiftproof.optim import GENIE, SAM
from shiftproof.optim.batch_norm import frozen_statistics


def _quadratic(curvature, start):
    p = nn.Parameter(start.clone())

    def closure_for(optimizer):
        def closure():
            optimizer.zero_grad()
            loss = 0.5 * (curvature * p * p).sum()
            loss.backward()
            return loss.detach()

        return closure

    return p, closure_for


def test_a_step_is_the_base_step_with_the_gradient_at_the_perturbed_weights():
    """On a quadratic, g = A w; the gradient after the ascent is A (w + rho g / |g|)."""
    curvature = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
    start = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    p, closure_for = _quadratic(curvature, start)
    optimizer = SAM([p], torch.optim.SGD, rho=0.1, lr=0.01, momentum=0.9)
    weight, momentum = start.clone(), torch.zeros(3, dtype=torch.float64)
    for _ in range(10):
        optimizer.step(closure_for(optimizer))
        g = curvature * weight
        momentum = 0.9 * momentum + curvature * (weight + 0.1 * g / g.norm())
        weight = weight - 0.01 * momentum
    torch.testing.assert_close(p.detach(), weight, rtol=1e-10, atol=0)


def test_the_norm_is_over_all_groups():
    p, q = nn.Parameter(torch.tensor([3.0])), nn.Parameter(torch.tensor([4.0]))
    seen = []
    optimizer = SAM([{"params": [p]}, {"params": [q], "rho": 1.0}], torch.optim.SGD, rho=0.5, lr=0.0)

    def closure():
        optimizer.zero_grad()
        seen.append((p.item(), q.item()))
        loss = 0.5 * (p * p + q * q).sum()
        loss.backward()
        return loss.detach()

    optimizer.step(closure)
    assert seen[1] == pytest.approx((3 + 0.5 * 3 / 5, 4 + 1.0 * 4 / 5))
    assert (p.item(), q.item()) == (3.0, 4.0)


def test_weights_are_restored_exactly():
    """Subtracting the perturbation again would leave rounding behind."""
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(1000) * 1e-3)
    start = p.detach().clone()
    optimizer = SAM([p], torch.optim.SGD, rho=10.0, lr=0.0)

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    for _ in range(20):
        optimizer.step(closure)
    assert torch.equal(p, start)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_counts_a_batch_once(momentum):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=momentum), nn.ReLU(), nn.Linear(8, 2))
    plain = copy.deepcopy(model)
    inputs, targets = torch.randn(32, 4), torch.randint(2, (32,))
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    plain(inputs)
    for ours, theirs in zip(model[1].buffers(), plain[1].buffers(), strict=True):
        assert torch.equal(ours, theirs)
    assert model[1].track_running_stats


def test_frozen_statistics_survives_an_error_in_the_model():
    norm = nn.BatchNorm1d(3)
    with pytest.raises(ValueError, match="expected 2D or 3D input"), frozen_statistics():
        norm(torch.ones(3))
    assert norm.track_running_stats
    norm(torch.randn(4, 3))
    assert norm.num_batches_tracked == 1


def test_any_optimizer_can_be_the_base():
    p, closure_for = _quadratic(torch.ones(50), torch.ones(50))
    optimizer = SAM([p], GENIE, rho=0.01, lr=1.0)
    first = optimizer.step(closure_for(optimizer))
    for _ in range(50):
        last = optimizer.step(closure_for(optimizer))
    assert last < 0.1 * first
    assert set(optimizer.state[p]) == {"exp_avg", "exp_avg_sq", "step"}


def test_schedulers_reach_the_base():
    p, closure_for = _quadratic(torch.ones(2), torch.ones(2))
    optimizer = SAM([p], torch.optim.SGD, lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    optimizer.step(closure_for(optimizer))
    scheduler.step()
    assert torch.equal(p.detach(), torch.ones(2))
    assert optimizer.base.param_groups[0]["lr"] == 0.0


def test_bad_input_is_refused():
    p = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="Invalid rho value: -1"):
        SAM([p], rho=-1)
    with pytest.raises(ValueError, match=r"(?s)needs a closure:.*loss\.backward\(\).*optimizer\.step\(closure\)"):
        SAM([p]).step()
