import pytest
import torch

from algorithms.made_up_runs import domain_losses, gradients, made_up, small, steps_of
from shiftproof.algorithms import ERM
from shiftproof.algorithms.vrex import VREx


def _transcription(algorithm, batches, weight):
    losses = domain_losses(algorithm, batches)
    mean = sum(losses) / len(losses)
    return mean + weight * sum((loss - mean) ** 2 for loss in losses) / len(losses)


@pytest.mark.parametrize("counts", [(5,), (3, 4), (2, 5, 3), (1, 2, 3, 2, 1)])
def test_objective_and_gradient_are_those_of_the_transcription(counts):
    algorithm = small(VREx, len(counts), dtype=torch.float64, penalty_weight=30.0, anneal_steps=0)
    batches = made_up(counts, dtype=torch.float64)
    expected = _transcription(algorithm, batches, 30.0)
    torch.testing.assert_close(algorithm.objective(batches), expected, rtol=1e-12, atol=1e-14)
    found = gradients(algorithm, batches)
    expected_gradients = torch.autograd.grad(expected, list(algorithm.parameters()))
    for (name, _), gradient in zip(algorithm.named_parameters(), expected_gradients, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-13)


def test_on_identical_domains_and_on_one_it_is_erm():
    one = made_up((4,), dtype=torch.float64)
    for batches in (one, one * 3):
        vrex = small(VREx, len(batches), dtype=torch.float64, penalty_weight=1e4, anneal_steps=0)
        erm = small(ERM, len(batches), dtype=torch.float64)
        torch.testing.assert_close(vrex.objective(batches), erm.objective(batches), rtol=1e-12, atol=0)
        expected = gradients(erm, batches)
        for name, gradient in gradients(vrex, batches).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-11)


def test_before_the_weight_is_raised_it_is_1():
    steps = steps_of(small(VREx, dtype=torch.float64, penalty_weight=50.0, anneal_steps=1))
    batches = made_up((3, 5), dtype=torch.float64)
    for step, weight in ((1, 1.0), (2, 50.0)):
        expected = _transcription(steps.algorithm, batches, weight).detach()
        torch.testing.assert_close(steps.take(batches, step), expected, rtol=1e-12, atol=0)
