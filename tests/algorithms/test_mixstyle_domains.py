import copy
import math

import pytest
import torch
from torch.nn import functional as F

from algorithms.made_up_batches import assert_resumes, defaults, double_network, uneven_batches
from algorithms.test_mixstyle import _transcription
from shiftproof.algorithms import ALGORITHMS, ERM
from shiftproof.algorithms.mixstyle import MixStyleDomains
from shiftproof.models import build_network
from shiftproof.protocol.settings import search_space, setting


def _draws(seed, alpha, p, sizes, fixed_order=False):
    """The draws of one stage, pair by pair."""
    torch.manual_seed(seed)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    domains = [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]
    ring = list(range(len(sizes))) if fixed_order else torch.randperm(len(sizes)).tolist()
    weights, partners = [1.0] * sum(sizes), list(range(sum(sizes)))
    for place, i in enumerate(ring):
        j = ring[(place + 1) % len(ring)]
        first = domains[i][: math.ceil(sizes[i] / 2)]
        second = domains[j][math.ceil(sizes[j] / 2) :]
        mixes = torch.rand(()).item() < p
        for half, other in ((first, second), (second, first)):
            own = torch.distributions.Beta(alpha, alpha).sample((len(half),)).tolist()
            order = torch.randperm(len(other)).tolist()
            for k, image in enumerate(half):
                if mixes and other:
                    weights[image], partners[image] = own[k], other[order[k % len(other)]]
    return torch.tensor(weights).double(), partners


@pytest.mark.parametrize("sizes", [(4, 6, 3), (5, 1), (6,), (2, 4, 2, 3, 2)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_objective_and_gradient_are_the_transcription(seed, sizes):
    network, batches = double_network(), uneven_batches(sizes)
    plain = copy.deepcopy(network)
    algorithm = MixStyleDomains(network, len(sizes), p=0.6, alpha=0.4, fixed_order=seed == 2)
    images, labels = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    weights, partners = _draws(seed, 0.4, 0.6, sizes, seed == 2)
    maps = _transcription(plain.featurizer[:3](images), weights, partners)
    expected = F.cross_entropy(plain.classifier(plain.featurizer[3:](maps)), labels)
    torch.manual_seed(seed)
    loss = algorithm.objective(batches)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(value, list(n.parameters())) for value, n in ((loss, network), (expected, plain))]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("fixed_order", [False, True])
def test_every_image_is_mixed_with_another_domain(fixed_order):
    sizes = (4, 6, 2, 8)
    algorithm = MixStyleDomains(double_network(), 4, p=1.0, fixed_order=fixed_order)
    domain = torch.repeat_interleave(torch.arange(4), torch.tensor(sizes))
    met = set()
    for seed in range(60):
        torch.manual_seed(seed)
        for weights, partners in algorithm._draw(sizes):
            assert (domain[partners] != domain).all()
            assert (weights <= 1).all()
            met |= set(zip(domain.tolist(), domain[partners].tolist(), strict=True))
    neighbours = {(i, j) for i in range(4) for j in range(4) if i != j and (not fixed_order or abs(i - j) != 2)}
    assert met == neighbours


def test_each_pair_mixes_in_a_share_of_the_passes_on_its_own():
    network = build_network("squeezenet1_1", (3, 64, 64), 3, dropout=0.0, seed=0)
    algorithm = MixStyleDomains(network, 2, p=0.3, fixed_order=True)
    torch.manual_seed(0)
    mixed = []
    for _ in range(1000):
        draws = [torch.arange(8) if draw is None else draw[1] for draw in algorithm._draw([4, 4])]
        mixed.append([partners[i] != i for partners in draws for i in (0, 4)])
    mixing = torch.tensor(mixed).double()
    torch.testing.assert_close(mixing.mean(0), torch.full((6,), 0.3, dtype=torch.float64), rtol=0, atol=0.05)
    assert torch.corrcoef(mixing.T).fill_diagonal_(0).abs().max() < 0.12


def test_without_mixing_it_is_erm_bit_for_bit():
    batches = uneven_batches((4, 1, 3))
    expected = ERM(double_network(), 3).objective(batches)
    assert torch.equal(MixStyleDomains(double_network(), 3, p=0.0).objective(batches), expected)
    assert torch.equal(MixStyleDomains(double_network(), 3, p=1.0).eval().objective(batches), expected)
    assert torch.equal(
        MixStyleDomains(double_network(), 1, p=1.0).objective(uneven_batches((1,))),
        ERM(double_network(), 1).objective(uneven_batches((1,))),
    )


@pytest.mark.parametrize("sizes", [(6,), (2, 4, 1, 3, 2)])
def test_resume_is_bit_equal(sizes):
    assert_resumes(lambda: MixStyleDomains(double_network(0.1), len(sizes), p=0.7), "sam", sizes=sizes)


def test_it_is_registered_with_its_defaults_and_swad_has_a_fixed_order():
    assert ALGORITHMS["mixstyle_domains"] is MixStyleDomains
    registered, constructed = defaults(MixStyleDomains)
    assert registered == constructed == {"p": 0.5, "alpha": 0.1, "fixed_order": False}
    space = search_space("PACS", "photographs", True, "mixstyle_domains", "adam", "none", "protocol")
    orders = {
        dialect: setting(space, {}, 0, 0, dialect).get("algorithm.fixed_order") for dialect in ("domainbed", "swad")
    }
    assert orders == {"domainbed": None, "swad": True}
    with pytest.raises(ValueError, match="Invalid p value"):
        MixStyleDomains(double_network(), 2, p=2.0)
