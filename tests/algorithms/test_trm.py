import copy
import math

import pytest
import torch
from torch.nn import functional as F

from algorithms.made_up_batches import defaults
from algorithms.made_up_runs import assert_continues_bit_equal, gradients, made_up, small, steps_of
from draws import draw
from shiftproof.algorithms import ERM
from shiftproof.algorithms.trm import TRM


class _Transcription:
    """By autograd, with classifiers as modules and optimizers of their own, and full Hessians."""

    def __init__(self, network, domains, weight, eta):
        self.weight, self.eta = weight, eta
        self.heads = [copy.deepcopy(network.classifier) for _ in range(domains)]
        self.alpha = [[float(i != j) / max(domains - 1, 1) for j in range(domains)] for i in range(domains)]

    def loss(self, network, batches):
        features = [network.featurizer(images) for images, _ in batches]
        labels = [of_domain for _, of_domain in batches]
        total = F.cross_entropy(network.classifier(torch.cat(features)), torch.cat(labels))
        if len(batches) == 1:
            return total
        for head, z, y in zip(self.heads, features, labels, strict=True):
            fit = torch.optim.SGD(head.parameters(), lr=0.1)
            for _ in range(30):
                fit.zero_grad()
                F.cross_entropy(head(z.detach()), y).backward()
                fit.step()
        transfer, domains = [], range(len(batches))
        for own in domains:
            weight, bias = (p.detach().clone().requires_grad_() for p in self.heads[own].parameters())

            def risk(i, rows=features, weight=weight, bias=bias):
                return F.cross_entropy(F.linear(rows[i], weight, bias), labels[i])

            others = sum(self.alpha[own][i] * risk(i) for i in domains if i != own)
            [gradient] = torch.autograd.grad(risk(own), weight, create_graph=True)
            [of_others] = torch.autograd.grad(others, weight, retain_graph=True)
            rows = [torch.autograd.grad(g, weight, retain_graph=True)[0].flatten() for g in gradient.flatten()]
            hessian = torch.stack(rows).detach()
            term = of_others.flatten()
            series = term.clone()
            for _ in range(10):
                term = term - hessian @ term
                series = series + term
                if series.abs().max() > 10:
                    break
            transfer.append(others - self.weight * (series @ gradient.flatten()))
            raised = [
                self.alpha[own][i] * math.exp(self.eta * float(risk(i).detach())) if i != own else 0.0 for i in domains
            ]
            self.alpha[own] = [value / sum(raised) for value in raised]
        return total + sum(transfer) / len(transfer)


@pytest.mark.parametrize("counts", [(5,), (3, 4), (2, 5, 3), (1, 2, 3, 2, 1)])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_steps_are_those_of_the_transcription(counts, weight):
    lr, eta = 0.01, 0.5
    hparams = {"penalty_weight": weight, "eta": eta, "anneal_steps": 1}
    steps = steps_of(small(TRM, len(counts), dtype=torch.float64, **hparams), "sgd", lr=lr)
    steps.algorithm.optimizers["all"].param_groups[0]["momentum"] = 0.0
    reference = small(ERM, len(counts), dtype=torch.float64)
    transcription = _Transcription(reference.network, len(counts), weight, eta)
    for step in range(1, 5):
        batches = made_up(counts, dtype=torch.float64, seed=step)
        loss = reference.objective(batches) if step == 1 else transcription.loss(reference.network, batches)
        descent = torch.autograd.grad(loss, list(reference.parameters()))
        with torch.no_grad():
            for p, gradient in zip(reference.parameters(), descent, strict=True):
                p -= lr * gradient
        torch.testing.assert_close(steps.take(batches, step), loss.detach(), rtol=1e-8, atol=0)
    for p, expected in zip(steps.algorithm.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-6, atol=1e-9)
    if len(counts) > 1:
        for head, expected in zip(steps.algorithm.heads, transcription.heads, strict=True):
            torch.testing.assert_close(head[:, :-1], expected.weight.detach(), rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(head[:, -1], expected.bias.detach(), rtol=1e-6, atol=1e-9)
        shares = torch.tensor(transcription.alpha, dtype=torch.float64)
        torch.testing.assert_close(steps.algorithm.shares, shares, rtol=1e-8, atol=0)


def test_a_series_that_grows_is_cut():
    """Features that are large have a Hessian beyond the reach of the series."""
    batches = [(30 * images, labels) for images, labels in made_up((4, 5), dtype=torch.float64)]
    algorithm = small(TRM, dtype=torch.float64, penalty_weight=1.0, anneal_steps=0)
    reference = small(ERM, dtype=torch.float64)
    expected = _Transcription(reference.network, 2, 1.0, 0.01).loss(reference.network, batches)
    torch.testing.assert_close(algorithm.objective(batches), expected, rtol=1e-6, atol=0)


def test_before_the_transfer_risk_and_on_one_domain_it_is_erm():
    for counts, hparams in (((4, 4), {"anneal_steps": 1}), ((4,), {"anneal_steps": 0})):
        batches = made_up(counts, dtype=torch.float64)
        algorithm = small(TRM, len(counts), dtype=torch.float64, **hparams)
        expected = gradients(small(ERM, len(counts), dtype=torch.float64), batches)
        for name, gradient in gradients(algorithm, batches).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-12, atol=0)


@pytest.mark.parametrize("optimizer", ["sam", "gam"])
def test_classifiers_and_weights_move_once_per_step(optimizer):
    once, often = (steps_of(small(TRM, anneal_steps=0, eta=1.0), name) for name in ("sgd", optimizer))
    for steps in (once, often):
        steps.take(made_up(), 1)
    assert often.passes > 1
    for name in ("heads", "shares"):
        torch.testing.assert_close(often.algorithm.get_buffer(name), once.algorithm.get_buffer(name))


def test_the_optimizer_does_not_start_anew():
    steps = steps_of(small(TRM, anneal_steps=1), "adam")
    for step in (1, 2):
        steps.take(made_up(seed=step), step)
    assert int(next(iter(steps.algorithm.optimizers["all"].state.values()))["step"]) == 2


@pytest.mark.parametrize("optimizer", ["adam", "sam", "adahessian"])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_continues_bit_equal(optimizer, stop):
    hparams = {"anneal_steps": 2, "penalty_weight": 0.5}
    assert_continues_bit_equal(lambda: small(TRM, dropout=0.3, **hparams), optimizer, stop, 5)


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({"penalty_weight": -1.0}, "Invalid penalty_weight value: -1.0; it must be at least 0"),
        ({"eta": math.inf}, "Invalid eta value: inf; it must be at least 0"),
        ({"anneal_steps": 0.5}, "Invalid anneal_steps value: 0.5"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(hparams, message):
    with pytest.raises(ValueError, match=message):
        small(TRM, **hparams)


def test_defaults_are_domainbeds():
    registered, constructed = defaults(TRM)
    assert registered == constructed == draw(TRM.hparams, 0, 0)
    assert registered == {"penalty_weight": 1e-4, "anneal_steps": 200, "eta": 0.01}
