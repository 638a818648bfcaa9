"""CORAL and MMD."""

import copy
import math
from itertools import combinations

import numpy as np
import pytest
import torch

from draws import draw
from shiftproof.algorithms import ERM
from shiftproof.algorithms.coral import CORAL
from shiftproof.algorithms.mmd import MMD
from shiftproof.annealing import Annealer
from shiftproof.base.randomness import seed_hash
from shiftproof.models import build_network
from shiftproof.training import StepBuilder

both = pytest.mark.parametrize("matching", [CORAL, MMD])


def _network():
    return build_network("small_conv", (1, 16, 16), 3, dropout=0.0, seed=0).double()


def _batches(*sizes):
    random = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(n, 1, 16, 16, dtype=torch.float64, generator=random) + domain,
            torch.randint(3, (n,), generator=random),
        )
        for domain, n in enumerate(sizes)
    ]


def _features(*sizes, width=4):
    random = torch.Generator().manual_seed(1)
    return [torch.randn(n, width, dtype=torch.float64, generator=random) * (i + 1) for i, n in enumerate(sizes)]


def _coral(a, b):
    a, b = a.detach().numpy(), b.detach().numpy()
    covariances = np.cov(a, rowvar=False) - np.cov(b, rowvar=False)
    return float(np.mean((a.mean(0) - b.mean(0)) ** 2) + np.mean(covariances**2))


def _mmd(a, b):
    def mean_kernel(x, y):
        total = 0.0
        for p in x.tolist():
            for q in y.tolist():
                distance = sum((u - v) ** 2 for u, v in zip(p, q, strict=True))
                total += sum(math.exp(-(10.0**power) * distance) for power in range(-3, 4))
        return total / (len(x) * len(y))

    return mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b)


@pytest.mark.parametrize(("matching", "reference"), [(CORAL, _coral), (MMD, _mmd)])
@pytest.mark.parametrize("sizes", [(3, 5), (4, 2, 3), (2, 3, 4, 2, 3)])
def test_penalty_is_the_mean_over_pairs(matching, reference, sizes):
    features = [z * 0.3 for z in _features(*sizes)]
    pairs = [reference(a, b) for a, b in combinations(features, 2)]
    penalty = matching(_network(), len(sizes)).penalty(features)
    assert float(penalty) == pytest.approx(sum(pairs) / len(pairs), rel=1e-10)


@pytest.mark.parametrize(("matching", "reference"), [(CORAL, _coral), (MMD, _mmd)])
def test_objective_and_one_update(matching, reference):
    algorithm, batches = matching(_network(), 3, penalty_weight=2.5), _batches(3, 5, 4)
    losses, features = [], []
    for images, labels in batches:
        features.append(algorithm.network.featurizer(images))
        logits = algorithm.network.classifier(features[-1])
        terms = [row.exp().sum().log() - row[label] for row, label in zip(logits, labels, strict=True)]
        losses.append(sum(terms) / len(terms))
    pairs = [reference(a, b) for a, b in combinations([z.detach() for z in features], 2)]
    expected = sum(losses) / 3 + 2.5 * sum(pairs) / 3
    torch.testing.assert_close(algorithm.objective(batches), expected, rtol=1e-10, atol=0)

    start = copy.deepcopy(algorithm)
    algorithm.build_optimizers(lambda params: torch.optim.SGD(params, lr=0.1))
    algorithm.update(batches, 1, lambda batches: lambda: algorithm.backward(batches))
    # the slope of the reference in one direction, by differences
    torch.manual_seed(0)
    along = [torch.randn_like(p) / 100 for p in start.parameters()]

    def at(distance):
        moved = copy.deepcopy(start)
        with torch.no_grad():
            for p, d in zip(moved.parameters(), along, strict=True):
                p += distance * d
            features = [moved.network.featurizer(images) for images, _ in batches]
            pairs = [reference(a, b) for a, b in combinations(features, 2)]
            losses = [
                torch.nn.functional.cross_entropy(moved.network.classifier(z), labels)
                for z, (_, labels) in zip(features, batches, strict=True)
            ]
        return float(sum(losses)) / 3 + 2.5 * sum(pairs) / 3

    slope = (at(1e-6) - at(-1e-6)) / 2e-6
    change = sum(
        ((p - before) * d).sum() for p, before, d in zip(algorithm.parameters(), start.parameters(), along, strict=True)
    )
    assert float(change.detach()) == pytest.approx(-0.1 * slope, rel=1e-5)


