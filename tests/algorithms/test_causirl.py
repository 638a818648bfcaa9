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
from algorithms.test_feature_matching import _coral, _mmd
from draws import draw
from shiftproof.algorithms import CORAL, ERM
from shiftproof.algorithms.causirl import CausIRLCORAL, CausIRLMMD

both = pytest.mark.parametrize("kind", [CausIRLCORAL, CausIRLMMD])
with_reference = pytest.mark.parametrize(("kind", "reference"), [(CausIRLCORAL, _coral), (CausIRLMMD, _mmd)])


def _halves(features, seed):
    """Cut the rows of each domain at a random place, one after the other."""
    torch.manual_seed(seed)
    first, second = [], []
    for rows in features:
        cut = int(torch.randint(len(rows), ()))
        for i, row in enumerate(rows):
            (first if i < cut else second).append(row)
    return first, second


@with_reference
@pytest.mark.parametrize("counts", [(6,), (5, 4), (3, 5, 4), (2, 3, 4, 2, 3)])
def test_objective_is_that_of_the_transcription(kind, reference, counts):
    algorithm = small(kind, len(counts), dtype=torch.float64, penalty_weight=2.5)
    batches = made_up(counts, dtype=torch.float64)
    penalties = 0
    for seed in range(8):
        features = [algorithm.network.featurizer(images) for images, _ in batches]
        first, second = _halves(features, seed)
        expected = float(sum(domain_losses(algorithm, batches)).detach()) / len(batches)
        if min(len(first), len(second)) > 1:
            penalties += 1
            expected += 2.5 * reference(torch.stack(first), torch.stack(second))
        torch.manual_seed(seed)
        assert float(algorithm.objective(batches).detach()) == pytest.approx(expected, rel=1e-10)
    assert penalties > 2


@both
def test_the_gradient_is_that_of_the_penalty_of_the_two_parts(kind):
    algorithm = small(kind, 3, dtype=torch.float64, penalty_weight=2.0)
    batches = made_up((4, 5, 4), dtype=torch.float64)
    features = [algorithm.network.featurizer(images) for images, _ in batches]
    first, second = _halves(features, 3)
    halves = [torch.stack(first), torch.stack(second)]
    penalty = algorithm.penalty(halves)
    expected = sum(domain_losses(algorithm, batches)) / 3 + 2 * penalty
    torch.manual_seed(3)
    found = gradients(algorithm, batches)
    for p, gradient in zip(found.values(), torch.autograd.grad(expected, list(algorithm.parameters())), strict=True):
        torch.testing.assert_close(p, gradient, rtol=1e-8, atol=1e-12)


@both
def test_without_weight_it_is_erm(kind):
    batches = made_up((4, 4), dtype=torch.float64)
    without, erm = small(kind, dtype=torch.float64, penalty_weight=0.0), small(ERM, dtype=torch.float64)
    torch.testing.assert_close(without.objective(batches), erm.objective(batches), rtol=1e-12, atol=0)


@both
def test_single_images_have_no_parts_to_compare(kind):
    batches = made_up((1, 1))
    torch.testing.assert_close(small(kind).objective(batches), small(ERM).objective(batches))


@both
@pytest.mark.filterwarnings("error")
def test_with_one_domain_it_compares_parts_of_that_and_says_nothing(kind):
    batches = made_up((8,), dtype=torch.float64)
    torch.manual_seed(1)
    loss = small(kind, 1, dtype=torch.float64).objective(batches)
    assert loss > small(ERM, 1, dtype=torch.float64).objective(batches)


@both
@pytest.mark.parametrize("optimizer", ["adam", "sam"])
def test_a_run_continues_bit_equal(kind, optimizer):
    assert_continues_bit_equal(lambda: small(kind, dropout=0.3), optimizer, 2, 5)


def test_all_passes_of_a_step_see_the_same_parts():
    steps = steps_of(small(CausIRLCORAL), "sam")
    seen, penalty = [], CORAL.penalty

    def recorded(self, features):
        seen.append([len(part) for part in features])
        return penalty(self, features)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CORAL, "penalty", recorded)
        for step in range(1, 6):
            steps.take(made_up((8, 8), seed=step), step)
    assert seen[::2] == seen[1::2]
    assert len({tuple(sizes) for sizes in seen}) > 1


@both
def test_invalid_penalty_weight(kind):
    with pytest.raises(ValueError, match="Invalid penalty_weight value"):
        small(kind, penalty_weight=-1.0)


@both
def test_the_draws_are_those_of_coral(kind):
    assert draw(kind.hparams, 3, 1) == draw(CORAL.hparams, 3, 1)
