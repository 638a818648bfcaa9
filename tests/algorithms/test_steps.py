"""What an algorithm changes once per step, whatever the number of passes, and what it keeps for the next."""

import pytest
import torch

from algorithms.made_up_runs import made_up, small, steps_of
from shiftproof.algorithms import ERM


class _Counting(ERM):
    """Adds the sum of the weights it sees to a buffer, which its objective reads."""

    def __init__(self, network, num_domains):
        super().__init__(network, num_domains)
        self.register_buffer("total", torch.zeros(1))
        self.seen, self.begun = [], []

    def before_step(self, batches, step):
        self.begun.append((step, [len(labels) for _, labels in batches]))

    def objective(self, batches):
        total = self.total + batches[0][0].mean() + self.network.classifier.weight.detach().sum()
        self.carry("total", total)
        self.seen.append((self.total.clone(), total))
        return super().objective(batches) * (1 + self.total.squeeze() ** 2)


@pytest.mark.parametrize("optimizer", ["sgd", "sam", "gam"])
def test_a_buffer_moves_on_once_per_step_by_its_first_pass(optimizer):
    steps = steps_of(small(_Counting), optimizer)
    steps.take(made_up(), 1)
    seen = steps.algorithm.seen
    assert len(seen) == steps.passes
    assert all(before == 0 for before, _ in seen)  # all passes of the step see one objective
    assert torch.equal(steps.algorithm.total, seen[0][1])
    if optimizer != "sgd":
        # at other weights, of which some give the same value to rounding
        assert any(not torch.equal(total, seen[0][1]) for _, total in seen[1:])
    steps.take(made_up(), 2)
    assert torch.equal(seen[len(seen) // 2][0], seen[0][1])
    assert steps.algorithm.begun == [(1, [4, 4]), (2, [4, 4])]


def test_parts_of_a_batch_leave_the_mean_of_their_values():
    steps = steps_of(small(_Counting), "sam", accumulate=2)
    steps.take(made_up(), 1)
    values = [value for _, value in steps.algorithm.seen]
    assert len(values) == 4
    torch.testing.assert_close(steps.algorithm.total, (values[0] + values[1]) / 2)
    assert steps.algorithm.begun == [(1, [4, 4])]  # the whole batches


def test_outside_of_a_step_nothing_is_kept():
    algorithm = small(_Counting)
    algorithm.backward(made_up())
    assert torch.equal(algorithm.total, torch.zeros(1))
    steps = steps_of(algorithm)
    steps.take(made_up(), 1)
    assert torch.equal(algorithm.total, algorithm.seen[1][1])