@both
def test_equal_domains_have_no_penalty(matching):
    (batch,) = _batches(4)
    network = _network()
    penalty = matching(network, 2).penalty([network.featurizer(batch[0])] * 2)
    assert abs(float(penalty.detach())) < 1e-12


@both
def test_without_weight_it_is_erm(matching):
    network, batches = _network(), _batches(4, 4, 4)
    loss = matching(network, 3, penalty_weight=0.0).objective(batches)
    torch.testing.assert_close(loss, ERM(network, 3).objective(batches), rtol=1e-12, atol=0)


@both
def test_one_domain_is_erm_and_says_so(matching):
    network, batches = _network(), _batches(4)
    with pytest.warns(UserWarning, match=f"with one domain {matching.__name__} is ERM"):
        algorithm = matching(network, 1)
    assert torch.equal(algorithm.objective(batches), ERM(network, 1).objective(batches))


@both
def test_batches_of_one_image_have_a_finite_gradient(matching):
    algorithm = matching(_network(), 2)
    assert algorithm.backward(_batches(1, 1)).isfinite()
    assert all(p.grad.isfinite().all() for p in algorithm.parameters())


@both
def test_the_penalty_is_at_least_float32_under_autocast(matching):
    algorithm = matching(_network().float(), 2)
    batches = [(images.float(), labels) for images, labels in _batches(8, 8)]
    dtypes = []
    penalty = algorithm.penalty

    def recorded(features):
        dtypes.append((features[0].dtype, torch.is_autocast_enabled("cpu")))
        return penalty(features)

    algorithm.penalty = recorded
    full = float(algorithm.objective(batches).detach())
    with torch.autocast("cpu", torch.bfloat16):
        half = float(algorithm.objective(batches).detach())
    assert dtypes == [(torch.float32, False)] * 2
    assert half == pytest.approx(full, rel=0.02)


def test_distances_of_far_features_are_exact():
    features = [z.float() for z in _features(5, 5)]
    near, far = (MMD(_network(), 2).penalty([z + offset for z in features]) for offset in (0.0, 128.0))
    assert float(far) == pytest.approx(float(near), rel=1e-3)


@both
def test_resumed_it_continues_bit_equal(matching):
    def build():
        algorithm = matching(_network(), 2)
        algorithm.build_optimizers(lambda params: torch.optim.Adam(params, lr=0.01))
        return StepBuilder(algorithm, Annealer(), seed=0)

    whole, again = build(), build()
    for step in (1, 2):
        whole.take(_batches(3, 4), step)
    again.algorithm.load_state_dict(copy.deepcopy(whole.algorithm.state_dict()))
    again.algorithm.optimizers["all"].load_state_dict(copy.deepcopy(whole.algorithm.optimizers["all"].state_dict()))
    for step in (3, 4):
        assert torch.equal(whole.take(_batches(3, 4), step), again.take(_batches(3, 4), step))


@both
@pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan")])
def test_invalid_penalty_weight(matching, weight):
    with pytest.raises(ValueError, match="Invalid penalty_weight value"):
        matching(_network(), 2, penalty_weight=weight)


@both
def test_draws_are_those_of_domainbed(matching):
    random = np.random.RandomState(seed_hash(seed_hash(3, 1), "mmd_gamma"))
    assert draw(matching.hparams, 3, 1) == {"penalty_weight": 10 ** random.uniform(-1, 1)}
    assert draw(matching.hparams, 0, 1) == {"penalty_weight": 1.0}


@both
def test_the_dialects_compare_features_after_dropout(matching):
    """With one mask for penalty and loss, as of a featurizer that ends in the dropout."""
    network = build_network("small_conv", (1, 16, 16), 3, dropout=0.5, seed=0).double()
    algorithm, batches = matching(network, 2, 0.7, after_dropout=True).double(), _batches(5, 4)
    seen = []
    network.dropout.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
    loss = algorithm.objective(batches)
    [dropped] = seen
    assert 0.3 < (dropped == 0).double().mean() < 0.8
    parts = dropped.split([5, 4])
    losses = [
        torch.nn.functional.cross_entropy(network.classifier(part), labels)
        for part, (_, labels) in zip(parts, batches, strict=True)
    ]
    expected = sum(losses) / 2 + 0.7 * algorithm.penalty(parts)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    assert draw(matching.hparams, 0, 0, "domainbed")["after_dropout"] is True
    assert "after_dropout" not in draw(matching.hparams, 0, 0)
