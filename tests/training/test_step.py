import copy

import pytest
import torch

from shiftproof.algorithms import ERM
from shiftproof.annealing import Annealer
from shiftproof.models import build_network
from shiftproof.optim import SAM
from shiftproof.training import StepBuilder
from shiftproof.training.step import split_batches


def _batches(domains=2, count=8):
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(count, 1, 16, 16, generator=generator), torch.randint(3, (count,), generator=generator))
        for _ in range(domains)
    ]


def _algorithm(dropout=0.0):
    algorithm = ERM(build_network("small_conv", (1, 16, 16), 3, dropout=dropout, seed=0), 2)
    algorithm.build_optimizers(lambda params: torch.optim.SGD(params, lr=0.1))
    return algorithm


class _Spy(torch.optim.SGD):
    """Calls its closure three times and keeps what every pass left."""

    def step(self, closure):
        self.seen = []
        for _ in range(3):
            with torch.enable_grad():
                loss = closure()
            self.seen.append((loss, [p.grad.clone() for p in self.param_groups[0]["params"]]))
            torch.rand(7)  # an optimizer that draws from torch's generator changes no pass
        return loss


def test_all_passes_of_a_step_see_one_objective():
    algorithm = _algorithm(dropout=0.5)
    algorithm.build_optimizers(lambda params: _Spy(params, lr=0.1))
    steps = StepBuilder(algorithm, Annealer(), seed=0)
    steps.take(_batches(), 1)
    first, *others = algorithm.optimizers["all"].seen
    for other in others:
        assert torch.equal(other[0], first[0])
        assert all(torch.equal(a, b) for a, b in zip(other[1], first[1], strict=True))
    assert steps.passes == 3
    steps.take(_batches(), 2)  # another step drops other features
    assert not torch.equal(algorithm.optimizers["all"].seen[0][0], first[0])


def test_accumulation_leaves_the_gradient_of_the_whole_batch():
    whole, parts = _algorithm(), _algorithm()
    loss = StepBuilder(whole, Annealer(), seed=0).take(_batches(), 1)
    split = StepBuilder(parts, Annealer(), seed=0, accumulate=4).take(_batches(), 1)
    torch.testing.assert_close(split, loss)
    for p, q in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


def test_batches_are_split_evenly_with_all_domains_in_each_part():
    parts = split_batches(_batches(domains=3, count=8), 2)
    assert [[len(images) for images, _ in part] for part in parts] == [[4, 4, 4], [4, 4, 4]]
    assert torch.equal(torch.cat([part[1][0] for part in parts]), _batches(domains=3)[1][0])
    with pytest.raises(ValueError, match="8 images cannot be split into 3 equal parts"):
        split_batches(_batches(), 3)


def test_gradients_are_clipped_to_the_norm():
    algorithm = _algorithm()
    StepBuilder(algorithm, Annealer(), seed=0, clip_norm=1e-3).take(_batches(), 1)
    norm = torch.cat([p.grad.flatten() for p in algorithm.parameters()]).norm()
    torch.testing.assert_close(norm, torch.tensor(1e-3), rtol=1e-4, atol=0)


def test_bf16_forward_keeps_float32_weights():
    exact, rounded = _algorithm(), _algorithm()
    loss = StepBuilder(exact, Annealer(), seed=0).take(_batches(), 1)
    low = StepBuilder(rounded, Annealer(), seed=0, precision="bf16").take(_batches(), 1)
    assert 0 < abs(low - loss) < 0.05
    assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in rounded.parameters())


def test_the_annealer_moves_weights_before_and_edits_gradients_in_every_pass():
    class Scale(Annealer):
        calls = 0

        def before_step(self, parameters, step, domain_losses):
            assert len(domain_losses()) == 2
            for p in parameters:
                p.data.add_(1.0)

        def edit_gradients(self, parameters, step, domain_losses):
            self.calls += 1
            for p in parameters:
                p.grad.zero_()

    algorithm = _algorithm()
    algorithm.build_optimizers(lambda params: SAM(params, torch.optim.SGD, lr=0.1))
    start = copy.deepcopy(list(algorithm.parameters()))
    annealer = Scale()
    StepBuilder(algorithm, annealer, seed=0).take(_batches(), 1)
    assert annealer.calls == 2
    for p, q in zip(algorithm.parameters(), start, strict=True):
        assert torch.equal(p.detach(), q.detach() + 1)
