"""Algorithms whose published code passes the domains through the network one by one."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from algorithms.made_up_batches import defaults
from shiftproof.algorithms import ALGORITHMS
from shiftproof.base.hparams import REFERENCE_DIALECTS
from shiftproof.models import Network, Normalisation
from shiftproof.protocol.settings import search_space, setting

SEPARATE = [name for name in ALGORITHMS if "separate_passes" in ALGORITHMS[name].hparams]


def _network():
    torch.manual_seed(0)
    featurizer = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(3), nn.Flatten())
    return Network(featurizer, 16, 3, Normalisation((0.5,), (0.5,)), image_shape=(1, 16, 16)).double()


def _batches(sizes=(4, 6, 5)):
    torch.manual_seed(1)
    return [
        (n**0.5 * torch.randn(n, 1, 16, 16, dtype=torch.float64) + i, torch.arange(n) % 3) for i, n in enumerate(sizes)
    ]


def _by_domain(featurizer, images):
    """Batch norm written out: mean and biased variance of this domain's batch."""
    conv, norm, *rest = featurizer
    z = conv(images)
    mean, variance = z.mean((0, 2, 3), keepdim=True), z.var((0, 2, 3), correction=0, keepdim=True)
    z = (z - mean) / (variance + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    return nn.Sequential(*rest)(z)


def test_they_are_those_of_domainbed():
    assert set(SEPARATE) == {"groupdro", "mixup", "mmd", "coral", "mtl", "causirl_coral", "causirl_mmd", "eqrm"}
    for name in SEPARATE:
        registered, constructed = defaults(ALGORITHMS[name])
        assert registered == constructed
        space = search_space("PACS", "photographs", True, name, "adam", "none", "short")
        assert "algorithm.separate_passes" not in setting(space, {}, 0, 0)
        for dialect in REFERENCE_DIALECTS:
            assert setting(space, {}, 0, 0, dialect)["algorithm.separate_passes"] is True


@pytest.mark.parametrize("name", [name for name in SEPARATE if name != "mixup"])
def test_batch_norms_see_one_domain_at_a_time(name):
    network, batches = _network(), _batches()
    algorithm = ALGORITHMS[name](copy.deepcopy(network), 3, separate_passes=True).double()
    seen = []
    if name in ("groupdro", "eqrm"):
        algorithm.network.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
        expected = [network.classifier(_by_domain(network.featurizer, images)) for images, _ in batches]
    else:
        algorithm.network.featurizer.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
        expected = [_by_domain(network.featurizer, images) for images, _ in batches]
    algorithm.objective(batches)
    torch.testing.assert_close(torch.cat(seen), torch.cat(expected), rtol=1e-10, atol=1e-12)
    statistics = nn.BatchNorm2d(4).double()
    for images, _ in batches:  # in their order
        statistics(network.featurizer[0](images))
    norm = algorithm.network.featurizer[1]
    torch.testing.assert_close(norm.running_mean, statistics.running_mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(norm.running_var, statistics.running_var, rtol=1e-10, atol=1e-12)


def test_mixup_passes_every_pair_on_its_own():
    network, batches = _network(), _batches((4, 4))
    algorithm = ALGORITHMS["mixup"](copy.deepcopy(network), 2, separate_passes=True).double()
    torch.manual_seed(5)
    loss = algorithm.objective(batches)
    torch.manual_seed(5)
    order = torch.randperm(2).tolist()
    losses = []
    for i, j in (order, order[::-1]):
        share = float(algorithm._shares.sample())
        (images, labels), (others, other_labels) = batches[i], batches[j]
        logits = network.classifier(_by_domain(network.featurizer, share * images + (1 - share) * others))
        losses.append(share * F.cross_entropy(logits, labels) + (1 - share) * F.cross_entropy(logits, other_labels))
    torch.testing.assert_close(loss, sum(losses) / 2, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", SEPARATE)
def test_frozen_batch_norms_need_no_passes_of_their_own(name):
    network, batches = _network(), _batches((4, 4))
    network.freeze_batch_norm = True
    losses, passes = [], []
    for separate in (False, True):
        algorithm = ALGORITHMS[name](copy.deepcopy(network), 2, separate_passes=separate).double().train()
        algorithm.network.featurizer.register_forward_hook(lambda *_: passes.append(1))
        torch.manual_seed(5)
        losses.append(algorithm.objective(batches))
    assert torch.equal(*losses)
    assert len(passes) == 2
