import copy

import pytest
import torch
from torch.nn import functional as F

from algorithms.made_up_batches import assert_resumes, built_steps, defaults, double_network, uneven_batches
from shiftproof.algorithms import ALGORITHMS, ERM
from shiftproof.algorithms.mixstyle import MixStyle, mix_styles
from shiftproof.models import build_network


def _statistics(channel):
    mean = channel.sum() / channel.numel()
    return mean.detach(), ((((channel - mean) ** 2).sum() / channel.numel()) + 1e-6).sqrt().detach()


def _transcription(maps, weights, partners):
    """The paper's equation, channel by channel."""
    mixed = []
    for i, image in enumerate(maps):
        channels = []
        for c, channel in enumerate(image):
            mean, deviation = _statistics(channel)
            other_mean, other_deviation = _statistics(maps[partners[i], c])
            gamma = weights[i] * deviation + (1 - weights[i]) * other_deviation
            beta = weights[i] * mean + (1 - weights[i]) * other_mean
            channels.append(gamma * (channel - mean) / deviation + beta)
        mixed.append(torch.stack(channels))
    return torch.stack(mixed)


def _draws(seed, alpha, p, images):
    torch.manual_seed(seed)
    mixes = torch.rand(1).item() < p
    weights = torch.distributions.Beta(alpha, alpha).sample((images,)).double()
    return (weights if mixes else torch.ones(images)), torch.randperm(images)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_objective_and_gradient_are_the_transcription(seed):
    network, batches = double_network(), uneven_batches()
    plain = copy.deepcopy(network)
    algorithm = MixStyle(network, 2, p=0.6, alpha=0.4)
    assert algorithm.stages == ("2",)
    images, labels = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    weights, partners = _draws(seed, 0.4, 0.6, len(images))
    maps = _transcription(plain.featurizer[:3](images), weights, partners)
    expected = F.cross_entropy(plain.classifier(plain.featurizer[3:](maps)), labels)
    torch.manual_seed(seed)
    loss = algorithm.objective(batches)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(value, list(n.parameters())) for value, n in ((loss, network), (expected, plain))]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-11)


def test_some_of_those_seeds_mix_and_some_do_not():
    assert {bool((_draws(seed, 0.4, 0.6, 8)[0] == 1).all()) for seed in (0, 1, 2)} == {True, False}


def test_an_update_is_a_step_along_the_gradient():
    algorithm, batches = MixStyle(double_network(), 2, p=1.0), uneven_batches()
    start = [p.detach().clone() for p in algorithm.parameters()]
    steps = built_steps(algorithm, "sgd", lr=0.1, momentum=0.0)
    steps.take(batches, 1)
    for p, before in zip(algorithm.parameters(), start, strict=True):
        torch.testing.assert_close(p.detach(), before - 0.1 * p.grad, rtol=1e-12, atol=1e-15)
    assert steps.passes == 1


def test_without_mixing_it_is_erm_bit_for_bit():
    batches = uneven_batches((4, 1, 3))
    expected = ERM(double_network(), 3).objective(batches)
    assert torch.equal(MixStyle(double_network(), 3, p=0.0).objective(batches), expected)
    assert torch.equal(MixStyle(double_network(), 3, p=1.0).eval().objective(batches), expected)
    assert not torch.equal(MixStyle(double_network(), 3, p=1.0).objective(batches), expected)
    maps = torch.randn(3, 2, 4, 4)
    assert torch.equal(mix_styles(maps, torch.ones(3), torch.tensor([2, 0, 1])), maps)


def test_weight_zero_exchanges_the_statistics():
    maps = torch.randn(3, 2, 5, 5, dtype=torch.float64) * 4 + 1
    partners = torch.tensor([1, 2, 0])
    mixed = mix_styles(maps, torch.zeros(3), partners)
    torch.testing.assert_close(mixed.mean((2, 3)), maps[partners].mean((2, 3)))
    torch.testing.assert_close(mixed.std((2, 3)), maps[partners].std((2, 3)), rtol=1e-6, atol=0)


def test_predictions_and_losses_of_domains_are_not_mixed_in_training_either():
    network, batches = double_network(), uneven_batches()
    plain = copy.deepcopy(network)
    algorithm = MixStyle(network, 2, p=1.0).train()
    algorithm.objective(batches)
    assert torch.equal(algorithm.predict(batches[0][0]), plain(batches[0][0]))
    assert algorithm.domain_losses(batches) == ERM(plain, 2).domain_losses(batches)
    assert network.state_dict().keys() == plain.state_dict().keys()


def test_it_acts_after_the_three_stages_before_the_last():
    network = build_network("resnet18", (3, 64, 64), 3, dropout=0.0, seed=0)
    algorithm = MixStyle(network, 1)
    assert algorithm.stages == ("layer1.1", "layer2.1", "layer3.1")
    batches = [(torch.randn(4, 3, 64, 64), torch.arange(4) % 3)]
    with torch.autocast("cpu", torch.bfloat16):
        assert algorithm.objective(batches).isfinite()


def test_each_stage_mixes_in_a_share_of_the_passes():
    network = build_network("squeezenet1_1", (3, 64, 64), 3, dropout=0.0, seed=0)
    algorithm = MixStyle(network, 1, p=0.3)
    torch.manual_seed(0)
    draws = [algorithm._draw([4]) for _ in range(2000)]
    mixing = torch.tensor([[one is not None for one in draw] for draw in draws]).double()
    torch.testing.assert_close(mixing.mean(0), torch.full((3,), 0.3, dtype=torch.float64), rtol=0, atol=0.04)
    assert torch.corrcoef(mixing.T).fill_diagonal_(0).abs().max() < 0.1  # of their own


def test_a_compiled_network_mixes_too():
    network = build_network("small_conv", (1, 16, 16), 4, dropout=0.0, seed=0).double()
    algorithm, batches = MixStyle(network, 2, p=1.0), uneven_batches()
    losses = []
    for compiles in (False, True):
        if compiles:
            network.compile(backend="eager")
        torch.manual_seed(1)
        losses.append(algorithm.objective(batches))
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    assert torch.equal(algorithm.eval().objective(batches), ERM(double_network(), 2).objective(batches))


@pytest.mark.parametrize("sizes", [(6,), (2, 4, 1, 3, 2)])
def test_resume_is_bit_equal(sizes):
    assert_resumes(lambda: MixStyle(double_network(0.1), len(sizes), p=0.7), "sam", sizes=sizes)


@pytest.mark.parametrize(("model", "side"), [("vit_tiny_patch16_224", 32), ("swin_tiny_patch4_window7_224", 224)])
def test_what_has_no_feature_maps_is_refused(model, side):
    network = build_network(model, (3, side, side), 3, dropout=0.0, seed=0)
    with pytest.raises(ValueError, match=r"MixStyle mixes statistics of feature maps .* has none"):
        MixStyle(network, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 1.1}, r"Invalid p value: 1.1; it must be in \[0, 1\]"),
        ({"alpha": 0.0}, "Invalid alpha value: 0.0; it must be above 0"),
        ({"alpha": float("nan")}, "Invalid alpha value: nan"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MixStyle(double_network(), 2, **options)


def test_it_is_registered_with_its_defaults():
    assert ALGORITHMS["mixstyle"] is MixStyle
    registered, constructed = defaults(MixStyle)
    assert registered == constructed == {"p": 0.5, "alpha": 0.1}
