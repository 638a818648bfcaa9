"""SAM itself; what holds of all multi-pass optimizers is in test_multipass.py."""

import pytest
import torch
from torch import nn

from shiftproof.optim import SAM


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


def test_the_norm_of_many_elements_is_that_of_their_squares():
    """Sums are taken in blocks."""
    p = nn.Parameter(torch.ones(3, 70_000))
    optimizer = SAM([p], torch.optim.SGD, rho=1.0, lr=1.0)

    def closure():
        optimizer.zero_grad()
        (0.5 * p.square().sum()).backward()

    optimizer.step(closure)
    torch.testing.assert_close(p.detach(), torch.full_like(p, -((3 * 70_000) ** -0.5)), rtol=1e-4, atol=0)


def test_mixed_precision_parameters_are_perturbed_in_their_own():
    p, q = nn.Parameter(torch.tensor([3.0])), nn.Parameter(torch.tensor([4.0], dtype=torch.bfloat16))
    seen = []
    optimizer = SAM([p, q], torch.optim.SGD, rho=5.0, lr=0.0)

    def closure():
        optimizer.zero_grad()
        seen.append((p.item(), q.item()))
        (0.5 * (p * p + q * q).sum()).backward()

    optimizer.step(closure)
    assert seen == [(3.0, 4.0), (6.0, 8.0)]
    assert (p.dtype, q.dtype) == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_counts_a_batch_once(momentum):
    norm, plain = nn.BatchNorm1d(3, momentum=momentum), nn.BatchNorm1d(3, momentum=momentum)
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    optimizer = SAM(norm.parameters(), torch.optim.SGD, lr=0.1)

    def closure():
        optimizer.zero_grad()
        norm(inputs).square().sum().backward()

    optimizer.step(closure)
    plain(inputs)
    for ours, theirs in zip(norm.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    assert norm.track_running_stats
