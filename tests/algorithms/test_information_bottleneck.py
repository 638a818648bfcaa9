"""IB-ERM and IB-IRM."""

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
from shiftproof.algorithms import ERM, IRM
from shiftproof.algorithms.information_bottleneck import IBERM, IBIRM

both = pytest.mark.parametrize("kind", [IBERM, IBIRM])


def _variances(algorithm, batches):
    """The mean over features of the unbiased variance in each domain, feature by feature."""
    means = []
    for images, _ in batches:
        features = [algorithm.network.featurizer(image[None])[0] for image in images]
        variances = []
        for column in zip(*features, strict=True):
            mean = sum(column) / len(column)
            variances.append(sum((value - mean) ** 2 for value in column) / (len(column) - 1))
        means.append(sum(variances) / len(variances))
    return means


def _irm_penalties(algorithm, batches):
    penalties = []
    for images, labels in batches:
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        logits = [scale * algorithm.predict(image[None])[0] for image in images]
        losses = [row.exp().sum().log() - row[label] for row, label in zip(logits, labels, strict=True)]
        slopes = [torch.autograd.grad(torch.stack(losses[i::2]).mean(), scale, create_graph=True)[0] for i in (0, 1)]
        penalties.append(slopes[0] * slopes[1])
    return penalties


@both
@pytest.mark.parametrize("counts", [(5,), (3, 4), (2, 5, 3), (2, 3, 2, 3, 2)])
def test_objective_and_gradient_are_those_of_the_transcription(kind, counts):
    hparams = {"penalty_weight": 3.0, "anneal_steps": 0}
    if kind is IBIRM:
        hparams |= {"irm_weight": 20.0, "irm_anneal_steps": 0}
    algorithm = small(kind, len(counts), dtype=torch.float64, **hparams)
    batches = made_up(counts, dtype=torch.float64)
    terms = [
        loss + 3 * variance
        for loss, variance in zip(domain_losses(algorithm, batches), _variances(algorithm, batches), strict=True)
    ]
    if kind is IBIRM:
        terms = [t + 20 * penalty for t, penalty in zip(terms, _irm_penalties(algorithm, batches), strict=True)]
    expected = sum(terms) / len(terms)
    torch.testing.assert_close(algorithm.objective(batches), expected, rtol=1e-11, atol=0)
    found = gradients(algorithm, batches)
    for p, gradient in zip(found.values(), torch.autograd.grad(expected, list(algorithm.parameters())), strict=True):
        torch.testing.assert_close(p, gradient, rtol=1e-8, atol=1e-12)


def test_without_weights_it_is_erm_and_without_the_variance_irm():
    batches = made_up((4, 4, 4), dtype=torch.float64)
    erm = gradients(small(ERM, 3, dtype=torch.float64), batches)
    bottleneck = small(IBERM, 3, dtype=torch.float64, penalty_weight=0.0, anneal_steps=0)
    for name, gradient in gradients(bottleneck, batches).items():
        torch.testing.assert_close(gradient, erm[name], rtol=1e-10, atol=1e-14)
    shared = {"dtype": torch.float64, "anneal_steps": 0}
    irm = small(IRM, 3, penalty_weight=7.0, **shared)
    both_penalties = small(IBIRM, 3, penalty_weight=0.0, irm_weight=7.0, irm_anneal_steps=0, **shared)
    torch.testing.assert_close(both_penalties.objective(batches), irm.objective(batches), rtol=1e-13, atol=0)


def test_before_the_weight_is_raised_ib_erm_is_erm():
    batches = made_up((4, 4))
    assert torch.equal(small(IBERM, anneal_steps=1).objective(batches), small(ERM).objective(batches))


def _replaced(hparams):
    """After how many steps each weight is raised and the optimizer replaced."""
    steps = steps_of(small(IBIRM, penalty_weight=7.0, irm_weight=5.0, **hparams), "adam")
    weights, taken = [], []
    for step in range(1, 6):
        steps.take(made_up(seed=step), step)
        weights.append((steps.algorithm.weight, steps.algorithm._irm_weight))
        taken.append(int(next(iter(steps.algorithm.optimizers["all"].state.values()))["step"]))
    return weights, taken


def test_each_weight_is_raised_at_its_step_and_the_optimizer_replaced_at_both():
    weights, taken = _replaced({"anneal_steps": 1, "irm_anneal_steps": 3})
    assert weights == [(0.0, 1.0), (7.0, 1.0), (7.0, 1.0), (7.0, 5.0), (7.0, 5.0)]
    assert taken == [1, 1, 2, 1, 2]
    assert _replaced({"anneal_steps": 2, "irm_anneal_steps": 2})[1] == [1, 2, 1, 2, 3]
    assert _replaced({"anneal_steps": 0, "irm_anneal_steps": 0})[1] == [1, 2, 3, 4, 5]


@both
@pytest.mark.parametrize("optimizer", ["adam", "genie", "sam"])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_continues_bit_equal(kind, optimizer, stop):
    hparams = {"anneal_steps": 2, **({"irm_anneal_steps": 3} if kind is IBIRM else {})}
    assert_continues_bit_equal(lambda: small(kind, dropout=0.3, **hparams), optimizer, stop, 5)


@both
def test_a_batch_of_one_image_has_no_variance(kind):
    assert kind.min_images == 2
    with pytest.raises(ValueError, match="1 image has none"):
        small(kind, anneal_steps=0).objective(made_up((4, 1)))


@both
@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({"penalty_weight": -1.0}, "Invalid penalty_weight value: -1.0; it must be at least 0"),
        ({"anneal_steps": 2.5}, "Invalid anneal_steps value: 2.5; it must be a whole number, at least 0"),
        ({"irm_weight": float("nan")}, "Invalid irm_weight value: nan"),
        ({"irm_anneal_steps": -1}, "Invalid irm_anneal_steps value: -1; it must be a whole number, at least 0"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(kind, hparams, message):
    if not set(hparams) <= set(kind.hparams):
        return
    with pytest.raises(ValueError, match=message):
        small(kind, **hparams)


@both
def test_defaults_are_domainbeds(kind):
    registered, constructed = defaults(kind)
    assert registered == constructed
    assert draw(kind.hparams, 0, 0) == registered
    assert draw(IBIRM.hparams, 1, 0)["irm_weight"] == draw(IRM.hparams, 1, 0)["penalty_weight"]
