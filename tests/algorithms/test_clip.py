"""Zero-shot classification and CLIPood, transcribed in double precision."""

import copy

import pytest
import torch

from algorithms.made_up_runs import assert_continues_bit_equal, gradients, made_up, small, steps_of
from shiftproof.algorithms import ALGORITHMS, ERM, CLIPood, ZeroShot
from shiftproof.models import CosineClassifier, build_network, weighted_cross_entropy
from shiftproof.training.step import split_batches


def _double(margin=0.3, domains=2):
    algorithm = small(CLIPood, domains, dtype=torch.float64, margin=margin)
    with torch.no_grad():
        weight = algorithm.network.classifier.weight
        weight /= weight.norm(dim=1, keepdim=True)  # which was rounded to single precision
    return algorithm


def _cosine(a, b):
    return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())


def _margin_softmax(algorithm, batches, margin):
    """The margin metric softmax as in the paper, image by image."""
    network, losses = algorithm.network, []
    vectors = network.classifier.weight
    for images, labels in batches:
        for image, label in zip(images, labels, strict=True):
            features = network.featurizer(image[None])[0]
            own = torch.exp(100 * _cosine(features, vectors[label]))
            others = [
                torch.exp(100 * (_cosine(features, other) + margin * (1 - _cosine(vectors[label], other))))
                for c, other in enumerate(vectors)
                if c != label
            ]
            losses.append(-torch.log(own / (own + sum(others))))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("counts", [(5,), (4, 6), (2, 3, 4)])
@pytest.mark.parametrize("margin", [0.0, 0.3, 1.5])
def test_the_loss_is_the_margin_metric_softmax(margin, counts):
    algorithm = _double(margin, len(counts))
    batches = made_up(counts, dtype=torch.float64)
    expected = _margin_softmax(algorithm, batches, margin)
    torch.testing.assert_close(algorithm.objective(batches), expected, rtol=1e-10, atol=1e-12)
    found = gradients(algorithm, batches)
    assert "network.classifier.weight" not in found
    parameters = dict(algorithm.named_parameters())
    for name, gradient in zip(found, torch.autograd.grad(expected, [parameters[name] for name in found]), strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-10)


def test_it_subtracts_the_vector_of_the_class_from_the_features_as_the_published_code_does():
    algorithm = _double()
    [(images, labels)] = made_up((6,), dtype=torch.float64)
    vectors = algorithm.network.classifier.weight
    features = algorithm.network.featurizer(images)
    shifted = features / features.norm(dim=1, keepdim=True) - 0.3 * vectors[labels]
    expected = torch.nn.functional.cross_entropy(100 * shifted @ vectors.T, labels)
    torch.testing.assert_close(algorithm.objective([(images, labels)]), expected, rtol=1e-10, atol=1e-12)


def test_without_a_margin_it_is_erm():
    clipood = _double(0.0)
    erm = ERM(copy.deepcopy(clipood.network), 2)
    batches = made_up(dtype=torch.float64)
    torch.testing.assert_close(clipood.objective(batches), erm.objective(batches))
    found, expected = gradients(clipood, batches), gradients(erm, batches)
    torch.testing.assert_close(found, expected)


def test_predictions_have_no_margin_and_the_loss_weighs_classes():
    plain, wide = _double(0.0), _double(2.0)
    batches = made_up(dtype=torch.float64)
    assert torch.equal(plain.predict(batches[0][0]), wide.predict(batches[0][0]))
    wide.network.loss = weighted_cross_entropy(torch.tensor([1.0, 2.0, 5.0]))
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    losses = torch.stack([_margin_softmax(wide, [(images[i : i + 1], labels[i : i + 1])], 2.0) for i in range(8)])
    weights = torch.tensor([1.0, 2.0, 5.0]).double()[labels]
    torch.testing.assert_close(wide.objective(batches), (weights * losses).sum() / weights.sum())


def test_the_vectors_stay_and_all_else_moves():
    algorithm = small(CLIPood)
    start = copy.deepcopy(algorithm.state_dict())
    steps = steps_of(algorithm, "adam")
    for step in (1, 2, 3):
        steps.take(made_up(seed=step), step)
    same = [name for name, value in algorithm.state_dict().items() if torch.equal(value, start[name])]
    assert same == ["network.classifier.weight"]


