import copy

import pytest
import torch
from torch import nn

from shiftproof.models import Network, Normalisation


def network(featurizer: nn.Module, features: int, **arguments: object) -> Network:
    torch.manual_seed(0)
    return Network(featurizer, features, 2, Normalisation((0.5,), (0.5,)), **arguments)


def test_normalisation_is_per_channel() -> None:
    pixels = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    normalised = Normalisation((0.5, 0.25), (0.25, 0.5))(pixels)
    assert normalised.flatten().tolist() == [-2.0, 1.5]


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_dropout_must_be_a_probability_below_one(dropout: float) -> None:
    with pytest.raises(ValueError, match="dropout"):
        network(nn.Identity(), 3, dropout=dropout)


def test_dropout_acts_in_training_only() -> None:
    net = network(nn.Identity(), 100, dropout=0.5)
    features = torch.ones(1, 100)
    assert not net(features).equal(net(features))
    net.eval()
    assert net(features).equal(net.classifier(features))


def statistics(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.named_buffers()}


def batch_norm_nets() -> list[tuple[str, nn.Module]]:
    from timm.layers import BatchNormAct2d

    return [
        ("plain", nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4))),
        ("timm", nn.Sequential(nn.Conv2d(1, 4, 1), BatchNormAct2d(4))),
        ("sync", nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4)))),
        ("nested", nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 1), nn.Sequential(nn.BatchNorm2d(4))))),
    ]


@pytest.mark.parametrize("kind", ["plain", "timm", "sync", "nested"])
def test_frozen_batch_norm_keeps_its_statistics_and_trains_its_affine_parameters(kind: str) -> None:
    featurizer = nn.Sequential(dict(batch_norm_nets())[kind], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = network(featurizer, 4, freeze_batch_norm=True)
    before = statistics(net)
    images = 3 + torch.randn(8, 1, 4, 4)
    for mode in (None, "train", "eval and train"):  # as built, and after each way of setting the mode
        if mode == "train":
            net.train()
        elif mode:
            net.eval().train()
        logits = net(images)
        assert net.training
        assert all(value.equal(before[name]) for name, value in net.named_buffers())
    logits.square().sum().backward()
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 1
    assert norms[0].weight.grad.abs().sum() > 0
    assert norms[0].bias.grad.abs().sum() > 0
    assert logits.equal(net.eval()(images))


def test_batch_norm_that_is_not_frozen_follows_the_batches() -> None:
    featurizer = nn.Sequential(nn.BatchNorm2d(1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = network(featurizer, 1)
    net(3 + torch.randn(8, 1, 4, 4))
    assert featurizer[0].running_mean.item() == pytest.approx(0.3, abs=0.1)


def test_freezing_spares_the_dropout_inside_timms_batch_norm() -> None:
    from timm.layers import BatchNormAct2d

    norm = BatchNormAct2d(1, drop_layer=nn.Dropout)
    net = network(nn.Sequential(norm, nn.Flatten()), 1, freeze_batch_norm=True)
    assert not norm.training
    assert norm.drop.training
    assert net.train(False) is net
    assert not norm.drop.training


def test_train_returns_the_network_and_copies_stay_frozen() -> None:
    net = network(nn.Sequential(nn.BatchNorm2d(1), nn.Flatten()), 1, freeze_batch_norm=True)
    assert net.train() is net
    twin = copy.deepcopy(net).train()
    assert twin.training
    assert not twin.featurizer[0].training
