import copy

import pytest
import torch

from algorithms.made_up_batches import assert_resumes, built_steps, defaults, double_network, uneven_batches
from shiftproof.algorithms import ALGORITHMS, ERM, Transfer
from shiftproof.protocol.settings import search_space, setting


def _cross_entropy(logits, label):
    return logits.exp().sum().log() - logits[label]


def _encoded(network, batches):
    return [(network.featurizer(images), labels) for images, labels in batches]


def _risk(head, features, labels):
    weight, bias = head
    losses = [_cross_entropy(weight @ z + bias, y) for z, y in zip(features, labels, strict=True)]
    return sum(losses) / len(losses)


def _gap(head, encoded):
    risks = [_risk(head, features, labels) for features, labels in encoded]
    return max(risks) - min(risks)


def _adversary(head, encoded, weight, delta, steps, rate):
    """Projected gradient ascent from the classifier."""
    centre = [p.detach() for p in head]
    moved = centre
    encoded = [(features.detach(), labels) for features, labels in encoded]
    for _ in range(steps):
        moved = [p.clone().requires_grad_() for p in moved]
        gradients = torch.autograd.grad(weight * _gap(moved, encoded), moved)
        moved = [(p + rate * g).detach() for p, g in zip(moved, gradients, strict=True)]
        distance = sum(((p - c) ** 2).sum() for p, c in zip(moved, centre, strict=True)).sqrt()
        if distance > delta:
            moved = [c + delta / distance * (p - c) for p, c in zip(moved, centre, strict=True)]
    return moved


def _head(network):
    return [network.classifier.weight, network.classifier.bias]


def _loss(network, encoded):
    labels = torch.cat([of_domain for _, of_domain in encoded])
    return _risk(_head(network), torch.cat([features for features, _ in encoded]), labels)


@pytest.mark.parametrize("delta", [100.0, 0.05])
def test_objective_and_gradient_are_the_transcription(delta):
    algorithm, batches = Transfer(double_network(), 3, 0.7, delta, 4, 0.1), uneven_batches((3, 5, 2))
    encoded = _encoded(algorithm.network, batches)
    adversary = _adversary(_head(algorithm.network), encoded, 0.7, delta, 4, 0.1)
    distance = sum(((a - c) ** 2).sum() for a, c in zip(adversary, _head(algorithm.network), strict=True)).sqrt()
    assert (distance.item() == pytest.approx(delta)) is (delta < 1)
    expected = _loss(algorithm.network, encoded) + 0.7 * _gap(adversary, encoded)
    loss = algorithm.objective(batches)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    parameters = list(algorithm.parameters())
    gradients = [torch.autograd.grad(value, parameters) for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-11)


def test_the_adversary_widens_the_gap():
    algorithm, batches = Transfer(double_network(), 2, lr_d=0.1), uneven_batches()
    features = torch.cat([z for z, _ in _encoded(algorithm.network, batches)]).detach()
    gaps = [_gap(_head(algorithm.network), _encoded(algorithm.network, batches)).item()]
    for steps in (1, 5, 20):
        algorithm.d_steps = steps
        gaps.append(algorithm._gap(features, algorithm._ascended(features, batches), batches).item())
    assert gaps == sorted(gaps)
    assert gaps[-1] > gaps[0]


def test_without_steps_or_radius_the_adversary_is_the_classifier():
    batches = uneven_batches()
    for options in ({"d_steps": 0}, {"delta": 0.0}, {"lr_d": 0.0}):
        algorithm = Transfer(double_network(), 2, **options)
        encoded = _encoded(algorithm.network, batches)
        expected = _loss(algorithm.network, encoded) + _gap(_head(algorithm.network), encoded)
        torch.testing.assert_close(algorithm.objective(batches), expected, rtol=1e-12, atol=0)


def test_without_a_weight_it_is_erm():
    batches = uneven_batches()
    assert torch.equal(
        Transfer(double_network(), 2, 0.0).objective(batches), ERM(double_network(), 2).objective(batches)
    )


