import pytest
import torch

from shiftproof.algorithms import ERM, Algorithm
from shiftproof.models import build_network


def _batches():
    torch.manual_seed(0)
    return [
        (torch.randn(n, 1, 16, 16, dtype=torch.float64), torch.randint(4, (n,))) for n in (3, 5)
    ]  # uneven on purpose


def test_objective_is_the_mean_cross_entropy_over_all_images():
    algorithm = ERM(build_network("small_conv", (1, 16, 16), 4, dropout=0.0, seed=0), 2).double()
    batches = _batches()
    losses = []
    for images, labels in batches:
        for image, label in zip(images, labels, strict=True):
            logits = algorithm.predict(image[None])[0]
            losses.append(logits.exp().sum().log() - logits[label])
    torch.testing.assert_close(algorithm.objective(batches), torch.stack(losses).mean(), rtol=1e-12, atol=0)
    expected = [torch.stack(losses[:3]).mean(), torch.stack(losses[3:]).mean()]
    torch.testing.assert_close(algorithm.domain_losses(batches), expected, rtol=1e-12, atol=0)


def test_an_algorithm_without_an_objective_says_so():
    class Nothing(Algorithm):
        pass

    algorithm = Nothing(build_network("small_conv", (1, 16, 16), 4, dropout=0.0, seed=0), 2)
    with pytest.raises(NotImplementedError, match="Nothing must define objective, backward or update"):
        algorithm.backward(_batches())
