"""What is trained of a network, and that everything else stays as it is."""

import pytest
import torch
from torch import nn

from shiftproof.base.field_error import FieldError
from shiftproof.models import blocks, build_network, freeze_all_but


def _network(model="resnet18", side=64, dropout=0.0):
    return build_network(model, (3, side, side), 7, dropout=dropout, seed=0, freeze_batch_norm=False)


@pytest.mark.parametrize(
    ("model", "number", "first", "last"),
    [
        ("squeezenet1_1", 9, ("features.0", "features.1", "features.2"), ("features.12", "pool", "flatten")),
        ("resnet18", 9, ("conv1", "bn1", "relu", "maxpool"), ("layer4.1", "avgpool", "fc")),
        (
            "tf_efficientnet_lite0",
            17,
            ("conv_stem", "bn1"),
            ("blocks.6.0", "conv_head", "bn2", "global_pool", "classifier"),
        ),
        ("small_lenet", 4, ("0", "1", "2"), ("11", "12", "13")),
        ("vit_tiny_patch16_224", 13, ("patch_embed", "pos_drop", "patch_drop", "norm_pre"), None),
    ],
)
def test_blocks(model, number, first, last):
    found = blocks(_network(model, 224 if model.startswith("vit") else 64).featurizer)
    assert len(found) == number
    assert found[0].parts == first
    assert last is None or found[-1].parts == last


def _trained(network):
    return {name.split(".weight")[0].split(".bias")[0] for name, p in network.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("trained", "names"),
    [
        ("head", set()),
        ("blocks:1", {f"layer4.1.{part}" for part in ("conv1", "bn1", "conv2", "bn2")}),
        ("layer4.1", {f"layer4.1.{part}" for part in ("conv1", "bn1", "conv2", "bn2")}),
        ("layer4.1.conv?", {"layer4.1.conv1", "layer4.1.conv2"}),
        ("layer1.*.bn1", {"layer1.0.bn1", "layer1.1.bn1"}),
    ],
)
def test_what_is_trained_and_which_statistics_move(trained, names):
    network = _network()
    freeze_all_but(network, trained)
    assert _trained(network) == {"classifier"} | {f"featurizer.{name}" for name in names}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    for mode in (False, True):  # evaluating in between changes nothing of it
        network.train(mode)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    pictures = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    nn.functional.cross_entropy(network(pictures), torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()
    moved = {
        name.rpartition(".")[0].removeprefix("featurizer.")
        for name, value in network.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert moved == names | {"classifier"}


def test_frozen_parts_are_in_evaluation_mode_and_the_others_drop():
    network = build_network("vit_tiny_patch16_224", (3, 224, 224), 3, dropout=0.5, seed=0)
    freeze_all_but(network, "blocks:1")
    network.train()
    training = {name for name, module in network.featurizer.named_modules() if module.training}
    assert training
    assert all(
        name == "" or name.startswith(("blocks.11", "norm", "fc_norm", "head")) or name == "blocks" for name in training
    )
    assert network.dropout.training
    freeze_all_but(network, "head")
    network.train()
    assert not any(module.training for module in network.featurizer.modules())


@pytest.mark.parametrize(
    ("trained", "message"),
    [
        ("blocks:0", "blocks must be a whole number above 0, as in blocks:1, not '0'"),
        ("blocks:x", "blocks must be a whole number above 0, as in blocks:1, not 'x'"),
        ("blocks:10", "there are not 10 blocks. Its blocks are conv1, layer1.0, layer1.1"),
        ("blocks:9", "blocks:9 is the whole network: train all"),
        ("*", r"\* is the whole network: train all"),
        ("layer5.1", r"no module or parameter is called layer5.1. Did you mean .*layer4.1"),
        ("", "what to train must be all, head, blocks:N or a pattern of names, not nothing"),
    ],
)
def test_what_cannot_be_trained(trained, message):
    with pytest.raises(FieldError, match=message):
        freeze_all_but(_network(), trained)


def test_a_model_without_weights_of_its_own_has_no_head_apart():
    network = build_network("linear", (9,), 3, dropout=0.0, seed=0)
    with pytest.raises(FieldError, match="head is the whole network: train all"):
        freeze_all_but(network, "head")
