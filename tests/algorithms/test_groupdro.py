import math

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
from shiftproof.algorithms.group_dro import GroupDRO
from shiftproof.models import build_network


def _updated(q, losses, eta):
    raised = [weight * math.exp(eta * float(loss.detach())) for weight, loss in zip(q, losses, strict=True)]
    return [weight / sum(raised) for weight in raised]


@pytest.mark.parametrize("counts", [(5,), (3, 4), (2, 5, 3), (1, 2, 3, 2, 1)])
def test_weights_loss_and_steps_are_those_of_the_transcription(counts):
    """Algorithm 1, all groups at every step, with plain gradient descent."""
    lr, eta = 0.01, 0.5
    steps = steps_of(small(GroupDRO, len(counts), dtype=torch.float64, eta=eta), "sgd", lr=lr)
    steps.algorithm.optimizers["all"].param_groups[0]["momentum"] = 0.0
    reference = small(ERM, len(counts), dtype=torch.float64)
    q = [1 / len(counts)] * len(counts)
    for step in range(1, 5):
        batches = made_up(counts, dtype=torch.float64, seed=step)
        losses = domain_losses(reference, batches)
        q = _updated(q, losses, eta)
        loss = sum(weight * of_domain for weight, of_domain in zip(q, losses, strict=True))
        descent = torch.autograd.grad(loss, list(reference.parameters()))
        with torch.no_grad():
            for p, gradient in zip(reference.parameters(), descent, strict=True):
                p -= lr * gradient
        torch.testing.assert_close(steps.take(batches, step), loss.detach(), rtol=1e-9, atol=0)
        torch.testing.assert_close(steps.algorithm.q, torch.tensor(q, dtype=torch.float64), rtol=1e-9, atol=0)
    for p, expected in zip(steps.algorithm.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("counts", [(5,), (2, 5, 3)])
def test_divided_it_takes_the_steps_of_domainbeds_published_table(counts):
    """With weight decay, beside which the size of the loss matters."""
    lr, decay, eta = 0.05, 0.1, 0.5
    algorithm = small(GroupDRO, len(counts), dtype=torch.float64, eta=eta, divided=True)
    steps = steps_of(algorithm, "sgd", lr=lr)
    algorithm.optimizers["all"].param_groups[0].update(momentum=0.0, weight_decay=decay)
    reference = small(ERM, len(counts), dtype=torch.float64)
    weights = list(reference.parameters())
    q = [1 / len(counts)] * len(counts)
    for step in range(1, 5):
        batches = made_up(counts, dtype=torch.float64, seed=step)
        losses = domain_losses(reference, batches)
        q = _updated(q, losses, eta)
        loss = sum(weight * of_domain for weight, of_domain in zip(q, losses, strict=True)) / len(counts)
        gradient = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for w, g in zip(weights, gradient, strict=True):
                w -= lr * (g + decay * w)
        torch.testing.assert_close(steps.take(batches, step), loss.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(list(algorithm.parameters()), weights, rtol=1e-10, atol=1e-12)


def test_on_identical_domains_and_on_one_it_is_erm():
    one = made_up((4,), dtype=torch.float64)
    for batches in (one, one * 3):
        group_dro = small(GroupDRO, len(batches), dtype=torch.float64, eta=5.0)
        erm = small(ERM, len(batches), dtype=torch.float64)
        expected = gradients(erm, batches)
        for name, gradient in gradients(group_dro, batches).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-13)


def test_without_a_step_size_the_weights_stay_equal():
    steps = steps_of(small(GroupDRO, 3, eta=0.0))
    steps.take(made_up((4, 4, 4)), 1)
    torch.testing.assert_close(steps.algorithm.q, torch.full((3,), 1 / 3))


def test_the_worst_domain_gets_the_weight_and_no_exponential_overflows():
    steps = steps_of(small(GroupDRO, 2, eta=1e5))
    batches = made_up((4, 4))
    losses = torch.stack(steps.algorithm.domain_losses(batches)).detach()
    torch.testing.assert_close(steps.take(batches, 1), losses.max())
    assert torch.equal(steps.algorithm.q, (losses == losses.max()).float())
    assert steps.take(batches, 2).isfinite()


@pytest.mark.parametrize("optimizer", ["sam", "fad"])
def test_the_weights_are_updated_once_per_step(optimizer):
    steps = steps_of(small(GroupDRO, dtype=torch.float64, eta=1.0), optimizer)
    batches = made_up((4, 4), dtype=torch.float64)
    expected = _updated([0.5, 0.5], domain_losses(steps.algorithm, batches), 1.0)
    steps.take(batches, 1)
    assert steps.passes > 1
    torch.testing.assert_close(steps.algorithm.q, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("optimizer", ["adam", "sam"])
def test_a_run_continues_bit_equal(optimizer):
    assert_continues_bit_equal(lambda: small(GroupDRO, dropout=0.3, eta=0.5), optimizer, 3, 6)


@pytest.mark.parametrize("eta", [-0.1, float("inf")])
def test_hyperparameters_out_of_range_are_refused(eta):
    with pytest.raises(ValueError, match=f"Invalid eta value: {eta}; it must be at least 0"):
        small(GroupDRO, eta=eta)


def test_defaults_are_domainbeds():
    assert draw(GroupDRO.hparams, 0, 0) == {"eta": 0.01}
    assert 1e-3 <= draw(GroupDRO.hparams, 1, 0)["eta"] < 0.1


@pytest.mark.parametrize("counts", [(5,), (3, 4), (2, 5, 3), (1, 2, 3, 2, 1)])
def test_groups_of_domains_and_classes_are_those_of_the_transcription(counts):
    """Dictionaries of groups; those that no image of the batch is in have a loss of 0."""
    eta, classes = 0.5, 4  # made_up has no image of the last class
    groups = [(domain, label) for domain in range(len(counts)) for label in range(classes)]
    steps = steps_of(
        small(GroupDRO, len(counts), dtype=torch.float64, classes=classes, eta=eta, groups="domains_and_classes"),
        "sgd",
    )
    reference = small(ERM, len(counts), dtype=torch.float64, classes=classes)
    reference.load_state_dict(steps.algorithm.state_dict(), strict=False)
    q = dict.fromkeys(groups, 1 / len(groups))
    for step in range(1, 5):
        batches = made_up(counts, dtype=torch.float64, seed=step)
        reference.load_state_dict(steps.algorithm.state_dict(), strict=False)
        losses = {}
        for domain, label in groups:
            images, labels = batches[domain]
            own = [loss_of_image(reference, x, y) for x, y in zip(images, labels, strict=True) if int(y) == label]
            losses[domain, label] = sum(own) / len(own) if own else torch.zeros((), dtype=torch.float64)
        raised = {group: q[group] * math.exp(eta * float(losses[group].detach())) for group in groups}
        q = {group: raised[group] / sum(raised.values()) for group in groups}
        loss = sum(q[group] * losses[group] for group in groups)
        expected = torch.autograd.grad(loss, list(reference.parameters()))
        torch.testing.assert_close(steps.take(batches, step), loss.detach(), rtol=1e-9, atol=0)
        for p, gradient in zip(steps.algorithm.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, gradient, rtol=1e-8, atol=1e-12)
        flat = torch.tensor([q[group] for group in groups], dtype=torch.float64)
        torch.testing.assert_close(steps.algorithm.q.flatten(), flat, rtol=1e-9, atol=0)
    assert steps.algorithm.q.shape == (len(counts), classes)


def test_groups_of_a_single_class_are_the_domains_but_for_their_start():
    batches = [(images, torch.ones_like(labels)) for images, labels in made_up((4, 3), dtype=torch.float64)]
    by_class = small(GroupDRO, dtype=torch.float64, eta=0.0, groups="domains_and_classes")
    by_domain = small(GroupDRO, dtype=torch.float64, eta=0.0)
    torch.testing.assert_close(3 * by_class.objective(batches), by_domain.objective(batches), rtol=1e-12, atol=0)


def test_a_run_with_groups_of_classes_continues_bit_equal():
    build = lambda: small(GroupDRO, dropout=0.3, eta=0.5, groups="domains_and_classes")  # noqa: E731
    assert_continues_bit_equal(build, "sam", 3, 6)


def test_other_groups_are_refused():
    with pytest.raises(ValueError, match="Invalid groups value: pairs; it must be one of domains, domains_and_classes"):
        small(GroupDRO, groups="pairs")
    network = build_network("small_conv", (1, 16, 16), 3, dropout=0.0, seed=0, task="multilabel")
    with pytest.raises(ValueError, match="are for classes, and the network is for multilabel"):
        GroupDRO(network, 2, groups="domains_and_classes")
