import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from algorithms.made_up_batches import defaults
from algorithms.made_up_runs import assert_continues_bit_equal, gradients, loss_of_image, made_up, small, steps_of
from draws import draw
from shiftproof.algorithms import ERM, CVaRDRO
from shiftproof.algorithms.domain_loss import row_losses
from shiftproof.base.randomness import seed_hash


def _transcription(algorithm, batches, alpha):
    """Give the highest losses the largest weights that are left."""
    losses = [
        loss_of_image(algorithm, image, label)
        for images, labels in batches
        for image, label in zip(images, labels, strict=True)
    ]
    most, left, value = min(1 / (alpha * len(losses)), 1.0), 1.0, 0.0
    for loss in sorted(losses, key=lambda one: float(one.detach()), reverse=True):
        weight = min(most, left)
        left -= weight
        value = value + weight * loss
    assert left == pytest.approx(0, abs=1e-12)
    return value


@pytest.mark.parametrize("counts", [(5,), (3, 4), (2, 5, 3), (1, 2, 3, 2, 1)])
@pytest.mark.parametrize("alpha", [0.01, 0.25, 0.3, 1 / 3, 0.75, 1.0])
def test_loss_and_gradients_are_those_of_the_transcription(counts, alpha):
    algorithm = small(CVaRDRO, len(counts), dtype=torch.float64, alpha=alpha)
    batches = made_up(counts, dtype=torch.float64)
    expected = _transcription(algorithm, batches, alpha)
    torch.testing.assert_close(algorithm.objective(batches), expected, rtol=1e-10, atol=0)
    parameters = dict(algorithm.named_parameters())
    descent = torch.autograd.grad(expected, list(parameters.values()))
    found = gradients(algorithm, batches)
    for name, gradient in zip(parameters, descent, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-13)


def test_it_is_the_maximum_over_all_weights_that_are_allowed():
    """The dual form: the least of eta plus the mean excess over it, divided by alpha."""
    algorithm, batches = small(CVaRDRO, 2, dtype=torch.float64, alpha=0.3), made_up((6, 5), dtype=torch.float64)
    rows = [(x, y) for images, labels in batches for x, y in zip(images, labels, strict=True)]
    losses = torch.stack([loss_of_image(algorithm, x, y) for x, y in rows]).detach()
    dual = min(float(eta + (losses - eta).clamp_min(0).mean() / 0.3) for eta in losses)
    assert algorithm.objective(batches).item() == pytest.approx(dual, rel=1e-10)


def test_of_all_images_it_is_erm_and_of_few_the_largest_loss():
    batches = made_up((4, 6), dtype=torch.float64)
    erm = small(ERM, dtype=torch.float64)
    whole = gradients(small(CVaRDRO, dtype=torch.float64, alpha=1.0), batches)
    for name, gradient in gradients(erm, batches).items():
        torch.testing.assert_close(whole[name], gradient, rtol=1e-10, atol=1e-13)
    losses = [loss_of_image(erm, x, y) for images, labels in batches for x, y in zip(images, labels, strict=True)]
    smallest = small(CVaRDRO, dtype=torch.float64, alpha=0.1).objective(batches)
    torch.testing.assert_close(smallest, max(losses, key=lambda one: float(one.detach())), rtol=1e-10, atol=0)


@pytest.mark.parametrize("loss", ["squared", "labels"])
def test_losses_of_rows_are_those_of_batches_of_one(loss):
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(5, 3 if loss == "labels" else 1, generator=generator, dtype=torch.float64)
    if loss == "labels":
        targets = torch.randint(2, (5, 3), generator=generator).double()
        mean = F.binary_cross_entropy_with_logits
    else:
        targets = torch.randn(5, generator=generator, dtype=torch.float64)

        def mean(outputs, targets):
            return F.mse_loss(outputs.reshape(targets.shape), targets) / 4

    expected = torch.stack([mean(outputs[i : i + 1], targets[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(row_losses(outputs, targets, mean), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("optimizer", ["adam", "sam", "adahessian"])
def test_a_run_continues_bit_equal(optimizer):
    assert_continues_bit_equal(lambda: small(CVaRDRO, dropout=0.3, alpha=0.3), optimizer, 3, 6)


def test_a_step_is_one_pass_over_all_images():
    steps = steps_of(small(CVaRDRO, 3))
    counts, predict = [], steps.algorithm.predict
    steps.algorithm.predict = lambda images: counts.append(len(images)) or predict(images)
    assert steps.take(made_up((4, 3, 2)), 1).isfinite()
    assert counts == [9]


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.1, math.nan])
def test_hyperparameters_out_of_range_are_refused(alpha):
    with pytest.raises(ValueError, match=f"Invalid alpha value: {alpha}; it must be above 0 and at most 1"):
        small(CVaRDRO, alpha=alpha)


def test_defaults_and_draws_are_those_of_subpopbench():
    registered, constructed = defaults(CVaRDRO)
    assert registered == constructed == draw(CVaRDRO.hparams, 0, 0) == {"alpha": 0.1}
    random = np.random.RandomState(seed_hash(seed_hash(3, 1), "joint_dro_alpha"))
    assert draw(CVaRDRO.hparams, 3, 1) == {"alpha": 10 ** random.uniform(-2, 0)}
