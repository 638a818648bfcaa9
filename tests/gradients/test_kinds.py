"""Complex and sparse gradients get a sentence wherever gradients are measured."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shiftproof.annealing import GGA, GGAL, domain_similarities
from shiftproof.diagnostics import (
    Recorder,
    average_increase,
    filter_normalised_directions,
    gradient_agreement,
    gradient_moments,
    hessian_trace,
    largest_eigenvalue,
    osgr_by_definition,
    osgr_of_gradients,
    worst_increase,
)

TARGETS = torch.tensor([0, 1, 2, 0, 1, 2])
COMPLEX = r"complex gradients are not supported: a parameter of shape \(4, 3\) is of complex64; freeze it"
SPARSE = (
    r"sparse gradients are not supported: "
    r"(the gradient of a parameter of shape \(9, 4\) is|the gradients of words are) sparse; build"
)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, dtype=torch.complex64))
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return (x.to(torch.complex64) @ self.weight).abs() + self.bias


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(9, 4, sparse=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.words(x).mean(1))


def _complex():
    return Complex(), [(torch.randn(6, 4), TARGETS) for _ in range(2)]


def _sparse():
    return Words(), [(torch.randint(9, (6, 5)), TARGETS) for _ in range(2)]


def _losses(model, batches):
    return [lambda x=x, y=y: F.cross_entropy(model(x), y) for x, y in batches]


def _gga(model, batches):
    GGA(candidates=2, start=1, end=1).before_step(model.parameters(), 1, _losses(model, batches))


def _ggal(model, batches):
    GGAL().edit_gradients(model.parameters(), 1, _losses(model, batches))


def _ggal_after_backward(model, batches):
    losses = _losses(model, batches)
    losses[0]().backward()
    GGAL().edit_gradients(model.parameters(), 1, losses)


def _record(*track):
    def step(model, batches):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Recorder(model, optimizer, F.cross_entropy, lambda step: batches, track=track) as recorder:
            _losses(model, batches)[0]().backward()
            optimizer.step()
        assert recorder.records

    return step


DIFFERENTIATE = {
    "GGA": _gga,
    "GGA-L": _ggal,
    "GGA-L after backward": _ggal_after_backward,
    "similarities": lambda model, batches: domain_similarities(model.parameters(), _losses(model, batches)),
    "agreement": lambda model, batches: gradient_agreement(model, F.cross_entropy, batches),
    "recorded OSGR": _record("osgr"),
    "recorded agreement": _record("agreement", "balance"),
    "OSGR": lambda model, batches: osgr_of_gradients(model, F.cross_entropy, [(batches[:1], batches[1:])]),
    "moments": lambda model, batches: gradient_moments(model, [batches], F.cross_entropy),
    "worst increase": lambda model, batches: worst_increase(model, F.cross_entropy, batches, steps=1, starts=1),
    "trace": lambda model, batches: hessian_trace(model, F.cross_entropy, batches, probes=2),
    "eigenvalue": lambda model, batches: largest_eigenvalue(model, F.cross_entropy, batches, iterations=2),
}
MEASURE_WEIGHTS = {
    "average increase": lambda model, batches: average_increase(model, F.cross_entropy, batches, draws=2),
    "directions": lambda model, batches: filter_normalised_directions(model, 0),
    "OSGR by definition": lambda model, batches: osgr_by_definition(
        model, F.cross_entropy, [(batches[:1], batches[1:])], None, 0.1
    ),
}


@pytest.mark.parametrize("name", [*DIFFERENTIATE, *MEASURE_WEIGHTS])
def test_complex_ones_are_refused_in_a_sentence_unless_frozen(name):
    model, batches = _complex()
    weights = [p.detach().clone() for p in model.parameters()]
    measure = (DIFFERENTIATE | MEASURE_WEIGHTS)[name]
    with pytest.raises(ValueError, match=COMPLEX):
        measure(model, batches)
    assert all(torch.equal(p, weight) for p, weight in zip(model.parameters(), weights, strict=True))
    model.weight.requires_grad_(False)
    if name not in ("average increase", "directions", "worst increase"):  # a bias alone has no filter
        measure(model, batches)


@pytest.mark.parametrize("name", [*DIFFERENTIATE, *MEASURE_WEIGHTS])
def test_sparse_ones_are_refused_in_a_sentence_unless_frozen_or_not_asked_for(name):
    model, batches = _sparse()
    weights = [p.detach().clone() for p in model.parameters()]
    if name in DIFFERENTIATE:
        with pytest.raises(RuntimeError, match=SPARSE):
            DIFFERENTIATE[name](model, batches)
        assert all(torch.equal(p, weight) for p, weight in zip(model.parameters(), weights, strict=True))
        model.words.requires_grad_(False)
    (DIFFERENTIATE | MEASURE_WEIGHTS)[name](model, batches)


def test_the_balance_of_either_is_recorded():
    for model, batches in (_complex(), _sparse()):
        _record("balance")(model, batches)
