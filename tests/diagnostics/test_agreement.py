"""Cosines of domain gradients against NumPy in float64, and that measuring them leaves no trace."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shiftproof.annealing import domain_similarities
from shiftproof.diagnostics.agreement import GradientAgreement, agreement_of, gradient_agreement


class _Network(nn.Module):
    """Layers of every sort: nested, normalised, dropped out, frozen, unused, and a parameter of the model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5))
        self.head = nn.Linear(8, 3)
        self.frozen = nn.Linear(3, 3)
        self.frozen.requires_grad_(False)
        self.unused = nn.Linear(2, 2)
        self.shift = nn.Parameter(torch.zeros(3))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.frozen(self.head(self.body(inputs)) + self.shift)


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = _Network().double()
        network.train()
        network(torch.randn(64, 5, dtype=torch.float64))  # statistics that are not those of the start
    network.body[1].eval()
    return network


def _batches(domains=3, dtype=torch.float64):
    random = torch.Generator().manual_seed(1)
    draw = [torch.randn(20, 5, generator=random, dtype=dtype) + shift for shift in range(domains)]
    return [(inputs, torch.randint(3, (20,), generator=random)) for inputs in draw]


def _reference(model, batches):
    """The domains' gradients by name, from plain backward passes of an own copy in evaluation mode."""
    copied = _Network().double()
    copied.load_state_dict(model.state_dict())
    copied.eval()
    gradients = []
    for inputs, targets in batches:
        copied.zero_grad()
        F.cross_entropy(copied(inputs), targets).backward()
        gradients.append(
            {n: p.grad.flatten().numpy().copy() for n, p in copied.named_parameters() if p.grad is not None}
        )
    return gradients


def _cosine(a, b):
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def test_cosines_equal_numpys(model):
    batches = _batches()
    gradients = _reference(model, batches)
    found = gradient_agreement(model, F.cross_entropy, batches)
    layers = {
        "shift": ["shift"],
        "body.0": ["body.0.weight", "body.0.bias"],
        "body.1": ["body.1.weight", "body.1.bias"],
        "head": ["head.weight", "head.bias"],
    }
    assert list(found.layers) == ["shift", "body.0", "body.1", "head", "unused"]
    pairs = list(combinations(range(3), 2))
    for measured, names in [
        *((found.layers[k], v) for k, v in layers.items()),
        (found.overall, [name for layer in layers.values() for name in layer]),
    ]:
        flat = [np.concatenate([g[name] for name in names]) for g in gradients]
        expected = {(i, j): _cosine(flat[i], flat[j]) for i, j in pairs}
        assert measured.pairs == pytest.approx(expected, abs=1e-12)
        assert measured.least == pytest.approx(min(expected.values()), abs=1e-12)
        assert measured.mean == pytest.approx(sum(expected.values()) / 3, abs=1e-12)
    assert (found.least, found.mean) == (found.overall.least, found.overall.mean)
    assert set(found.layers["unused"].pairs) == set(pairs)
    assert all(math.isnan(v) for v in (*found.layers["unused"].pairs.values(), found.layers["unused"].mean))


def test_it_agrees_with_the_annealers_similarity(model):
    batches = _batches(4)
    found = gradient_agreement(model, F.cross_entropy, batches)
    model.eval()
    losses = [lambda x=x, y=y: F.cross_entropy(model(x), y) for x, y in batches]
    assert (found.least, found.mean) == pytest.approx(domain_similarities(model.parameters(), losses), abs=1e-12)


def test_measuring_leaves_no_trace(model):
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.25)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    assert len(set(modes)) == 2  # some module is in each
    generator = torch.get_rng_state()
    gradient_agreement(model, F.cross_entropy, _batches())
    assert torch.equal(torch.get_rng_state(), generator)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all((p.grad == 0.25).all() for p in model.parameters())


def test_modes_are_restored_after_an_error(model):
    modes = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError):
        gradient_agreement(model, F.cross_entropy, [(torch.zeros(2, 99).double(), torch.zeros(2).long())] * 2)
    assert [module.training for module in model.modules()] == modes


def test_equal_and_opposite_domains():
    names = ["a.weight", "a.bias", "b.weight"]
    g = [torch.tensor([3.0, 4.0]), torch.tensor([1.0]), torch.tensor([[2.0]])]
    opposite = [-2 * g[0], -2 * g[1], g[2]]
    found = agreement_of(names, [g, [5 * part for part in g], opposite])
    assert found.layers["a"].pairs == pytest.approx({(0, 1): 1, (0, 2): -1, (1, 2): -1})
    assert found.layers["b"].pairs == pytest.approx({(0, 1): 1, (0, 2): 1, (1, 2): 1})
    overall = (-2 * 26 + 4) / math.sqrt(30 * (4 * 26 + 4))
    assert found.overall.pairs == pytest.approx({(0, 1): 1, (0, 2): overall, (1, 2): overall}, abs=1e-6)


def test_a_missing_gradient_is_one_of_zeros():
    first, second = [torch.tensor([3.0]), torch.tensor([4.0])], [torch.tensor([1.0]), None]
    assert agreement_of(["a.w", "a.b"], [first, second]).least == pytest.approx(0.6)


@pytest.mark.parametrize("nothing", [torch.zeros(2), None, torch.tensor([math.nan, 1.0])])
def test_a_gradient_that_points_nowhere_has_no_cosine_and_does_not_count(nothing):
    gradients = [[torch.tensor([1.0, 0.0])], [nothing], [torch.tensor([3.0, 4.0])]]
    found = agreement_of(["a.weight"], gradients).overall
    assert math.isnan(found.pairs[0, 1])
    assert math.isnan(found.pairs[1, 2])
    assert found.least == found.mean == pytest.approx(0.6)


def test_tiny_gradients_have_a_direction():
    tiny = [[torch.tensor([1e-15, 0.0])], [torch.tensor([3e-15, 4e-15])]]
    assert agreement_of(["a"], tiny).least == pytest.approx(0.6)


def test_what_cannot_be_compared_is_refused(model):
    with pytest.raises(ValueError, match="at least two, not 1"):
        gradient_agreement(model, F.cross_entropy, _batches(1))
    with pytest.raises(ValueError, match="at least two, not 1"):
        agreement_of(["a"], [[torch.ones(1)]])
    with pytest.raises(ValueError, match="domain 1 has 2 gradients for 1 parameters"):
        agreement_of(["a"], [[torch.ones(1)], [torch.ones(1)] * 2])
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        gradient_agreement(model.requires_grad_(False), F.cross_entropy, _batches())


def test_rows_and_figure_show_every_layer(model):
    pytest.importorskip("matplotlib")
    found = gradient_agreement(model, F.cross_entropy, _batches())
    rows = found.rows()
    assert len(rows) == 3 * (1 + len(found.layers))
    assert ("head", 0, 2, found.layers["head"].pairs[0, 2]) in rows
    assert len(GradientAgreement.HEADER) == len(rows[0])
    axes = found.plot().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["all layers", *found.layers]
    dots = {line.get_label(): line.get_xdata() for line in axes.lines}
    np.testing.assert_array_equal(dots["least pair"], [found.least, *(c.least for c in found.layers.values())])
    np.testing.assert_array_equal(dots["mean of the pairs"], [found.mean, *(c.mean for c in found.layers.values())])
