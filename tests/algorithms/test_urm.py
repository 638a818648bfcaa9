import copy
import math

import pytest
import torch

from algorithms.made_up_batches import defaults
from algorithms.made_up_runs import assert_continues_bit_equal, gradients, made_up, small, steps_of
from draws import draw
from shiftproof.algorithms import ERM
from shiftproof.algorithms.urm import URM
from shiftproof.base.randomness import seed_generators, torch_seed

CPU = torch.device("cpu")


def _binary(scores, target):
    probabilities = [1 / (1 + torch.exp(-score)) for score in scores.flatten()]
    return sum(-torch.log(p if target else 1 - p) for p in probabilities) / len(probabilities)


def _loss(network, discriminator, batches, weight, activation):
    """The network's loss and its features, image by image."""
    features, losses = [], []
    for images, labels in batches:
        for image, label in zip(images, labels, strict=True):
            z = network.featurizer(image[None])[0]
            z = torch.tanh(z) if activation == "tanh" else z.clamp_min(0)
            logits = network.classifier(z)
            losses.append(logits.exp().sum().log() - logits[label])
            features.append(z)
    features = torch.stack(features)
    return sum(losses) / len(losses) + weight * _binary(discriminator(features), 1), features


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("counts", [(5,), (3, 4), (2, 5, 3), (1, 2, 3, 2, 1)])
def test_steps_are_those_of_the_transcription(counts, activation):
    lr, weight = 0.05, 0.4
    hparams = {"adversary_weight": weight, "activation": activation, "lr_ratio": 3.0, "hidden_layers": 2}
    torch.manual_seed(0)
    steps = steps_of(small(URM, len(counts), dtype=torch.float64, **hparams), "sgd", lr=lr)
    for optimizer in steps.algorithm.optimizers.values():
        optimizer.param_groups[0]["momentum"] = 0.0
    network, discriminator = (copy.deepcopy(part) for part in (steps.algorithm.network, steps.algorithm.discriminator))
    for step in range(1, 4):
        batches = made_up(counts, dtype=torch.float64, seed=step)
        loss, features = _loss(network, discriminator, batches, weight, activation)
        descent = torch.autograd.grad(loss, list(network.parameters()))
        with torch.no_grad():
            for p, gradient in zip(network.parameters(), descent, strict=True):
                p -= lr * gradient
        seed_generators(torch_seed(0, "step", step), CPU)
        low = -1 if activation == "tanh" else 0
        noise = low + (1 - low) * torch.rand(features.shape).double()
        against = _binary(discriminator(noise), 1) + weight * _binary(discriminator(features.detach()), 0)
        descent = torch.autograd.grad(against, list(discriminator.parameters()))
        with torch.no_grad():
            for p, gradient in zip(discriminator.parameters(), descent, strict=True):
                p -= 3 * lr * gradient
        torch.testing.assert_close(steps.take(batches, step), loss.detach(), rtol=1e-9, atol=0)
    for found, expected in ((steps.algorithm.network, network), (steps.algorithm.discriminator, discriminator)):
        for p, q in zip(found.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-10)


def test_without_weight_and_with_a_rectifier_it_is_erm_on_features_above_0():
    """The small network ends in a rectifier, which a second one does not change."""
    batches = made_up((4, 4), dtype=torch.float64)
    urm = small(URM, dtype=torch.float64, adversary_weight=0.0, activation="relu")
    erm = small(ERM, dtype=torch.float64)
    features = erm.network.featurizer(batches[0][0])
    if (features < 0).any():
        pytest.skip("the small network does not end in a rectifier")
    expected = gradients(erm, batches)
    for name, gradient in gradients(urm, batches).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-13)


def test_the_networks_gradient_does_not_reach_the_discriminator_nor_the_other_way_round():
    algorithm = small(URM)
    algorithm.backward(made_up())
    assert all(p.grad is None for p in algorithm.discriminator.parameters())
    assert all(p.grad is not None for p in algorithm.network.parameters())
    algorithm.zero_grad()
    encoded = [(torch.randn(4, algorithm.network.feature_size), labels) for _, labels in made_up()]
    algorithm.discriminator_loss(encoded).backward()
    assert all(p.grad is None for p in algorithm.network.parameters())


def test_the_discriminator_sees_the_first_pass_of_optimizers_with_several():
    steps = steps_of(small(URM), "sam")
    with torch.no_grad():
        features = steps.algorithm.network.features(torch.cat([images for images, _ in made_up()]))
    seen, against = [], steps.algorithm.discriminator_loss
    steps.algorithm.discriminator_loss = lambda encoded: (
        seen.append(torch.cat([z for z, _ in encoded])) or against(encoded)
    )
    steps.take(made_up(), 1)
    assert steps.passes == 2
    torch.testing.assert_close(seen[0], features)


def test_what_the_activation_is_travels_with_the_weights():
    trained, again = small(URM, activation="relu").network.eval(), URM.extend(small(ERM).network).eval()
    images, _ = made_up()[0]
    again.load_state_dict(trained.state_dict())
    assert torch.equal(again(images), trained(images))
    assert not torch.equal(small(URM).network.eval()(images), trained(images))


def test_parts_of_a_batch_are_the_whole():
    torch.manual_seed(0)
    whole = steps_of(small(URM, dtype=torch.float64), "sgd")
    torch.manual_seed(0)
    parts = steps_of(small(URM, dtype=torch.float64), "sgd", accumulate=2)
    batches = made_up((4, 4), dtype=torch.float64)
    torch.testing.assert_close(parts.take(batches, 1), whole.take(batches, 1))
    for p, q in zip(parts.algorithm.network.parameters(), whole.algorithm.network.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def _seeded(**hparams):
    torch.manual_seed(0)
    return small(URM, dropout=0.3, **hparams)


@pytest.mark.parametrize("optimizer", ["adam", "genie", "sam", "adahessian"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_a_run_continues_bit_equal(optimizer, activation):
    assert_continues_bit_equal(lambda: _seeded(activation=activation), optimizer, 2, 5)


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({"adversary_weight": -1.0}, "Invalid adversary_weight value: -1.0; it must be at least 0"),
        ({"hidden_layers": -1}, "Invalid hidden_layers value: -1; it must be a whole number, at least 0"),
        ({"hidden_layers": 1.5}, "Invalid hidden_layers value: 1.5"),
        ({"activation": "sigmoid"}, "Invalid activation value: sigmoid; it must be one of tanh, relu"),
        ({"lr_ratio": math.inf}, "Invalid lr_ratio value: inf; it must be above 0"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(hparams, message):
    with pytest.raises(ValueError, match=message):
        small(URM, **hparams)


def test_defaults_are_domainbeds():
    registered, constructed = defaults(URM)
    assert (
        registered
        == constructed
        == draw({k: v for k, v in URM.hparams.items() if k != "lr_ratio"}, 0, 0) | {"lr_ratio": 1.0}
    )
