import numpy as np
import pytest
import torch

from algorithms.made_up_batches import assert_resumes, built_steps, defaults, double_network, uneven_batches
from shiftproof.algorithms import ALGORITHMS, ERM
from shiftproof.algorithms.rsc import RSC


def _transcription(network, batches, feature_drop, batch_drop):
    """Algorithm 1 with gradients by autograd and quantiles by NumPy, image by image."""
    images, labels = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    features = network.featurizer(images)
    masks, falls = [], []
    for z, label in zip(features.detach(), labels, strict=True):
        z = z.requires_grad_()
        (gradient,) = torch.autograd.grad(network.classifier(z)[label], z)
        threshold = np.quantile(gradient.numpy(), 1 - feature_drop)
        mask = torch.tensor([0.0 if g > threshold else 1.0 for g in gradient.tolist()], dtype=torch.float64)
        before, after = (torch.softmax(network.classifier(v), 0)[label].item() for v in (z, z * mask))
        masks.append(mask)
        falls.append(before - after)
    threshold = np.quantile(falls, 1 - batch_drop)
    losses = []
    for z, label, mask, fall in zip(features, labels, masks, falls, strict=True):
        logits = network.classifier(z * mask if fall > threshold else z)
        losses.append(torch.logsumexp(logits, 0) - logits[label])
    return torch.stack(losses).mean(), masks, [fall > threshold for fall in falls]


@pytest.mark.parametrize("drops", [(1 / 3, 1 / 3), (0.5, 0.49), (0.1, 0.9)])
def test_objective_and_gradient_are_the_transcription(drops):
    algorithm, batches = RSC(double_network(), 2, *drops), uneven_batches()
    expected, masks, hidden = _transcription(algorithm.network, batches, *drops)
    assert 0 < sum(hidden) < 8
    assert all(0 < mask.sum() < 64 for mask in masks)
    loss = algorithm.objective(batches)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    parameters = list(algorithm.network.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), rtol=1e-9, atol=1e-12
    )


def test_an_update_is_a_step_along_the_transcription():
    algorithm, batches = RSC(double_network(), 2), uneven_batches()
    expected, _, _ = _transcription(algorithm.network, batches, 1 / 3, 1 / 3)
    parameters = list(algorithm.network.parameters())
    moved = [p - 0.1 * g for p, g in zip(parameters, torch.autograd.grad(expected, parameters), strict=True)]
    steps = built_steps(algorithm, "sgd", lr=0.1, momentum=0.0)
    steps.take(batches, 1)
    torch.testing.assert_close(parameters, moved, rtol=1e-9, atol=1e-12)
    assert steps.passes == 1


@pytest.mark.parametrize("drops", [(0.0, 0.3), (0.3, 0.0)])
def test_nothing_to_hide_is_erm(drops):
    network, batches = double_network(), uneven_batches((4, 1, 3))
    assert torch.equal(RSC(network, 3, *drops).objective(batches), ERM(network, 3).objective(batches))


def test_a_classifier_that_starts_at_zero_learns():
    network = double_network()
    for p in network.classifier.parameters():
        torch.nn.init.zeros_(p)
    steps = built_steps(RSC(network, 2))
    losses = [steps.take(uneven_batches(), step).item() for step in range(1, 31)]
    assert network.classifier.weight.abs().min() > 0
    assert losses[-1] < 0.5 * losses[0]


def test_hidden_features_are_those_after_the_dropout():
    network = double_network(dropout=0.5)
    algorithm, batches = RSC(network, 2), uneven_batches()
    values = []
    for _ in range(2):
        torch.manual_seed(3)
        values.append(algorithm.objective(batches))
    torch.manual_seed(4)
    assert torch.equal(*values)
    assert not torch.equal(values[0], algorithm.objective(batches))


@pytest.mark.parametrize("sizes", [(6,), (2, 4, 1, 3, 2)])
def test_resume_is_bit_equal(sizes):
    assert_resumes(lambda: RSC(double_network(0.1), len(sizes)), sizes=sizes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_drop": 1.0}, r"Invalid feature_drop value: 1.0; it must be in \[0, 1\)"),
        ({"feature_drop": -0.1}, "Invalid feature_drop value: -0.1"),
        ({"batch_drop": float("nan")}, "Invalid batch_drop value: nan"),
    ],
)
def test_shares_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RSC(double_network(), 2, **options)


def test_it_is_registered_with_its_defaults():
    assert ALGORITHMS["rsc"] is RSC
    registered, constructed = defaults(RSC)
    assert registered == constructed
