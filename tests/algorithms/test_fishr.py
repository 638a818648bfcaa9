import pytest
import torch

from algorithms.made_up_runs import (
    assert_continues_bit_equal,
    domain_losses,
    gradients,
    loss_of_image,
    made_up,
    small,
    steps_of,
)
from draws import draw
from shiftproof.algorithms import ERM
from shiftproof.algorithms.fishr import Fishr


def _variances(algorithm, batches, create_graph=False):
    """The variance over the images of each domain of the classifier's gradients, one backward pass per image."""
    head = list(algorithm.network.classifier.parameters())
    variances = []
    for images, labels in batches:
        singles = []
        for image, label in zip(images, labels, strict=True):
            loss = loss_of_image(algorithm, image, label)
            weight, bias = torch.autograd.grad(loss, head, create_graph=create_graph, retain_graph=True)
            singles.append(torch.cat([weight, bias[:, None]], 1))
        mean = sum(singles) / len(singles)
        variances.append(sum((single - mean) ** 2 for single in singles) / len(singles))
    return torch.stack(variances)


def _transcription(algorithm, batches, weight, ema, before):
    variances = _variances(algorithm, batches, create_graph=True)
    smoothed = ema * before + (1 - ema) * variances
    corrected = smoothed / (1 - ema)
    mean = corrected.mean(0)
    penalty = sum(((v - mean) ** 2).mean() for v in corrected) / len(batches)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    losses = [loss_of_image(algorithm, image, label) for image, label in zip(images, labels, strict=True)]
    return sum(losses) / len(losses) + weight * penalty, smoothed.detach()


@pytest.mark.parametrize("counts", [(5,), (3, 4), (2, 5, 1)])
def test_steps_are_those_of_the_transcription(counts):
    lr, weight, ema = 0.01, 20.0, 0.8
    algorithm = small(Fishr, len(counts), dtype=torch.float64, penalty_weight=weight, anneal_steps=0, ema=ema)
    steps = steps_of(algorithm, "sgd", lr=lr)
    algorithm.optimizers["all"].param_groups[0]["momentum"] = 0.0
    reference = small(ERM, len(counts), dtype=torch.float64)
    smoothed = 0.0
    for step in range(1, 4):
        batches = made_up(counts, dtype=torch.float64, seed=step)
        loss, smoothed = _transcription(reference, batches, weight, ema, smoothed)
        descent = torch.autograd.grad(loss, list(reference.parameters()))
        with torch.no_grad():
            for p, gradient in zip(reference.parameters(), descent, strict=True):
                p -= lr * gradient
        torch.testing.assert_close(steps.take(batches, step), loss.detach(), rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(algorithm.variances, smoothed, rtol=1e-7, atol=1e-10)
    for p, expected in zip(algorithm.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-6, atol=1e-9)


def test_dividing_by_one_minus_ema_is_the_unit_of_the_weight():
    """The paper's penalty, on the smoothed variances themselves, is that of another weight."""
    ema, weight = 0.9, 10.0
    algorithm = small(Fishr, dtype=torch.float64, penalty_weight=weight, anneal_steps=0, ema=ema)
    batches = made_up((4, 4), dtype=torch.float64)
    smoothed = (1 - ema) * _variances(algorithm, batches)
    published = ((smoothed - smoothed.mean(0)) ** 2).mean()
    loss = small(ERM, dtype=torch.float64).objective(batches)
    expected = loss + weight / (1 - ema) ** 2 * published
    torch.testing.assert_close(algorithm.objective(batches), expected, rtol=1e-9, atol=1e-12)


def test_before_the_weight_is_raised_it_is_erm_that_smooths_the_variances():
    fishr = steps_of(small(Fishr, penalty_weight=100.0, anneal_steps=2), "adam")
    erm = steps_of(small(ERM), "adam")
    for step in (1, 2, 3):
        batches = made_up((4, 4), seed=step)
        before = fishr.algorithm.variances.clone()
        losses = fishr.take(batches, step), erm.take(batches, step)
        assert torch.equal(*losses) == (step < 3)
        assert not torch.equal(fishr.algorithm.variances, before)
        pairs = zip(fishr.algorithm.parameters(), erm.algorithm.parameters(), strict=True)
        assert all(torch.equal(p, q) for p, q in pairs) == (step < 3)
    assert int(next(iter(fishr.algorithm.optimizers["all"].state.values()))["step"]) == 1


def test_on_identical_domains_and_on_one_it_is_erm():
    one = made_up((4,), dtype=torch.float64)
    for batches in (one, one * 3):
        fishr = small(Fishr, len(batches), dtype=torch.float64, anneal_steps=0)
        erm = small(ERM, len(batches), dtype=torch.float64)
        expected = gradients(erm, batches)
        for name, gradient in gradients(fishr, batches).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["sam", "gam"])
def test_the_variances_are_smoothed_once_per_step(optimizer):
    steps = steps_of(small(Fishr, dtype=torch.float64, anneal_steps=0, ema=0.5), optimizer)
    batches = made_up((4, 4), dtype=torch.float64)
    expected = 0.5 * _variances(steps.algorithm, batches)
    steps.take(batches, 1)
    torch.testing.assert_close(steps.algorithm.variances, expected, rtol=1e-9, atol=1e-14)


def test_low_precision_leaves_the_variances_nearly_as_they_are():
    found = []
    for precision in ("float32", "bf16"):
        steps = steps_of(small(Fishr, anneal_steps=0), precision=precision)
        assert steps.take(made_up((8, 8)), 1).isfinite()
        found.append(steps.algorithm.variances)
    assert found[1].dtype == torch.float32
    torch.testing.assert_close(found[1], found[0], rtol=0.1, atol=0.02 * float(found[0].max()))
    assert (found[1] > -1e-6 * found[1].max()).all()


@pytest.mark.parametrize("optimizer", ["adam", "sam", "adahessian"])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_continues_bit_equal(optimizer, stop):
    assert_continues_bit_equal(lambda: small(Fishr, dropout=0.3, anneal_steps=2), optimizer, stop, 5)


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({"penalty_weight": -1.0}, "Invalid penalty_weight value: -1.0"),
        ({"anneal_steps": -1}, "Invalid anneal_steps value: -1"),
        ({"ema": 1.0}, r"Invalid ema value: 1.0; it must be in \[0, 1\)"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(hparams, message):
    with pytest.raises(ValueError, match=message):
        small(Fishr, **hparams)


def test_defaults_are_domainbeds():
    assert draw(Fishr.hparams, 0, 0) == {"penalty_weight": 1000.0, "anneal_steps": 1500, "ema": 0.95}
    drawn = draw(Fishr.hparams, 1, 0)
    assert 10 <= drawn["penalty_weight"] < 1e4
    assert type(drawn["anneal_steps"]) is int
    assert 0.9 <= drawn["ema"] < 0.99


def test_domain_losses_are_without_the_penalty():
    algorithm = small(Fishr, dtype=torch.float64, anneal_steps=0)
    batches = made_up((3, 4), dtype=torch.float64)
    torch.testing.assert_close(algorithm.domain_losses(batches), domain_losses(algorithm, batches), rtol=1e-10, atol=0)
