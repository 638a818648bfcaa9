import math

import pytest
import torch

from algorithms.made_up_batches import defaults
from algorithms.made_up_runs import assert_continues_bit_equal, gradients, made_up, small, steps_of
from draws import draw
from shiftproof.algorithms import ERM, VRGD


def _parts(batches, parts, by_domain):
    """Every part with its share in the mean."""
    if by_domain:
        return [(batch, 1 / len(batches)) for batch in batches]
    images, labels = (torch.cat(whole) for whole in zip(*batches, strict=True))
    count = min(parts, len(labels))
    rows = [[i for i in range(len(labels)) if i % count == k] for k in range(count)]
    return [((images[own], labels[own]), len(own) / len(labels)) for own in rows]


def _transcription(algorithm, batches, gamma, parts, by_domain):
    """With all gradients at hand: mean and variance over the parts, then ratios of at most 1e12 over their mean."""
    parameters = list(algorithm.parameters())
    split = _parts(batches, parts, by_domain)
    losses = []
    for (images, labels), _ in split:
        logits = algorithm.predict(images)
        of_rows = [z.exp().sum().log() - z[y] for z, y in zip(logits, labels, strict=True)]
        losses.append(sum(of_rows) / len(of_rows))
    gradients_of = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    shares = [share for _, share in split]
    scaled = []
    for own in zip(*gradients_of, strict=True):
        mean = sum(share * g for share, g in zip(shares, own, strict=True))
        variance = sum(share * (g - mean) ** 2 for share, g in zip(shares, own, strict=True))
        elements = zip(mean.flatten().tolist(), variance.flatten().tolist(), strict=True)
        ratios = [m**2 / max(v, m**2 / 1e12) if m else 0.0 for m, v in elements]
        average = sum(ratios) / len(ratios)
        factors = [min(max(ratio / average, gamma), 1.0) if average else gamma for ratio in ratios]
        scaled.append(mean * torch.tensor(factors, dtype=torch.float64).view_as(mean))
    return sum(share * loss for share, loss in zip(shares, losses, strict=True)).detach(), scaled


@pytest.mark.parametrize("counts", [(9,), (6, 7), (2, 5, 3), (2, 2, 3, 2, 2)])
@pytest.mark.parametrize(("parts", "by_domain"), [(2, False), (3, False), (8, False), (8, True)])
@pytest.mark.parametrize("gamma", [0.0, 0.1])
def test_loss_and_gradients_are_those_of_the_transcription(counts, parts, by_domain, gamma):
    if by_domain and len(counts) == 1:
        pytest.skip("one part has no variance")
    algorithm = small(VRGD, len(counts), dtype=torch.float64, gamma=gamma, parts=parts, by_domain=by_domain)
    batches = made_up(counts, dtype=torch.float64)
    expected_loss, expected = _transcription(algorithm, batches, gamma, parts, by_domain)
    found = gradients(algorithm, batches)
    for (name, p), gradient in zip(algorithm.named_parameters(), expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-10 * float(gradient.abs().max()))
        assert p.grad is not None
    torch.testing.assert_close(algorithm.backward(batches), expected_loss, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("hparams", "batches"),
    [
        ({"gamma": 1.0}, made_up((4, 4), dtype=torch.float64)),
        ({"parts": 1}, made_up((3, 5), dtype=torch.float64)),
        ({"by_domain": True}, made_up((4,), dtype=torch.float64)),
        ({"by_domain": True}, made_up((4,), dtype=torch.float64) * 3),  # on which all parts agree
    ],
    ids=["the least factor is 1", "one part", "one domain", "equal domains"],
)
def test_where_there_is_nothing_to_compare_it_is_erm(hparams, batches):
    erm, vrgd = (small(kind, len(batches), dtype=torch.float64, **own) for kind, own in ((ERM, {}), (VRGD, hparams)))
    expected = gradients(erm, batches)
    for name, gradient in gradients(vrgd, batches).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-13)


def test_elements_without_any_gradient_stay_finite_and_zero():
    algorithm = small(VRGD)
    batches = [(torch.zeros_like(images), labels) for images, labels in made_up((4, 4))]
    found = gradients(algorithm, batches)
    assert all(bool(gradient.isfinite().all()) for gradient in found.values())
    first = next(iter(found.values()))
    assert torch.equal(first, torch.zeros_like(first))


def test_gradients_are_added_to_those_that_are_there():
    algorithm, batches = small(VRGD, dtype=torch.float64), made_up((4, 4), dtype=torch.float64)
    expected = {name: 2 * gradient for name, gradient in gradients(algorithm, batches).items()}
    algorithm.backward(batches)
    for name, p in algorithm.named_parameters():
        torch.testing.assert_close(p.grad, expected[name])


@pytest.mark.filterwarnings("ignore:Using backward")
def test_the_graph_is_kept_where_it_is_asked_for():
    algorithm, batches = small(VRGD, dtype=torch.float64, gamma=1.0), made_up((4, 4), dtype=torch.float64)
    erm = small(ERM, dtype=torch.float64)
    products = []
    for one in (algorithm, erm):
        one.zero_grad()
        one.backward(batches, create_graph=True)
        weight = one.network.classifier.weight
        products.append(torch.autograd.grad(weight.grad.sum(), weight)[0])
        one.zero_grad()
    torch.testing.assert_close(*products, rtol=1e-8, atol=1e-12)


def test_every_image_passes_once():
    steps = steps_of(small(VRGD, 3, parts=4))
    counts, predict = [], steps.algorithm.predict
    steps.algorithm.predict = lambda images: counts.append(len(images)) or predict(images)
    steps.take(made_up((4, 3, 2)), 1)
    assert counts == [3, 2, 2, 2]


@pytest.mark.parametrize("by_domain", [False, True])
@pytest.mark.parametrize("optimizer", ["adam", "sam", "adahessian"])
def test_a_run_continues_bit_equal(optimizer, by_domain):
    assert_continues_bit_equal(lambda: small(VRGD, dropout=0.3, by_domain=by_domain), optimizer, 3, 5)


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({"gamma": -0.1}, r"Invalid gamma value: -0.1; it must be in \[0, 1\]"),
        ({"gamma": math.nan}, r"Invalid gamma value: nan; it must be in \[0, 1\]"),
        ({"parts": 0}, "Invalid parts value: 0; it must be a whole number, at least 1"),
        ({"parts": 2.5}, "Invalid parts value: 2.5; it must be a whole number, at least 1"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(hparams, message):
    with pytest.raises(ValueError, match=message):
        small(VRGD, **hparams)


def test_registered_defaults_are_the_constructors_and_searches_keep_them():
    registered, constructed = defaults(VRGD)
    assert registered == constructed == draw(VRGD.hparams, 0, 0) == draw(VRGD.hparams, 3, 1)