@pytest.mark.parametrize("two_steps", [False, True])
def test_one_source_domain_is_erm_and_warns(two_steps):
    with pytest.warns(UserWarning, match="Transfer with one source domain is ERM"):
        algorithm = Transfer(double_network(), 1, two_steps=two_steps)
    erm = ERM(double_network(), 1)
    for each in (algorithm, erm):
        steps = built_steps(each)
        for step in (1, 2, 3):
            steps.take(uneven_batches((6,), step), step)
        assert steps.passes == 3
    assert all(torch.equal(a, b) for a, b in zip(algorithm.parameters(), erm.parameters(), strict=True))


def test_several_steps_are_those_of_adam():
    algorithm = Transfer(double_network(), 2, 0.7, 0.05, 3, 0.1)
    reference = copy.deepcopy(algorithm.network)
    adam = torch.optim.Adam(reference.parameters(), lr=1e-2)
    steps = built_steps(algorithm)
    for step in (1, 2, 3, 4):
        batches = uneven_batches(seed=step)
        encoded = _encoded(reference, batches)
        adversary = _adversary(_head(reference), encoded, 0.7, 0.05, 3, 0.1)
        adam.zero_grad()
        (_loss(reference, encoded) + 0.7 * _gap(adversary, encoded)).backward()
        adam.step()
        steps.take(batches, step)
    assert steps.passes == 4
    torch.testing.assert_close(list(algorithm.network.parameters()), list(reference.parameters()), rtol=1e-6, atol=1e-8)


def test_two_steps_are_those_of_domainbed():
    """A step on the loss, one on the gap by the adversary from the batch before, then the adversary's ascent."""
    algorithm = Transfer(double_network(), 2, 0.7, 0.05, 3, 0.1, two_steps=True)
    reference = copy.deepcopy(algorithm.network)
    adam = torch.optim.Adam(reference.parameters(), lr=1e-2)
    adversary = [p.detach().clone() for p in _head(reference)]
    steps = built_steps(algorithm)
    for step in (1, 2, 3, 4):
        batches = uneven_batches(seed=step)
        adam.zero_grad()
        loss = _loss(reference, _encoded(reference, batches))
        loss.backward()
        adam.step()
        adam.zero_grad()
        (0.7 * _gap(adversary, _encoded(reference, batches))).backward()
        adam.step()
        adversary = _adversary(_head(reference), _encoded(reference, batches), 0.7, 0.05, 3, 0.1)
        torch.testing.assert_close(steps.take(batches, step), loss.detach(), rtol=1e-7, atol=1e-9)
    assert steps.passes == 8
    torch.testing.assert_close(list(algorithm.network.parameters()), list(reference.parameters()), rtol=1e-6, atol=1e-8)
    kept = [p.detach() for p in (algorithm.adversary.weight, algorithm.adversary.bias)]
    torch.testing.assert_close(kept, adversary, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("two_steps", [False, True])
@pytest.mark.parametrize("sizes", [(4, 6), (2, 4, 1, 3, 2)])
@pytest.mark.parametrize("optimizer", ["adam", "sam", "adahessian"])
def test_resume_is_bit_equal(optimizer, sizes, two_steps):
    assert_resumes(
        lambda: Transfer(double_network(0.1), len(sizes), lr_d=0.1, d_steps=3, two_steps=two_steps), optimizer, sizes
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty_weight": -1.0}, "Invalid penalty_weight value: -1.0; it must be at least 0"),
        ({"delta": float("nan")}, "Invalid delta value: nan"),
        ({"lr_d": -1.0}, "Invalid lr_d value: -1.0"),
        ({"d_steps": -1}, "Invalid d_steps value: -1; it must be a whole number, at least 0"),
        ({"d_steps": 1.5}, "Invalid d_steps value: 1.5"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Transfer(double_network(), 2, **options)


def test_it_is_registered_with_its_defaults():
    assert ALGORITHMS["transfer"] is Transfer
    registered, constructed = defaults(Transfer)
    assert registered == constructed
    space = search_space("PACS", "photographs", True, "transfer", "adam", "none", "protocol")
    chosen = {d: setting(space, {}, 0, 0, d).get("algorithm.two_steps") for d in ("domainbed", "domainbed-head")}
    assert chosen == {"domainbed": None, "domainbed-head": True}
