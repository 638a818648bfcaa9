import math
from itertools import product

import pytest
import torch

from algorithms.made_up_batches import defaults
from algorithms.made_up_runs import (
    assert_continues_bit_equal,
    gradients,
    loss_of_image,
    made_up,
    small,
    steps_of,
)
from draws import draw
from shiftproof.algorithms import ERM
from shiftproof.algorithms.rdm import RDM
from shiftproof.protocol.settings import search_space, setting


def _variance(values):
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)


def _transcription(algorithm, batches, weight, variance_weight):
    """Pair by pair of images."""

    def kernel(a, b):
        return sum(torch.exp(-(10.0**power) * (a - b) ** 2) for power in range(-4, 4))

    def mean_kernel(xs, ys):
        return sum(kernel(a, b) for a, b in product(xs, ys)) / (len(xs) * len(ys))

    risks = [
        [loss_of_image(algorithm, image, label) for image, label in zip(images, labels, strict=True)]
        for images, labels in batches
    ]
    means = [sum(of_domain) / len(of_domain) for of_domain in risks]
    worst, every = risks[means.index(max(means))], [risk for of_domain in risks for risk in of_domain]
    discrepancy = mean_kernel(worst, worst) + mean_kernel(every, every) - 2 * mean_kernel(worst, every)
    variance = _variance(every) + _variance(worst)
    return sum(means) / len(means) + weight * discrepancy + variance_weight * variance


@pytest.mark.parametrize("counts", [(5,), (3, 4), (2, 5, 3), (2, 3, 2, 3, 2)])
@pytest.mark.parametrize("variance_weight", [0.0, 0.3])
def test_objective_and_gradient_are_those_of_the_transcription(counts, variance_weight):
    hparams = {"penalty_weight": 5.0, "variance_weight": variance_weight, "anneal_steps": 0}
    algorithm = small(RDM, len(counts), dtype=torch.float64, **hparams)
    batches = made_up(counts, dtype=torch.float64)
    expected = _transcription(algorithm, batches, 5.0, variance_weight)
    torch.testing.assert_close(algorithm.objective(batches), expected, rtol=1e-10, atol=0)
    found = gradients(algorithm, batches)
    for p, gradient in zip(found.values(), torch.autograd.grad(expected, list(algorithm.parameters())), strict=True):
        torch.testing.assert_close(p, gradient, rtol=1e-6, atol=1e-10)


def test_before_the_weights_are_raised_and_without_them_it_is_erm():
    batches = made_up((4, 4), dtype=torch.float64)
    expected = gradients(small(ERM, dtype=torch.float64), batches)
    without = {"penalty_weight": 0.0, "variance_weight": 0.0, "anneal_steps": 0}
    for hparams in ({"anneal_steps": 1}, without):
        for name, gradient in gradients(small(RDM, dtype=torch.float64, **hparams), batches).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-13)


def test_one_domain_and_equal_ones_match_themselves():
    one = made_up((4,), dtype=torch.float64)
    for batches in (one, one * 3):
        algorithm = small(RDM, len(batches), dtype=torch.float64, variance_weight=0.0, anneal_steps=0)
        erm = small(ERM, len(batches), dtype=torch.float64)
        torch.testing.assert_close(algorithm.objective(batches), erm.objective(batches), rtol=1e-12, atol=1e-14)


def test_the_second_phase_has_a_rate_of_its_own():
    steps = steps_of(small(RDM, anneal_steps=1, lr_ratio=0.5), "adam")
    rates = []
    for step in (1, 2, 3):
        steps.take(made_up(seed=step), step)
        rates.append(steps.algorithm.optimizers["all"].param_groups[0]["lr"])
    assert rates == pytest.approx([0.01, 0.005, 0.005])


@pytest.mark.parametrize("optimizer", ["adam", "genie", "sam", "adahessian"])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_continues_bit_equal(optimizer, stop):
    assert_continues_bit_equal(lambda: small(RDM, dropout=0.3, anneal_steps=2), optimizer, stop, 5)


def test_a_batch_of_one_image_has_no_variance():
    assert RDM.min_images == 2
    with pytest.raises(ValueError, match="1 image has none"):
        small(RDM, anneal_steps=0).objective(made_up((4, 1)))


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({"penalty_weight": -1.0}, "Invalid penalty_weight value: -1.0; it must be at least 0"),
        ({"variance_weight": math.inf}, "Invalid variance_weight value: inf; it must be at least 0"),
        ({"anneal_steps": -1}, "Invalid anneal_steps value: -1"),
        ({"lr_ratio": 0.0}, "Invalid lr_ratio value: 0.0; it must be above 0"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(hparams, message):
    with pytest.raises(ValueError, match=message):
        small(RDM, **hparams)


def test_defaults_are_domainbeds():
    registered, constructed = defaults(RDM)
    assert registered == constructed == draw(RDM.hparams, 0, 0)


@pytest.mark.parametrize(
    ("dataset", "weight", "steps", "variance"),
    [("PACS", 5.0, 1500, 0.004), ("VLCS", 5.0, 1500, 0.004), ("OfficeHome", 5.0, 1500, 0.0),
     ("TerraIncognita", 5.0, 1500, 0.0), ("DomainNet", 0.5, 2400, 0.0)],
)  # fmt: skip
def test_some_data_sets_have_distributions_of_their_own(dataset, weight, steps, variance):
    space = search_space(dataset, "photographs", True, "rdm", "adam", "none", "protocol")
    first = setting(space, {}, 0, 0, "domainbed-head")
    names = ("penalty_weight", "anneal_steps", "variance_weight")
    assert tuple(first[f"algorithm.{name}"] for name in names) == (weight, steps, variance)
    assert first["algorithm.lr_ratio"] * first["optimizer.lr"] == pytest.approx(1.5e-5)
    drawn = setting(space, {}, 1, 0)
    assert (drawn["algorithm.variance_weight"] == 0) is (variance == 0)
    low, high = (0.1, 1.0) if dataset == "DomainNet" else (0.1 if dataset in ("VLCS", "OfficeHome") else 1.0, 10.0)
    weights = [setting(space, {}, seed, 0)["algorithm.penalty_weight"] for seed in range(1, 40)]
    assert low <= min(weights) < low + 0.2 * (high - low) < 0.8 * high < max(weights) < high
