import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from algorithms.made_up_batches import uneven_batches
from draws import draw
from shiftproof.algorithms import ERM
from shiftproof.algorithms.mtl import MTL
from shiftproof.annealing import Annealer
from shiftproof.base.randomness import seed_hash
from shiftproof.models import build_network
from shiftproof.optim import SAM
from shiftproof.training import StepBuilder


def _network():
    return build_network("small_conv", (1, 16, 16), 3, dropout=0.0, seed=0).double()


def _algorithm(domains, build=lambda params: torch.optim.SGD(params, lr=0.1), **hparams):
    algorithm = MTL(_network(), domains, **hparams).double()
    torch.manual_seed(0)
    torch.nn.init.normal_(algorithm.network.embedding_classifier.weight)
    algorithm.build_optimizers(build)
    return algorithm


def _step(algorithm, batches, step=1):
    def make_closure(batches):
        def closure():
            algorithm.zero_grad()
            return algorithm.backward(batches)

        return closure

    return algorithm.update(batches, step, make_closure)


def _reference(network, batches, memory, ema):
    """The loss with a classifier of features and embedding side by side, and the embeddings."""
    weight = torch.cat([network.classifier.weight, network.embedding_classifier.weight], dim=1)
    losses, embeddings = [], []
    for (images, labels), remembered in zip(batches, memory, strict=True):
        features = [network.featurizer(image[None])[0] for image in images]
        mean = sum(features) / len(features)
        embedding = mean if remembered is None else ema * mean + (1 - ema) * remembered
        terms = []
        for z, label in zip(features, labels, strict=True):
            logits = weight @ torch.cat([z, embedding]) + network.classifier.bias
            terms.append(logits.exp().sum().log() - logits[label])
        losses.append(sum(terms) / len(terms))
        embeddings.append(embedding.detach())
    return sum(losses) / len(losses), embeddings


@pytest.mark.parametrize("ema", [0.5, 1.0])
def test_three_updates(ema):
    algorithm = _algorithm(3, ema=ema)
    network, memory = copy.deepcopy(algorithm.network), [None] * 3
    for step in (1, 2, 3):
        batches = uneven_batches((3, 5, 1), step)
        loss, memory = _reference(network, batches, memory, ema)
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        with torch.no_grad():
            for p, g in zip(network.parameters(), gradients, strict=True):
                p -= 0.1 * g
        taken = _step(algorithm, batches, step)
        torch.testing.assert_close(taken, loss.detach(), rtol=1e-9, atol=0)
        torch.testing.assert_close(algorithm.embeddings, torch.stack(memory), rtol=1e-9, atol=1e-12)
    for p, expected in zip(algorithm.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-8, atol=1e-12)


def test_in_evaluation_the_embedding_is_the_mean_of_the_batch():
    algorithm = _algorithm(2).eval()
    (images, _), (others, _) = uneven_batches((4, 4))
    network = algorithm.network
    features = network.featurizer(images)
    weight = torch.cat([network.classifier.weight, network.embedding_classifier.weight], dim=1)
    for z, logits in zip(features, algorithm.predict(images), strict=True):
        side_by_side = torch.cat([z, features.mean(0)])
        torch.testing.assert_close(logits, weight @ side_by_side + network.classifier.bias, rtol=1e-10, atol=1e-12)
    beside_others = algorithm.predict(torch.cat([images[:1], others]))[0]
    assert (beside_others - algorithm.predict(images)[0]).abs().max() > 1e-3
    assert algorithm.transductive


def test_it_starts_as_the_network_that_was_given():
    network, batches = _network(), uneven_batches((4, 4))
    expected = ERM(network, 2).objective(batches)
    torch.testing.assert_close(MTL(network, 2).double().objective(batches), expected, rtol=1e-12, atol=0)


def test_two_evaluations_are_equal_and_a_step_of_many_passes_moves_the_embeddings_once():
    algorithm = _algorithm(2, lambda params: SAM(params, base=torch.optim.SGD, rho=0.5, lr=0.1), ema=0.5)
    batches = uneven_batches((4, 4))
    assert torch.equal(algorithm.objective(batches), algorithm.objective(batches))
    assert not algorithm.embeddings.any()
    first = [algorithm.network.featurizer(images).mean(0).detach() for images, _ in batches]
    StepBuilder(algorithm, Annealer(), seed=0).take(batches, 1)
    torch.testing.assert_close(algorithm.embeddings, torch.stack(first), rtol=1e-9, atol=1e-12)


def test_accumulated_parts_give_the_embeddings_of_the_whole():
    whole, parts = (_algorithm(2, ema=0.5) for _ in range(2))
    builders = [StepBuilder(whole, Annealer(), seed=0), StepBuilder(parts, Annealer(), seed=0, accumulate=2)]
    for builder in builders:
        builder.take(uneven_batches((4, 6)), 1)
    torch.testing.assert_close(parts.embeddings, whole.embeddings, rtol=1e-9, atol=1e-12)


def test_resumed_it_continues_bit_equal():
    whole, again = (StepBuilder(_algorithm(2, ema=0.5), Annealer(), seed=0) for _ in range(2))
    for step in (1, 2):
        whole.take(uneven_batches((3, 4), step), step)
    again.algorithm.load_state_dict(copy.deepcopy(whole.algorithm.state_dict()))
    for step in (3, 4):
        batches = uneven_batches((3, 4), step)
        assert torch.equal(whole.take(batches, step), again.take(batches, step))
    assert torch.equal(whole.algorithm.embeddings, again.algorithm.embeddings)


def test_the_extended_network_predicts_alone():
    algorithm = _algorithm(2)
    loaded = MTL.extend(_network()).double()
    loaded.load_state_dict(algorithm.network.state_dict())
    images = uneven_batches((4,))[0][0]
    assert torch.equal(loaded.eval()(images), algorithm.eval().predict(images))


def test_under_autocast_the_embeddings_are_float32():
    algorithm = MTL(_network().float(), 2)
    batches = [(images.float(), labels) for images, labels in uneven_batches((4, 4))]
    with torch.autocast("cpu", torch.bfloat16):
        half = algorithm.objective(batches)
    assert float(half.detach()) == pytest.approx(float(algorithm.objective(batches).detach()), rel=0.02)
    assert algorithm.embeddings.dtype == torch.float32
    assert F.mse_loss(algorithm.embeddings, torch.zeros_like(algorithm.embeddings)) == 0


@pytest.mark.parametrize("ema", [0.0, 1.1, -0.5, float("nan")])
def test_invalid_ema(ema):
    with pytest.raises(ValueError, match="Invalid ema value"):
        MTL(_network(), 2, ema=ema)


def test_draws_are_those_of_domainbed():
    random = np.random.RandomState(seed_hash(seed_hash(3, 1), "mtl_ema"))
    assert draw(MTL.hparams, 3, 1) == {"ema": random.choice([0.5, 0.9, 0.99, 1.0])}
    assert draw(MTL.hparams, 0, 1) == {"ema": 0.99}
