import math

import numpy as np
import pytest
import torch

from algorithms.made_up_batches import assert_resumes, built_steps, defaults, double_network, uneven_batches
from draws import draw
from shiftproof.algorithms import ALGORITHMS, CAD, ERM, CondCAD
from shiftproof.base.field_error import FieldError
from shiftproof.base.randomness import seed_hash
from shiftproof.models import build_network
from shiftproof.protocol.settings import search_space, setting

KINDS = pytest.mark.parametrize("kind", [CAD, CondCAD])


def _penalty(
    features, labels, domains, conditional, temperature, flipped, normalised=False, classes_met=False, own=False
):
    """The penalty image by image."""
    if normalised:
        features = [z / (z @ z).sqrt() for z in features]
    terms = []
    for i, z in enumerate(features):
        others = [j for j in range(len(features)) if j != i]
        same_class = [j for j in others if labels[j] == labels[i]]
        met = (same_class if conditional else others) + [i] * own
        sought = [j for j in met if (domains[j] != domains[i]) is flipped]
        if not sought or (classes_met and not same_class):
            continue
        ratio = sum((z @ features[j] / temperature).exp() for j in sought) / sum(
            (z @ features[j] / temperature).exp() for j in met
        )
        terms.append((-1 if flipped else 1) * temperature / 0.07 * ratio.log())
    return sum(terms) / len(terms) if terms else 0.0


def _transcription(algorithm, batches, weight, **options):
    images, labels = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    features = algorithm.network.featurizer(images)
    logits = algorithm.network.classifier(features)
    loss = sum(torch.logsumexp(s, 0) - s[y] for s, y in zip(logits, labels, strict=True)) / len(labels)
    domains = [i for i, (_, of_domain) in enumerate(batches) for _ in of_domain]
    return loss + weight * _penalty(list(features), labels.tolist(), domains, algorithm.conditional, **options)


@KINDS
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_objective_and_gradient_are_the_transcription(kind, own, flipped, normalised):
    batches = uneven_batches((3, 5, 2))
    options = {"temperature": 0.3, "flipped": flipped, "normalised": normalised}
    algorithm = kind(double_network(), 3, 0.7, **options, counts_itself=own)
    loss, expected = algorithm.objective(batches), _transcription(algorithm, batches, 0.7, **options, own=own)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    parameters = list(algorithm.parameters())
    gradients = [torch.autograd.grad(value, parameters) for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-11)


@KINDS
@pytest.mark.parametrize("flipped", [False, True])
def test_the_papers_sums_count_the_image_itself(kind, flipped):
    """Algorithm 1 of the paper: at temperature 1, with the weight that undoes the factor of the code."""
    batches, weight = uneven_batches((3, 5, 2)), 0.7
    options = {"temperature": 1.0, "flipped": flipped, "counts_itself": True}
    algorithm = kind(double_network(), 3, 0.07 * weight, **options)
    images, labels = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]).tolist()
    domains, z = [0] * 3 + [1] * 5 + [2] * 2, algorithm.network.featurizer(images)
    terms = []
    for i in range(10):
        met = [j for j in range(10) if not algorithm.conditional or labels[j] == labels[i]]
        sought = [j for j in met if (domains[j] != domains[i]) is flipped]
        if sought:
            scores = [sum((z[i] @ z[j]).exp() for j in some) for some in (sought, met)]
            terms.append((-1 if flipped else 1) * (scores[0] / scores[1]).log())
    expected = ERM(double_network(), 3).objective(batches) + weight * sum(terms) / len(terms)
    assert flipped or len(terms) == 10
    torch.testing.assert_close(algorithm.objective(batches), expected, rtol=1e-12, atol=0)


def test_domainbed_leaves_out_images_that_are_alone_of_their_class():
    batches = [
        (images, torch.tensor(labels))
        for (images, _), labels in zip(uneven_batches(), ([0, 1, 2], [0, 1, 1, 3, 0]), strict=True)
    ]
    algorithm = CAD(double_network(), 2, 0.7, classes_met=True)
    options = {"temperature": 0.1, "flipped": True}
    expected = _transcription(algorithm, batches, 0.7, **options, classes_met=True)
    torch.testing.assert_close(algorithm.objective(batches), expected, rtol=1e-12, atol=0)
    assert abs(expected - _transcription(algorithm, batches, 0.7, **options)) > 1e-6
    space = search_space("PACS", "photographs", True, "cad", "adam", "none", "protocol")
    chosen = {d: setting(space, {}, 0, 0, d).get("algorithm.classes_met") for d in ("domainbed", "domainbed-head")}
    assert chosen == {"domainbed": None, "domainbed-head": True}
    labelled = build_network("small_conv", (1, 16, 16), 2, dropout=0.0, seed=0, task="multilabel")
    with pytest.raises(FieldError, match="classes_met is for classification, not for multilabel"):
        CAD(labelled, 2, classes_met=True)


