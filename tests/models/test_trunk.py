"""A network in two parts: together they are the network, at whichever block it is cut."""

import copy

import pytest
import torch
from torch import nn

from shiftproof.models import build_network, cut, freeze_all_but
from shiftproof.models.blocks import blocks
from shiftproof.models.network import Network

SIZES = {  # of residual networks, of mobile ones, and of transformers: plain, of windows, with rotary embeddings
    "small_lenet": 32,
    "squeezenet1_1": 64,
    "test_resnet": 64,
    "test_efficientnet": 64,
    "test_convnext": 64,
    "test_vit": 32,
    "test_vit4": 32,
    "swin_tiny_patch4_window7_224": 56,
    "vit_small_patch16_dinov3": 32,
    "eva02_tiny_patch14_224": 28,
}


def _network(name, size):
    return build_network(name, (3, size, size), 3, dropout=0.0, seed=0)


def _pictures(size, number=3):
    return torch.rand(number, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_the_parts_are_the_network(name, size):
    pictures = _pictures(size)
    count = len(blocks(_network(name, size).featurizer))
    assert count > 3
    for trained in ("head", "blocks:1", f"blocks:{count // 2}"):
        network = _network(name, size)
        freeze_all_but(network, trained)
        parts = cut(network)
        network.eval()
        parts.rest.eval()
        outputs = parts.trunk(pictures)
        assert tuple(outputs.shape[1:]) == parts.shape
        torch.testing.assert_close(parts.rest(outputs), network(pictures), rtol=0, atol=0)
        trains = {id(p) for p in network.parameters() if p.requires_grad}
        assert {id(p) for p in parts.rest.parameters() if p.requires_grad} == trains  # shared, not copied
        frozen = {id(p) for p in parts.trunk._featurizer.get_submodule(parts.trunk.names[0]).parameters()}
        assert not frozen & {id(p) for p in parts.rest.parameters()}


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_gradients_are_the_network_s(name):
    found = []
    for whole in (True, False):
        network = _network(name, 64 if name == "test_resnet" else 32)
        freeze_all_but(network, "blocks:2")
        parts = cut(network)
        pictures = _pictures(parts.network.image_shape[-1])
        outputs = network.eval()(pictures) if whole else parts.rest.eval()(parts.trunk(pictures))
        outputs.square().sum().backward()
        found.append([p.grad for p in network.parameters() if p.requires_grad])
    assert all(gradient.abs().max() > 0 for gradient in found[0][-2:])
    for expected, gradient in zip(*found, strict=True):
        torch.testing.assert_close(gradient, expected)


def test_a_copy_of_the_rest_takes_its_own_outputs():
    network = _network("test_vit", 32)
    freeze_all_but(network, "blocks:1")
    parts = cut(network)
    outputs = parts.trunk(_pictures(32))
    copied = copy.deepcopy(parts.rest).eval()
    expected = parts.rest.eval()(outputs)
    for parameter in copied.classifier.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(copied(outputs), torch.zeros(3, 3))
    torch.testing.assert_close(parts.rest(outputs), expected, rtol=0, atol=0)


def test_a_copy_of_the_rest_holds_nothing_of_the_trunk():
    network = _network("test_vit", 32)
    freeze_all_but(network, "blocks.1")
    rest = copy.deepcopy(cut(network).rest)
    assert rest.frozen
    assert set(rest.frozen) <= set(rest.modules())
    rest.train()
    assert [block.training for block in rest.featurizer.blocks[1:3]] == [True, False]  # frozen, behind what is trained


def test_it_is_left_in_the_mode_that_it_had():
    network = _network("test_resnet", 64)
    freeze_all_but(network, "blocks:1")
    for mode in (True, False):
        network.train(mode)
        parts = cut(network)
        assert network.training is parts.rest.training is mode


class _Bypassed(nn.Module):
    """Its last layer reads the first one's output too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, pictures):
        first = self.first(pictures)
        return self.last(self.second(first) + first).mean((2, 3))


@pytest.mark.parametrize(("trained", "behind"), [("last", "second"), ("second", None)])
def test_what_reads_more_than_the_trunk_s_outputs_is_refused(trained, behind):
    torch.manual_seed(0)
    network = Network(_Bypassed(), 3, 2, None, image_shape=(3, 8, 8))
    freeze_all_but(network, trained)
    if behind:
        with pytest.raises(ValueError, match=f"what follows {behind} reads more than its outputs"):
            cut(network)
    else:  # behind the first layer everything reads that one
        assert cut(network).trunk.names == ("first",)


def test_a_trained_parameter_of_no_part_is_refused():
    network = _network("test_vit", 32)
    freeze_all_but(network, "pos_embed")
    with pytest.raises(ValueError, match="pos_embed, which belongs to none of its parts, is trained"):
        cut(network)
