import pytest
import torch

from algorithms.made_up_batches import assert_resumes, built_steps, defaults, double_network, uneven_batches
from shiftproof.algorithms import ALGORITHMS, ERM, CutMix
from shiftproof.base.choices import PICTURES


def _cross_entropy(logits, label):
    return logits.exp().sum().log() - logits[label]


def _transcription(network, batches, p, alpha):
    """The paper's appendix A, image by image and pixel by pixel, with its draws from torch's generator."""
    images, labels = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    if torch.rand(()).item() >= p:
        return sum(_cross_entropy(network(x[None])[0], y) for x, y in zip(images, labels, strict=True)) / len(labels)
    concentration = torch.tensor(alpha, dtype=torch.float64)
    ratio = (1 - torch.distributions.Beta(concentration, concentration).sample().item()) ** 0.5
    inside = []
    for side in (16, 16):
        centre = torch.randint(side, ()).item()
        half = int(side * ratio) // 2
        inside.append([centre - half <= place < centre + half for place in range(side)])
    order = torch.randperm(len(images)).tolist()
    share = 1 - sum(a and b for a in inside[0] for b in inside[1]) / 256
    losses = []
    for i, j in enumerate(order):
        mixed = images[i].clone()
        for row in range(16):
            for column in range(16):
                if inside[0][row] and inside[1][column]:
                    mixed[0, row, column] = images[j, 0, row, column]
        logits = network(mixed[None])[0]
        losses.append(share * _cross_entropy(logits, labels[i]) + (1 - share) * _cross_entropy(logits, labels[j]))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("sizes", [(3, 5, 2), (4,)])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_objective_and_gradient_are_the_transcription(seed, sizes):
    algorithm, batches = CutMix(double_network(), len(sizes), p=0.7, alpha=0.8), uneven_batches(sizes)
    before = [images.clone() for images, _ in batches]
    torch.manual_seed(seed)
    loss = algorithm.objective(batches)
    torch.manual_seed(seed)
    expected = _transcription(algorithm.network, batches, 0.7, 0.8)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    parameters = list(algorithm.parameters())
    gradients = [torch.autograd.grad(value, parameters) for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-11)
    assert all(torch.equal(images, kept) for (images, _), kept in zip(batches, before, strict=True))


def test_some_of_those_seeds_mix_and_some_do_not():
    draws = [torch.rand((), generator=torch.Generator().manual_seed(seed)).item() < 0.7 for seed in (0, 1, 2, 3)]
    assert set(draws) == {True, False}


def test_without_mixing_it_is_erm(monkeypatch):
    batches = uneven_batches((4, 1, 3))
    expected = ERM(double_network(), 3).objective(batches)
    assert torch.equal(CutMix(double_network(), 3, p=0.0).objective(batches), expected)
    whole = CutMix(double_network(), 3)
    monkeypatch.setattr(whole._shares, "sample", lambda: torch.tensor(1.0))  # a rectangle of no pixel
    torch.testing.assert_close(whole.objective(batches), expected, rtol=1e-12, atol=0)


def test_rectangles_have_the_area_that_the_share_tells():
    algorithm = CutMix(double_network(), 2)
    torch.manual_seed(0)
    areas, shares = [], []
    algorithm._shares.sample = lambda: shares.append(torch.rand(())) or shares[-1]
    for _ in range(4000):
        (top, bottom), (left, right) = algorithm._rectangle(400, 200)
        assert 0 <= top <= bottom <= 400
        assert 0 <= left <= right <= 200
        areas.append((bottom - top) * (right - left) / 80_000)
        assert areas[-1] <= 1 - shares[-1] + 1e-6
    # uniform centres keep (1 - r / 4) of a side of length r inside: E[r^2 (1 - r / 4)^2] with r^2 uniform
    assert sum(areas) / 4000 == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.015)


def test_a_step_is_one_pass_and_resumes_bit_equal():
    steps = assert_resumes(lambda: CutMix(double_network(0.1), 2, p=0.7), "sam")
    assert steps.passes == 6 * 2
    one = built_steps(CutMix(double_network(), 2))
    one.take(uneven_batches(), 1)
    assert one.passes == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 1.1}, r"Invalid p value: 1.1; it must be in \[0, 1\]"),
        ({"alpha": 0.0}, "Invalid alpha value: 0.0; it must be at least 0.01"),
        ({"alpha": float("nan")}, "Invalid alpha value: nan"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CutMix(double_network(), 2, **options)


def test_it_is_registered_with_its_defaults():
    assert ALGORITHMS["cutmix"] is CutMix
    registered, constructed = defaults(CutMix)
    assert registered == constructed == {"p": 1.0, "alpha": 1.0}
    assert CutMix.kinds == PICTURES
