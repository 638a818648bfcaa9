"""DomainBed's networks of small images, against transcriptions that use torch's functions and their weights alone."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, batch_norm, conv2d, cross_entropy, group_norm, relu

from shiftproof.algorithms.stages import find_stages
from shiftproof.models import Normalisation, blocks, build_network

SIDES = {"mnist_cnn": 28, "wide_resnet_16_2": 32}


def build(model, channels=3, side=None):
    side = side or SIDES[model]
    return build_network(model, (channels, side, side), 5, dropout=0.0, seed=1).double()


def mnist_cnn(state, images, training):
    maps = images
    for number, stride in ((0, 1), (3, 2), (6, 1), (9, 1)):
        maps = relu(conv2d(maps, state[f"{number}.weight"], state[f"{number}.bias"], stride, 1))
        maps = group_norm(maps, 8, state[f"{number + 2}.weight"], state[f"{number + 2}.bias"])
    return maps.sum((2, 3)) / (maps.shape[2] * maps.shape[3])


def wide_resnet_16_2(state, images, training):
    def norm(name, maps):
        statistics = None, None
        if not training:
            statistics = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return relu(batch_norm(maps, *statistics, state[f"{name}.weight"], state[f"{name}.bias"], training))

    def conv(name, maps, stride=1, padding=1):
        return conv2d(maps, state[f"{name}.weight"], state[f"{name}.bias"], stride, padding)

    maps = conv("stem", images)
    for group, stride in (("group1", 1), ("group2", 2), ("group3", 2)):
        first = conv(f"{group}.0.residual.2", norm(f"{group}.0.residual.0", maps))
        first = conv(f"{group}.0.residual.5", norm(f"{group}.0.residual.3", first), stride)
        maps = first + conv(f"{group}.0.shortcut", maps, stride, 0)
        second = conv(f"{group}.1.residual.2", norm(f"{group}.1.residual.0", maps))
        maps = maps + conv(f"{group}.1.residual.5", norm(f"{group}.1.residual.3", second))
    return avg_pool2d(norm("norm", maps), 8).flatten(1)


TRANSCRIPTIONS = {"mnist_cnn": mnist_cnn, "wide_resnet_16_2": wide_resnet_16_2}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("model", SIDES)
def test_features_and_gradients_are_those_of_the_published_network(model, training):
    network = build(model)
    for name, parameter in network.featurizer.named_parameters():  # norms that do something
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5 if name.endswith("weight") else -0.5, 1.0)
    images, labels = torch.rand(4, 3, SIDES[model], SIDES[model], dtype=torch.float64), torch.tensor([0, 1, 2, 4])
    with torch.no_grad():
        network.featurizer(2 * images)  # running statistics that are not those of a start
    network.train(training)
    state = {
        name: value.detach().clone().requires_grad_("running" not in name and value.is_floating_point())
        for name, value in network.featurizer.state_dict().items()
    }
    features = TRANSCRIPTIONS[model](state, images, training)
    found = network.featurizer(images)
    torch.testing.assert_close(found, features, rtol=1e-10, atol=1e-12)
    assert found.shape == (4, 128)

    weight, bias = network.classifier.weight, network.classifier.bias
    cross_entropy(features @ weight.detach().T + bias.detach(), labels).backward()
    cross_entropy(network(images), labels).backward()
    for name, parameter in network.featurizer.named_parameters():
        torch.testing.assert_close(parameter.grad, state[name].grad, rtol=1e-8, atol=1e-12)


def conv_size(side, inputs, outputs):
    return side * side * inputs * outputs + outputs


def block_size(inputs, outputs):
    shortcut = 0 if inputs == outputs else conv_size(1, inputs, outputs)
    return 2 * inputs + conv_size(3, inputs, outputs) + 2 * outputs + conv_size(3, outputs, outputs) + shortcut


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_number_of_parameters_is_that_of_the_layers(channels):
    layers = conv_size(3, channels, 64) + conv_size(3, 64, 128) + 2 * conv_size(3, 128, 128)
    widths = ((16, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128))
    expected = {
        "mnist_cnn": layers + 2 * (64 + 3 * 128),
        "wide_resnet_16_2": conv_size(3, channels, 16) + sum(block_size(*width) for width in widths) + 2 * 128,
    }
    for model, count in expected.items():
        network = build(model, channels)
        assert sum(p.numel() for p in network.featurizer.parameters()) == count
        assert network.feature_size == 128
    assert expected["mnist_cnn"] == 369_984 + 576 * channels
    assert expected["wide_resnet_16_2"] == 691_088 + 144 * channels


def test_the_last_batch_norm_alone_follows_the_batches_by_nine_tenths():
    network = build("wide_resnet_16_2")
    norms = {name: part for name, part in network.featurizer.named_modules() if isinstance(part, nn.BatchNorm2d)}
    inputs = {}
    for name, norm in norms.items():
        norm.register_forward_pre_hook(lambda module, given, name=name: inputs.update({name: given[0].detach()}))
    network(torch.rand(4, 3, 32, 32, dtype=torch.float64))
    assert len(norms) == 13
    for name, norm in norms.items():
        share = 0.9 if name == "norm" else 0.1
        torch.testing.assert_close(norm.running_mean, share * inputs[name].mean((0, 2, 3)))
        variance = inputs[name].transpose(0, 1).flatten(1).var(1)
        torch.testing.assert_close(norm.running_var, 1 - share + share * variance)


@pytest.mark.parametrize("model", SIDES)
def test_it_starts_as_torch_starts_its_layers(model):
    network = build(model)
    for part in network.featurizer.modules():
        if isinstance(part, nn.Conv2d):
            bound = 1 / math.sqrt(part.weight[0].numel())
            assert 0.9 * bound < part.weight.abs().max() <= bound
            assert part.weight.var().item() == pytest.approx(bound**2 / 3, rel=0.2)
            assert 0 < part.bias.abs().max() <= bound
        elif isinstance(part, nn.BatchNorm2d | nn.GroupNorm):
            assert (part.weight == 1).all()
            assert (part.bias == 0).all()


@pytest.mark.parametrize("model", SIDES)
def test_pixels_stay_as_they_are(model):
    for channels in (1, 2, 3):
        normalisation = build(model, channels).normalisation
        assert normalisation == Normalisation((0.0,) * channels, (1.0,) * channels)
        assert Normalisation.parse(str(normalisation), channels) == normalisation
        pixels = torch.rand(2, channels, 4, 4)
        assert normalisation(pixels).equal(pixels)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("mnist_cnn", {"2": (64, 28), "5": (128, 14), "8": (128, 14), "11": (128, 14)}),
        ("wide_resnet_16_2", {"stem": (16, 32), "group1": (32, 32), "group2": (64, 16), "relu": (128, 8)}),
    ],
)
def test_its_stages_are_its_layers_or_groups(model, expected):
    network, sides = build(model), {}
    stages = find_stages(network)
    for stage in stages:
        network.featurizer.get_submodule(stage.name).register_forward_hook(
            lambda module, given, output, name=stage.name: sides.update({name: output.shape[-1]})
        )
    network(torch.rand(1, 3, SIDES[model], SIDES[model], dtype=torch.float64).expand(2, -1, -1, -1))
    assert {stage.name: (stage.channels, sides[stage.name]) for stage in stages} == expected
    assert len(blocks(network.featurizer)) == {"mnist_cnn": 4, "wide_resnet_16_2": 7}[model]


@pytest.mark.parametrize("model", SIDES)
@pytest.mark.parametrize("side", [8, 30, 64])
def test_images_of_another_size_give_the_mean_over_all_pixels(model, side):
    network = build(model, 1, side)
    last = find_stages(network)[-1].name
    maps = []
    network.featurizer.get_submodule(last).register_forward_hook(lambda module, given, output: maps.append(output))
    features = network.featurizer(torch.rand(2, 1, side, side, dtype=torch.float64))
    assert features.shape == (2, 128)
    torch.testing.assert_close(features, adaptive_avg_pool2d(maps[0], 1).flatten(1))