def test_it_resumes_bit_equal():
    assert_continues_bit_equal(lambda: small(CLIPood, dropout=0.2), "adam", 2, 4)


def test_parts_of_a_batch_accumulate_to_its_gradient():
    whole, parts = _double(), steps_of(_double(), accumulate=2)
    batches = made_up(dtype=torch.float64)
    expected = gradients(whole, batches)
    split_losses = [whole.objective(part) for part in split_batches(batches, 2)]
    torch.testing.assert_close(torch.stack(split_losses).mean(), whole.objective(batches))
    parts.take(batches, 1)
    found = {name: p.grad for name, p in parts.algorithm.named_parameters() if p.grad is not None}
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_in_bfloat16_it_stays_near(precision):
    exact = steps_of(small(CLIPood)).take(made_up(), 1)
    found = steps_of(small(CLIPood), precision=precision).take(made_up(), 1)
    torch.testing.assert_close(found, exact, rtol=0.1, atol=0.0)


def test_zero_shot_is_the_class_of_the_greatest_cosine():
    algorithm = small(ZeroShot, dtype=torch.float64).eval()
    images = torch.cat([images for images, _ in made_up((20, 30), dtype=torch.float64)])
    vectors = torch.randn(3, 64, generator=torch.Generator().manual_seed(7)).double()  # as `small` makes them
    cosines = torch.nn.functional.cosine_similarity(algorithm.network.featurizer(images)[:, None], vectors[None], dim=2)
    logits = algorithm.predict(images)
    assert torch.equal(logits.argmax(1), cosines.argmax(1))
    torch.testing.assert_close(logits, 100 * cosines, rtol=1e-5, atol=1e-5)  # vectors are of single precision


def test_zero_shot_moves_nothing():
    algorithm = small(ZeroShot)
    start = copy.deepcopy(algorithm.state_dict())
    algorithm.build_optimizers(None)
    assert algorithm.optimizers == {}
    loss = algorithm.update(made_up(), 1, None)
    assert torch.isfinite(loss)
    assert not loss.requires_grad
    assert all(torch.equal(value, start[name]) for name, value in algorithm.state_dict().items())


def test_a_classifier_of_vectors_is_frozen_and_of_length_one():
    vectors = torch.tensor([[3.0, 4.0], [0.0, -2.0]])
    classifier = CosineClassifier(vectors)
    assert (classifier.in_features, classifier.out_features, classifier.bias) == (2, 2, None)
    torch.testing.assert_close(classifier.weight, torch.tensor([[0.6, 0.8], [0.0, -1.0]]))
    assert not classifier.weight.requires_grad
    torch.testing.assert_close(classifier(torch.tensor([[0.0, 5.0]])), torch.tensor([[80.0, -100.0]]))


def test_what_is_invalid_is_refused():
    with pytest.raises(ValueError, match="Invalid margin value: -1; it must be at least 0"):
        small(CLIPood, margin=-1)
    with pytest.raises(ValueError, match="CLIPood is for networks with given vectors of the classes"):
        CLIPood(build_network("small_conv", (1, 16, 16), 3, dropout=0.0, seed=0), 2)
    with pytest.raises(ValueError, match=r"class vectors of shape \(3, 5\) do not fit 3 classes and .* 64 features"):
        build_network("small_conv", (1, 16, 16), 3, dropout=0.0, seed=0, class_vectors=torch.ones(3, 5))


def test_the_registered_default_is_that_of_the_constructor():
    assert (ALGORITHMS["clipood"], ALGORITHMS["zero_shot"]) == (CLIPood, ZeroShot)
    assert {name: hparam.default for name, hparam in CLIPood.hparams.items()} == {"margin": _double().margin}


def test_which_algorithms_take_class_vectors_is_known():
    taking = {name for name in ALGORITHMS if ALGORITHMS[name].takes_class_vectors}
    assert taking == {"erm", "zero_shot", "clipood"}
    assert {name for name in ALGORITHMS if ALGORITHMS[name].needs_class_vectors} == {"zero_shot", "clipood"}
