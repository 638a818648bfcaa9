import pytest
import torch
from torch import nn

from shiftproof.algorithms.stages import Stage, StageOutputs, find_stages
from shiftproof.models import Network, Normalisation, build_network


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        ("small_conv", (1, 16, 16), {"2": 16, "8": 64}),
        (
            "squeezenet1_1",
            (3, 64, 64),
            {"features.1": 64, "features.4": 128, "features.7": 256, "features.12": 512},
        ),
        ("resnet18", (3, 64, 96), {"maxpool": 64, "layer1.1": 64, "layer2.1": 128, "layer3.1": 256, "layer4.1": 512}),
        ("densenet121", (3, 64, 64), None),
    ],
)
def test_a_stage_of_a_convolutional_network_ends_with_its_resolution(model, shape, expected):
    network = build_network(model, shape, 3, dropout=0.0, seed=0)
    stages = find_stages(network)
    if expected is not None:
        assert {stage.name: stage.channels for stage in stages} == expected
    outputs = StageOutputs(network.featurizer, stages)
    with outputs.recorded() as maps:
        network(torch.randn(2, *shape))
    sizes = [tuple(z.shape[2:]) for z in maps]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes) - (model == "resnet18")  # the stem's pooling belongs to it
    assert [z.shape[1] for z in maps] == [stage.channels for stage in stages]
    assert all(stage.channel_dim == 1 for stage in stages)


def test_a_vision_transformer_has_a_stem_and_quarters():
    stages = find_stages(build_network("vit_tiny_patch16_224", (3, 32, 32), 3, dropout=0.0, seed=0))
    assert [stage.name for stage in stages] == ["patch_embed", "blocks.2", "blocks.5", "blocks.8", "blocks.11"]
    assert all(stage[1:] == (192, -1) for stage in stages)


@pytest.mark.parametrize("model", ["resnet50", "resnet50.a1_in1k", "resnet18.a1_in1k"])
def test_residual_networks_have_the_stages_of_miros_authors(model):
    """The stem with its max-pool, and the four layers: theirs, whichever library builds the network."""
    network = build_network(model, (3, 64, 64), 3, dropout=0.0, seed=0)
    outputs = StageOutputs(network.featurizer, find_stages(network))
    expected = []
    for name in ("maxpool", "layer1", "layer2", "layer3", "layer4"):
        network.featurizer.get_submodule(name).register_forward_hook(lambda module, inputs, z: expected.append(z))
    with outputs.recorded() as maps, torch.no_grad():
        network.eval()(torch.randn(1, 3, 64, 64))
    assert len(maps) == len(expected) == 5
    assert all(torch.equal(*pair) for pair in zip(maps, expected, strict=True))


@pytest.mark.parametrize(("model", "stem"), [("resnetblur18", "maxpool.1"), ("resnetrs50", "maxpool.2")])
def test_a_stem_ends_before_the_first_layer_whatever_its_pooling_is(model, stem):
    network = build_network(model, (3, 64, 64), 3, dropout=0.0, seed=0)
    assert find_stages(network)[0].name == stem


def test_the_stem_of_a_vision_transformer_is_its_patch_convolution():
    network = build_network("vit_tiny_patch16_224", (3, 32, 32), 3, dropout=0.0, seed=0)
    outputs, images = StageOutputs(network.featurizer, find_stages(network)), torch.randn(2, 3, 32, 32)
    with outputs.recorded() as tokens, torch.no_grad():
        network.eval()(images)
        expected = network.featurizer.patch_embed.proj(images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens[0], expected)


def test_maps_with_channels_last_are_told_apart():
    stages = find_stages(build_network("swin_tiny_patch4_window7_224", (3, 224, 224), 3, dropout=0.0, seed=0))
    assert [(stage.channels, stage.channel_dim) for stage in stages] == [(96, -1), (192, -1), (384, -1), (768, -1)]


def test_the_search_changes_nothing_and_parts_that_run_twice_are_no_stages():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.act, self.second = nn.ReLU(), nn.Conv2d(4, 8, 3, 2, padding=1)

        def forward(self, images):
            return self.act(self.second(self.act(self.norm(self.first(images))))).mean((2, 3))

    module = Twice()
    network = Network(module, 8, 2, Normalisation((0.5,), (0.5,)), image_shape=(1, 8, 8))
    module.norm.eval()
    modes = [m.training for m in network.modules()]
    statistics = module.norm.running_mean.clone()
    assert find_stages(network) == [Stage("norm", 4, 1), Stage("second", 8, 1)]
    assert [m.training for m in network.modules()] == modes
    assert torch.equal(module.norm.running_mean, statistics)
    assert not any(m._forward_hooks for m in network.modules())
    network.image_shape = None
    with pytest.raises(ValueError, match="the network has no image_shape"):
        find_stages(network)


def test_outputs_are_recorded_only_where_it_is_asked_for():
    network = build_network("small_conv", (1, 16, 16), 3, dropout=0.0, seed=0)
    outputs = StageOutputs(network.featurizer, find_stages(network))
    network(torch.randn(2, 1, 16, 16))
    with outputs.recorded() as maps:
        network(torch.randn(2, 1, 16, 16))
    network(torch.randn(2, 1, 16, 16))
    assert [tuple(z.shape) for z in maps] == [(2, 16, 8, 8), (2, 64, 4, 4)]
