import pytest
import torch

from algorithms.made_up_runs import assert_continues_bit_equal, gradients, loss_of_image, made_up, small
from draws import draw
from shiftproof.algorithms import ERM
from shiftproof.algorithms.spectral_decoupling import SpectralDecoupling


def _transcription(algorithm, batches, weight):
    """Equation 25 by loops, with the mean over images and classes of the squared logits."""
    losses, squares = [], []
    for images, labels in batches:
        for image, label in zip(images, labels, strict=True):
            losses.append(loss_of_image(algorithm, image, label))
            squares += [logit**2 for logit in algorithm.predict(image[None])[0]]
    return sum(losses) / len(losses) + weight * sum(squares) / len(squares)


@pytest.mark.parametrize("counts", [(5,), (3, 4), (2, 5, 3), (1, 2, 3, 2, 1)])
def test_objective_and_gradient_are_those_of_the_transcription(counts):
    algorithm = small(SpectralDecoupling, len(counts), dtype=torch.float64, penalty_weight=0.7)
    batches = made_up(counts, dtype=torch.float64)
    expected = _transcription(algorithm, batches, 0.7)
    torch.testing.assert_close(algorithm.objective(batches), expected, rtol=1e-12, atol=0)
    found = gradients(algorithm, batches)
    for p, gradient in zip(found.values(), torch.autograd.grad(expected, list(algorithm.parameters())), strict=True):
        torch.testing.assert_close(p, gradient, rtol=1e-9, atol=1e-13)


def test_without_weight_it_is_erm():
    batches = made_up((4, 3), dtype=torch.float64)
    without, erm = small(SpectralDecoupling, penalty_weight=0.0), small(ERM)
    assert torch.equal(without.double().objective(batches), erm.double().objective(batches))


def test_the_papers_binary_form_differs_in_the_unit_of_the_weight():
    """Of logits (y, -y) for one of y: half the square of the paper is the mean of the squares at half the weight."""
    logit = torch.tensor([[0.3], [-1.2]])
    both = torch.cat([logit, -logit], 1)
    paper = logit.square().mean() / 2
    torch.testing.assert_close(paper, both.square().mean() / 2)


@pytest.mark.parametrize("optimizer", ["adam", "sam"])
def test_a_run_continues_bit_equal(optimizer):
    assert_continues_bit_equal(lambda: small(SpectralDecoupling, dropout=0.3), optimizer, 2, 4)


@pytest.mark.parametrize("weight", [-0.1, float("inf"), float("nan")])
def test_hyperparameters_out_of_range_are_refused(weight):
    with pytest.raises(ValueError, match=f"Invalid penalty_weight value: {weight}; it must be at least 0"):
        small(SpectralDecoupling, penalty_weight=weight)


def test_defaults_are_domainbeds():
    assert draw(SpectralDecoupling.hparams, 0, 0) == {"penalty_weight": 0.1}
    assert 1e-5 <= draw(SpectralDecoupling.hparams, 1, 0)["penalty_weight"] < 0.1
