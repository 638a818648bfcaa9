import pytest
import torch

from algorithms.made_up_batches import defaults
from algorithms.made_up_runs import (
    assert_continues_bit_equal,
    domain_losses,
    gradients,
    made_up,
    small,
    steps_of,
)
from draws import draw
from shiftproof.algorithms import ERM
from shiftproof.algorithms.iga import IGA


def _transcription(algorithm, batches, weight, summed):
    """The trace of the gradients' variance, element by element; as in DomainBed, the mean gradient is held fixed."""
    losses, parameters = domain_losses(algorithm, batches), list(algorithm.parameters())
    by_domain = [torch.autograd.grad(loss, parameters, create_graph=True) for loss in losses]
    flat = [torch.cat([g.flatten() for g in gradient]) for gradient in by_domain]
    mean = (sum(flat) / len(flat)).detach()
    total = sum(((gradient - mean) ** 2).sum() for gradient in flat)
    return sum(losses) / len(losses) + weight * (total if summed else total / len(losses))


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("counts", [(5,), (3, 4), (2, 5, 3), (1, 2, 3, 2, 1)])
def test_objective_and_gradient_are_those_of_the_transcription(counts, summed):
    algorithm = small(IGA, len(counts), dtype=torch.float64, penalty_weight=0.5, summed=summed)
    batches = made_up(counts, dtype=torch.float64)
    expected = _transcription(algorithm, batches, 0.5, summed)
    torch.testing.assert_close(algorithm.objective(batches), expected, rtol=1e-11, atol=0)
    found = gradients(algorithm, batches)
    for p, gradient in zip(found.values(), torch.autograd.grad(expected, list(algorithm.parameters())), strict=True):
        torch.testing.assert_close(p, gradient, rtol=1e-8, atol=1e-11)


def test_without_weight_on_identical_domains_and_on_one_it_is_erm():
    one, apart = made_up((4,), dtype=torch.float64), made_up((4, 4), dtype=torch.float64)
    for batches, weight in ((apart, 0.0), (one * 3, 5.0), (one, 5.0)):
        iga = small(IGA, len(batches), dtype=torch.float64, penalty_weight=weight)
        expected = gradients(small(ERM, len(batches), dtype=torch.float64), batches)
        for name, gradient in gradients(iga, batches).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-13)


def test_frozen_and_unused_parameters_do_no_harm():
    algorithm = small(IGA, penalty_weight=1.0)
    next(algorithm.network.featurizer.parameters()).requires_grad_(False)
    algorithm.network.register_parameter("unused", torch.nn.Parameter(torch.zeros(2)))
    assert algorithm.objective(made_up()).isfinite()


@pytest.mark.parametrize("optimizer", ["adam", "sam", "adahessian"])
def test_a_run_continues_bit_equal(optimizer):
    assert_continues_bit_equal(lambda: small(IGA, dropout=0.3, penalty_weight=0.1), optimizer, 2, 4)


def test_every_domain_has_one_forward_pass(monkeypatch):
    steps = steps_of(small(IGA, 3))
    counts, predict = [], steps.algorithm.predict
    monkeypatch.setattr(steps.algorithm, "predict", lambda images: counts.append(len(images)) or predict(images))
    steps.take(made_up((4, 3, 2)), 1)
    assert counts == [4, 3, 2]


@pytest.mark.parametrize("weight", [-0.1, float("inf"), float("nan")])
def test_hyperparameters_out_of_range_are_refused(weight):
    with pytest.raises(ValueError, match=f"Invalid penalty_weight value: {weight}; it must be at least 0"):
        small(IGA, penalty_weight=weight)


def test_defaults_are_domainbeds():
    registered, constructed = defaults(IGA)
    assert registered == constructed == {"penalty_weight": 1000.0, "summed": False}
    assert 10 <= draw(IGA.hparams, 1, 0)["penalty_weight"] < 1e5
    assert draw(IGA.hparams, 0, 0, "domainbed-head")["summed"] is True