def test_features_of_one_direction_leave_the_shares_of_the_domains():
    """If all similarities are equal, a neighbour is of another domain with the share of these images."""
    algorithm = CAD(double_network(), 2, temperature=0.07)
    features, domains = torch.ones(6, 4, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 1, 1])
    penalty = algorithm.penalty(features, torch.zeros(6), domains)
    assert penalty.item() == pytest.approx(-(2 * math.log(4 / 5) + 4 * math.log(2 / 5)) / 6)


def test_where_no_class_is_in_two_domains_condcad_is_erm():
    batches = [(images, labels * 0 + i) for i, (images, labels) in enumerate(uneven_batches())]
    algorithm = CondCAD(double_network(), 2)
    loss = algorithm.objective(batches)
    assert torch.equal(loss, ERM(double_network(), 2).objective(batches))
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(algorithm.parameters())))


@KINDS
def test_without_a_weight_it_is_erm_and_with_one_domain_too(kind):
    batches = uneven_batches((4, 3))
    assert torch.equal(kind(double_network(), 2, 0.0).objective(batches), ERM(double_network(), 2).objective(batches))
    with pytest.warns(UserWarning, match=f"{kind.__name__} with one source domain is ERM"):
        alone = kind(double_network(), 1)
    assert torch.equal(alone.objective(batches[:1]), ERM(double_network(), 1).objective(batches[:1]))


@KINDS
def test_large_features_stay_finite(kind):
    algorithm = kind(double_network(), 2, temperature=0.05)
    features = (100 * torch.randn(6, 8)).requires_grad_()
    penalty = algorithm.penalty(features, torch.tensor([0, 1, 0, 0, 1, 0]), torch.tensor([0, 0, 0, 1, 1, 1]))
    penalty.backward()
    assert penalty.isfinite()
    assert features.grad.isfinite().all()


@KINDS
@pytest.mark.parametrize("sizes", [(4, 6), (2, 4, 1, 3, 2)])
def test_resume_is_bit_equal(kind, sizes):
    for optimizer in ("adam", "sam", "adahessian"):
        assert_resumes(lambda: kind(double_network(0.1), len(sizes)), optimizer, sizes)


@KINDS
def test_a_step_is_one_pass_along_the_gradient(kind):
    algorithm, batches = kind(double_network(), 2), uneven_batches()
    expected = _transcription(algorithm, batches, 0.1, temperature=0.1, flipped=True)
    parameters = list(algorithm.parameters())
    moved = [p - 0.1 * g for p, g in zip(parameters, torch.autograd.grad(expected, parameters), strict=True)]
    steps = built_steps(algorithm, "sgd", lr=0.1, momentum=0.0)
    steps.take(batches, 1)
    torch.testing.assert_close(parameters, moved, rtol=1e-8, atol=1e-11)
    assert steps.passes == 1


@KINDS
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty_weight": -1.0}, "Invalid penalty_weight value: -1.0; it must be at least 0"),
        ({"temperature": 0.0}, "Invalid temperature value: 0.0; it must be above 0"),
    ],
)
def test_arguments_out_of_range_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(double_network(), 2, **options)


@KINDS
def test_it_is_registered_with_its_defaults_and_draws_domainbeds(kind):
    assert ALGORITHMS[kind.__name__.lower()] is kind
    registered, constructed = defaults(kind)
    assert registered == constructed
    drawn = draw(kind.hparams, 3, 1)
    random = [np.random.RandomState(seed_hash(seed_hash(3, 1), name)) for name in ("lmbda", "temperature")]
    assert drawn["penalty_weight"] == random[0].choice([1e-4, 1e-3, 1e-2, 1e-1, 1, 1e1, 1e2])
    assert drawn["temperature"] == random[1].choice([0.05, 0.1])
