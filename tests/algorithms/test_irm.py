import pytest
import torch

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
from shiftproof.algorithms.irm import IRM
from shiftproof.algorithms.vrex import VREx
from shiftproof.protocol.settings import search_space


def _transcription(algorithm, batches, weight):
    """Equation IRMv1 with the product of two derivatives, by autograd with respect to a scale of the logits."""
    total = 0.0
    for images, labels in batches:
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        losses = []
        for image, label in zip(images, labels, strict=True):
            logits = scale * algorithm.predict(image[None])[0]
            losses.append(logits.exp().sum().log() - logits[label])
        halves = [torch.stack(losses[first::2]).mean() for first in (0, 1)]
        first, second = (torch.autograd.grad(half, scale, create_graph=True)[0] for half in halves)
        total = total + torch.stack(losses).mean() + weight * first * second
    return total / len(batches)


@pytest.mark.parametrize("counts", [(5,), (3, 4), (2, 5, 3)])
def test_objective_and_gradient_are_those_of_the_transcription(counts):
    algorithm = small(IRM, len(counts), dtype=torch.float64, penalty_weight=30.0, anneal_steps=0)
    batches = made_up(counts, dtype=torch.float64)
    expected = _transcription(algorithm, batches, 30.0)
    torch.testing.assert_close(algorithm.objective(batches), expected, rtol=1e-12, atol=1e-14)
    found = gradients(algorithm, batches)
    expected_gradients = torch.autograd.grad(expected, list(algorithm.parameters()))
    for (name, _), gradient in zip(algorithm.named_parameters(), expected_gradients, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-13)


def test_the_penalty_of_one_half_twice_is_the_squared_derivative_and_never_negative():
    algorithm = small(IRM, 1, dtype=torch.float64, penalty_weight=1.0, anneal_steps=0)
    images, labels = made_up((3,), dtype=torch.float64)[0]
    doubled = [(images.repeat_interleave(2, 0), labels.repeat_interleave(2))]  # even and odd images are equal
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(scale * algorithm.predict(images), labels)
    derivative = torch.autograd.grad(loss, scale)[0]
    penalty = algorithm.objective(doubled) - loss
    torch.testing.assert_close(penalty, derivative**2, rtol=1e-10, atol=1e-14)


def test_without_weight_it_is_erm():
    batches = made_up((4, 4, 4), dtype=torch.float64)
    irm = small(IRM, 3, dtype=torch.float64, penalty_weight=0.0, anneal_steps=0)
    erm = small(ERM, 3, dtype=torch.float64)
    expected = gradients(erm, batches)
    for name, gradient in gradients(irm, batches).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-14)


def test_the_domains_losses_are_without_the_penalty():
    algorithm = small(IRM, 2, dtype=torch.float64)
    batches = made_up((3, 5), dtype=torch.float64)
    torch.testing.assert_close(algorithm.domain_losses(batches), domain_losses(algorithm, batches), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", [IRM, VREx])
def test_the_weight_is_raised_and_the_optimizer_replaced_once(kind):
    steps = steps_of(small(kind, penalty_weight=7.0, anneal_steps=2), "adam")
    weights, optimizers, taken = [], [], []
    for step in range(1, 6):
        steps.take(made_up(seed=step), step)
        built = steps.algorithm.optimizers["all"]
        weights.append(steps.algorithm.weight)
        optimizers.append(built)
        taken.append(int(next(iter(built.state.values()))["step"]))
    assert weights == [1.0, 1.0, 7.0, 7.0, 7.0]
    assert taken == [1, 2, 1, 2, 3]
    assert [optimizers[0] is other for other in optimizers] == [True, True, False, False, False]
    assert optimizers[2] is optimizers[4]


def test_no_steps_of_annealing_replace_nothing():
    steps = steps_of(small(IRM, anneal_steps=0), "adam")
    first = steps.algorithm.optimizers["all"]
    steps.take(made_up(), 1)
    assert steps.algorithm.weight == 100.0
    assert steps.algorithm.optimizers["all"] is first


def test_the_second_optimizer_draws_other_numbers():
    steps = steps_of(small(IRM, anneal_steps=1), "genie")
    seeds = []
    for step in (1, 2):
        steps.take(made_up(seed=step), step)
        seeds.append(steps.algorithm.optimizers["all"].param_groups[0]["seed"])
    assert seeds[0] == 1
    assert seeds[1] != 1


@pytest.mark.parametrize("kind", [IRM, VREx])
@pytest.mark.parametrize("optimizer", ["adam", "genie", "sam"])
@pytest.mark.parametrize("stop", [1, 2, 3])  # before, at and after the new optimizer
def test_a_run_continues_bit_equal(kind, optimizer, stop):
    assert_continues_bit_equal(lambda: small(kind, dropout=0.3, anneal_steps=2), optimizer, stop, 5)


def test_both_halves_of_a_batch_are_needed():
    algorithm = small(IRM)
    with pytest.raises(ValueError, match="a batch of 1 image has none"):
        algorithm.objective(made_up((4, 1)))


def test_a_class_may_be_absent_and_second_derivatives_exist():
    algorithm = small(IRM, classes=9, anneal_steps=0)
    steps = steps_of(algorithm, "adahessian")
    batches = [(images, labels.clamp_max(1)) for images, labels in made_up((4, 6), classes=9)]
    assert steps.take(batches, 1).isfinite()


@pytest.mark.parametrize("kind", [IRM, VREx])
@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({"penalty_weight": -1.0}, "Invalid penalty_weight value: -1.0; it must be at least 0"),
        ({"penalty_weight": float("nan")}, "Invalid penalty_weight value: nan"),
        ({"anneal_steps": -1}, "Invalid anneal_steps value: -1; it must be a whole number, at least 0"),
        ({"anneal_steps": 2.5}, "Invalid anneal_steps value: 2.5"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(kind, hparams, message):
    with pytest.raises(ValueError, match=message):
        small(kind, **hparams)


def test_the_draws_are_domainbeds():
    assert draw(IRM.hparams, 0, 0) == {"penalty_weight": 100.0, "anneal_steps": 500}
    first = draw(IRM.hparams, 1, 0)
    assert first["penalty_weight"] == pytest.approx(65030.52212762795, rel=1e-12)
    assert first["anneal_steps"] == 2
    assert draw(IRM.hparams, 2, 0)["penalty_weight"] == pytest.approx(15.27125896858225, rel=1e-12)
    assert draw(VREx.hparams, 0, 0) == {"penalty_weight": 10.0, "anneal_steps": 500}
    assert all(type(draw(kind.hparams, 3, 1)["anneal_steps"]) is int for kind in (IRM, VREx))


@pytest.mark.parametrize(("name", "steps"), [("irm", 30), ("vrex", 30)])
def test_a_short_search_raises_the_weight_in_proportion(name, steps):
    for search, default in (("protocol", 500), ("short", steps)):
        hparams = search_space("PACS", "photographs", True, name, "adam", "none", search)["algorithm"]
        assert list(hparams) == ["penalty_weight", "anneal_steps"]
        assert hparams["anneal_steps"].default == default
    drawn = [draw(hparams, seed, 0)["anneal_steps"] for seed in range(1, 50)]
    assert max(drawn) < 320
    assert min(drawn) < 3
