import copy

import numpy as np
import pytest
import torch

from algorithms.made_up_batches import assert_resumes, defaults, uneven_batches
from draws import draw
from shiftproof.algorithms import ALGORITHMS, ERM
from shiftproof.algorithms.mixup import Mixup, OrgMixup
from shiftproof.annealing import Annealer
from shiftproof.base.randomness import seed_hash
from shiftproof.models import build_network
from shiftproof.training import StepBuilder


def _network():
    return build_network("small_conv", (1, 16, 16), 3, dropout=0.0, seed=0).double()


def _cross_entropy(logits, label):
    return logits.exp().sum().log() - logits[label]


def _share():
    alpha = torch.tensor(0.2, dtype=torch.float64)
    return torch.distributions.Beta(alpha, alpha).sample()


def test_objective_is_the_mean_over_the_pairs_of_a_ring():
    algorithm, batches = Mixup(_network(), 3), uneven_batches((3, 5, 2))
    torch.manual_seed(1)
    loss = algorithm.objective(batches)
    torch.manual_seed(1)
    ring = torch.randperm(3).tolist()
    assert len(set(ring)) == 3
    pairs = []
    for place in range(3):
        (images, labels), (others, other_labels) = batches[ring[place]], batches[ring[(place + 1) % 3]]
        share = _share()
        terms = []
        for x, y, other, other_y in zip(images, labels, others, other_labels, strict=False):  # as many as both have
            logits = algorithm.predict((share * x + (1 - share) * other)[None])[0]
            terms.append(share * _cross_entropy(logits, y) + (1 - share) * _cross_entropy(logits, other_y))
        pairs.append(sum(terms) / len(terms))
    assert sorted(len(labels) for _, labels in batches) == [2, 3, 5]
    torch.testing.assert_close(loss, sum(pairs) / 3, rtol=1e-12, atol=0)


def test_one_domain_is_mixed_within():
    algorithm, batches = Mixup(_network(), 1), uneven_batches((4,))
    torch.manual_seed(2)
    loss = algorithm.objective(batches)
    torch.manual_seed(2)
    torch.randperm(1)
    order = torch.randperm(4).tolist()
    assert order != [0, 1, 2, 3]
    share = _share()
    (images, labels), terms = batches[0], []
    for i, j in enumerate(order):
        logits = algorithm.predict((share * images[i] + (1 - share) * images[j])[None])[0]
        terms.append(share * _cross_entropy(logits, labels[i]) + (1 - share) * _cross_entropy(logits, labels[j]))
    torch.testing.assert_close(loss, sum(terms) / 4, rtol=1e-12, atol=0)


@pytest.mark.parametrize("sizes", [(3, 5, 2), (4,)])
def test_orgmixup_mixes_all_images_whatever_their_domains(sizes):
    algorithm, batches = OrgMixup(_network(), len(sizes)), uneven_batches(sizes)
    torch.manual_seed(2)
    loss = algorithm.objective(batches)
    torch.manual_seed(2)
    torch.randperm(1)
    order = torch.randperm(sum(sizes)).tolist()
    share = _share()
    images, labels = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    terms = []
    for i, j in enumerate(order):
        logits = algorithm.predict((share * images[i] + (1 - share) * images[j])[None])[0]
        terms.append(share * _cross_entropy(logits, labels[i]) + (1 - share) * _cross_entropy(logits, labels[j]))
    expected = sum(terms) / len(terms)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    parameters = list(algorithm.parameters())
    gradients = [torch.autograd.grad(value, parameters) for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-11)


def test_orgmixup_is_erm_without_mixing_and_mixup_with_one_domain(monkeypatch):
    batches = uneven_batches((4, 3))
    algorithm = OrgMixup(_network(), 2)
    monkeypatch.setattr(algorithm._shares, "sample", lambda: torch.tensor(1.0))
    expected = ERM(_network(), 2).objective(batches)
    torch.testing.assert_close(algorithm.objective(batches), expected, rtol=1e-12, atol=0)
    losses = []
    for kind in (Mixup, OrgMixup):
        torch.manual_seed(3)
        losses.append(kind(_network(), 1).objective(batches[:1]))
    assert torch.equal(*losses)


def test_orgmixup_resumes_and_is_registered_with_its_defaults():
    assert_resumes(lambda: OrgMixup(_network(), 2), "sam")
    assert ALGORITHMS["orgmixup"] is OrgMixup
    registered, constructed = defaults(OrgMixup)
    assert registered == constructed == {"alpha": 0.2}
    with pytest.raises(ValueError, match="Invalid alpha value"):
        OrgMixup(_network(), 2, alpha=0.0)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_without_mixing_it_is_erm(share, monkeypatch):
    network, batches = _network(), uneven_batches((4, 4))
    algorithm = Mixup(network, 2)
    monkeypatch.setattr(algorithm._shares, "sample", lambda: torch.tensor(share))
    torch.testing.assert_close(algorithm.objective(batches), ERM(network, 2).objective(batches), rtol=1e-12, atol=0)


def test_shares_follow_the_beta_distribution():
    torch.manual_seed(0)
    for alpha in (0.01, 0.2, 10.0):
        draws = Mixup(_network(), 2, alpha=alpha)._shares.sample((20_000,))
        assert float(draws.mean()) == pytest.approx(0.5, abs=0.01)
        assert float(draws.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


def test_a_step_draws_by_seed_and_step_alone():
    def trained(steps, start=None):
        algorithm = Mixup(_network(), 2)
        algorithm.build_optimizers(lambda params: torch.optim.Adam(params, lr=0.01))
        if start is not None:
            algorithm.load_state_dict(start[0])
            algorithm.optimizers["all"].load_state_dict(start[1])
        builder = StepBuilder(algorithm, Annealer(), seed=0)
        for step in steps:
            torch.manual_seed(step * 1000)  # must not matter
            builder.take(uneven_batches((4, 4)), step)
        return copy.deepcopy((algorithm.state_dict(), algorithm.optimizers["all"].state_dict()))

    whole, resumed = trained(range(1, 5)), trained(range(3, 5), trained(range(1, 3)))
    for name, value in whole[0].items():
        assert torch.equal(value, resumed[0][name]), name


@pytest.mark.parametrize("alpha", [0.0, 0.009, -1.0, float("inf"), float("nan")])
def test_invalid_alpha(alpha):
    with pytest.raises(ValueError, match="Invalid alpha value"):
        Mixup(_network(), 2, alpha=alpha)


def test_draws_are_those_of_domainbed():
    random = np.random.RandomState(seed_hash(seed_hash(3, 1), "mixup_alpha"))
    assert draw(Mixup.hparams, 3, 1) == {"alpha": 10 ** random.uniform(-1, 1)}
    assert draw(Mixup.hparams, 0, 1) == {"alpha": 0.2}
