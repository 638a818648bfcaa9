import math
import statistics

import pytest
import torch

from algorithms.made_up_batches import defaults
from algorithms.made_up_runs import assert_continues_bit_equal, domain_losses, gradients, made_up, small
from algorithms.test_and_mask import _tiny as tiny
from draws import draw
from shiftproof.algorithms import ERM
from shiftproof.algorithms.and_mask import ANDMask
from shiftproof.algorithms.sand_mask import SANDMask


def _transcription(algorithm, batches, tau, k, rescale):
    """Element by element over the domains' gradients."""
    parameters = list(algorithm.parameters())
    by_domain = [torch.autograd.grad(loss, parameters) for loss in domain_losses(algorithm, batches)]
    masked = []
    for parts in zip(*by_domain, strict=True):
        factors, means = [], []
        for element in torch.stack([part.flatten() for part in parts]).T.tolist():
            agreement = abs(sum((g > 0) - (g < 0) for g in element)) / len(element)
            variance = statistics.variance(element) if len(element) > 1 else 0.0
            excess = agreement - tau
            if variance:
                factors.append(max(0.0, math.tanh(k * excess / variance)))
            else:
                factors.append(1.0 if excess > 0 else 0.0)
            means.append(statistics.fmean(element))
        mean_factor = statistics.fmean(factors)
        scale = 1 / mean_factor if rescale and mean_factor else 1.0
        values = [factor * mean * scale for factor, mean in zip(factors, means, strict=True)]
        masked.append(torch.tensor(values, dtype=torch.float64).view_as(parts[0]))
    return masked


@pytest.mark.parametrize("counts", [(5,), (3, 4), (2, 5, 3), (1, 2, 3, 2, 1)])
@pytest.mark.parametrize(("tau", "k"), [(0.3, 1e-4), (0.9, 0.001), (0.5, 10.0)])
@pytest.mark.parametrize("rescale", [False, True])
def test_gradients_are_those_of_the_transcription(counts, tau, k, rescale):
    algorithm = tiny(SANDMask, len(counts), tau=tau, k=k, rescale=rescale)
    batches = made_up(counts, dtype=torch.float64)
    found = gradients(algorithm, batches)
    for gradient, expected in zip(found.values(), _transcription(algorithm, batches, tau, k, rescale), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-13)


def test_a_large_k_gives_the_and_mask_and_one_domain_or_equal_ones_erm():
    batches = made_up((4, 3, 4), dtype=torch.float64)
    hard, smooth = tiny(ANDMask, 3, tau=0.8), tiny(SANDMask, 3, tau=0.8, k=1e30)
    for first, second in zip(gradients(hard, batches).values(), gradients(smooth, batches).values(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=0)
    one = made_up((4,), dtype=torch.float64)
    for same in (one, one * 3):
        mask, erm = (small(kind, len(same), dtype=torch.float64) for kind in (SANDMask, ERM))
        expected = gradients(erm, same)
        for name, gradient in gradients(mask, same).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-13)


def test_a_mask_of_zeros_stays_zero_and_an_element_without_gradient_too():
    mask = SANDMask.mask(small(SANDMask, tau=0.5), torch.tensor([0.0, 1.0, 0.5, 1.0]), torch.tensor([1.0, 0, 0, 1e-30]))
    assert mask.tolist() == [0.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize("optimizer", ["adam", "sam", "adahessian"])
def test_a_run_continues_bit_equal(optimizer):
    assert_continues_bit_equal(lambda: small(SANDMask, dropout=0.3), optimizer, 3, 5)


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({"tau": -0.1}, "Invalid tau value: -0.1"),
        ({"tau": 1.0}, "Invalid tau value: 1.0; it must be in .*: at 1 nothing is learned"),
        ({"k": 0.0}, "Invalid k value: 0.0; it must be above 0"),
        ({"k": float("inf")}, "Invalid k value: inf"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(hparams, message):
    with pytest.raises(ValueError, match=message):
        small(SANDMask, **hparams)


def test_the_draws_are_domainbeds_and_its_default_that_learns_nothing_is_not():
    registered, constructed = defaults(SANDMask)
    assert registered == constructed == {"tau": 0.5, "k": 10.0, "rescale": False}
    assert draw(SANDMask.hparams, 0, 0, "domainbed-head") == {"tau": 0.5, "k": 10.0, "rescale": True}
    drawn = [draw(SANDMask.hparams, seed, 0) for seed in range(1, 30)]
    assert all(0 <= one["tau"] < 1 and 1e-3 <= one["k"] < 1e5 for one in drawn)
