import copy

import pytest
import torch

from algorithms.made_up_batches import CLASSES, assert_resumes, built_steps, defaults, double_network, uneven_batches
from algorithms.made_up_runs import made_up, small, steps_of
from shiftproof.algorithms import ALGORITHMS, sagnet
from shiftproof.algorithms.sagnet import SagNet, randomised
from shiftproof.base.randomness import torch_seed


def _statistics(z):
    mean = sum(z) / len(z)
    return mean, (sum((v - mean) ** 2 for v in z) / len(z) + 1e-5) ** 0.5


def _transcription(algorithm, batches, seed):
    """The three losses by loops over images; the draws are those of the seed."""
    images, labels = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    torch.manual_seed(seed)
    alphas = torch.rand(len(images), 1)[:, 0].double()
    styles, contents = torch.randperm(len(images)), torch.randperm(len(images))
    features = list(algorithm.network.featurizer(images))
    content_losses, style_losses, adversary_losses = [], [], []
    for i, (z, label) in enumerate(zip(features, labels, strict=True)):
        mean, deviation = _statistics(z)
        other_mean, other_deviation = _statistics(features[styles[i]])
        mixed_mean = alphas[i] * mean + (1 - alphas[i]) * other_mean
        mixed_deviation = alphas[i] * deviation + (1 - alphas[i]) * other_deviation
        restyled = (z - mean) / deviation * mixed_deviation + mixed_mean
        filling = features[contents[i]]
        filling_mean, filling_deviation = _statistics(filling)
        refilled = ((filling - filling_mean) / filling_deviation).detach() * deviation + mean
        content_losses.append(-torch.log_softmax(algorithm.network.classifier(restyled), 0)[label])
        log_probabilities = torch.log_softmax(algorithm.style_head(refilled), 0)
        style_losses.append(-log_probabilities[label])
        adversary_losses.append(-sum(log_probabilities) / CLASSES)
    return [torch.stack(losses).mean() for losses in (content_losses, style_losses, adversary_losses)]


def _algorithm(weight=0.1):
    algorithm = SagNet(double_network(), 2, weight)
    torch.manual_seed(5)
    torch.nn.init.normal_(algorithm.style_head.weight)  # apart from the classifier
    return algorithm


@pytest.mark.parametrize("weight", [0.1, 2.0])
def test_every_loss_reaches_what_it_is_minimised_over_and_nothing_else(weight):
    algorithm, batches = _algorithm(weight), uneven_batches()
    content, style, adversary = _transcription(algorithm, batches, 7)
    torch.manual_seed(7)
    loss = algorithm.objective(batches)
    torch.testing.assert_close(loss, content + style + weight * adversary, rtol=1e-12, atol=0)
    loss.backward()
    network = algorithm.network
    for parameters, expected in (
        (network.featurizer.parameters(), content + weight * adversary),
        (network.classifier.parameters(), content),
        (algorithm.style_head.parameters(), style),
    ):
        parameters = list(parameters)
        gradients = torch.autograd.grad(expected, parameters, retain_graph=True)
        torch.testing.assert_close([p.grad for p in parameters], list(gradients), rtol=1e-8, atol=1e-11)


def test_an_update_moves_all_three_in_one_pass_of_the_featurizer():
    algorithm, batches = _algorithm(), uneven_batches()
    calls = []
    algorithm.network.featurizer.register_forward_hook(lambda *_: calls.append(1))
    steps = built_steps(algorithm, "sgd", lr=0.1, momentum=0.0)
    start = {name: p.detach().clone() for name, p in algorithm.named_parameters()}
    loss = steps.take(batches, 1)
    assert len(calls) == steps.passes == 1
    assert not loss.requires_grad
    for name, p in algorithm.named_parameters():
        torch.testing.assert_close(p.detach(), start[name] - 0.1 * p.grad, rtol=1e-12, atol=1e-15)
        assert not torch.equal(p, start[name]), name


def test_randomised_features_have_the_styles_and_contents_they_should():
    torch.manual_seed(0)
    features = torch.randn(6, 50, dtype=torch.float64) * 3 + 1
    restyled, refilled = randomised(features)
    for row, (z, r) in enumerate(zip(features, restyled, strict=True)):  # content is kept: a line of z
        assert torch.corrcoef(torch.stack([z, r]))[0, 1] == pytest.approx(1, abs=1e-12), row
    means = features.mean(1)
    assert restyled.mean(1).min() > means.min() - 1e-9
    assert restyled.mean(1).max() < means.max() + 1e-9
    torch.testing.assert_close(refilled.mean(1), means)
    torch.testing.assert_close(refilled.std(1), features.std(1), rtol=1e-4, atol=0)
    correlations = torch.corrcoef(torch.cat([features, refilled]))[:6, 6:]
    assert (correlations > 1 - 1e-9).sum(0).tolist() == [1] * 6  # of one image each


def test_without_an_adversary_the_style_head_changes_nothing_for_the_network():
    batches = uneven_batches()
    moved = []
    for scale in (0.0, 1.0):
        algorithm = SagNet(double_network(), 2, adversary_weight=0.0)
        with torch.no_grad():
            algorithm.style_head.weight.mul_(scale)
        built_steps(algorithm).take(batches, 1)
        moved.append([p.detach() for p in algorithm.network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*moved, strict=True))


def test_the_style_head_starts_as_the_classifier_and_predictions_are_the_networks():
    algorithm = SagNet(double_network(), 1)
    assert torch.equal(algorithm.style_head.weight, algorithm.network.classifier.weight)
    images = uneven_batches((4,))[0][0]
    assert torch.equal(algorithm.predict(images), algorithm.network(images))


@pytest.mark.parametrize("sizes", [(6,), (2, 4, 1, 3, 2)])
def test_resume_is_bit_equal(sizes):
    assert_resumes(lambda: SagNet(double_network(0.1), len(sizes)), sizes=sizes)


def _features_and_draws(algorithm, images, step, turn):
    """The features of one of the three steps, and what it draws after their dropout."""
    seed = torch_seed(0, "step", step)
    torch.manual_seed(seed if turn == "classifier" else torch_seed(seed, turn))
    features = algorithm.network.dropout(algorithm.network.featurizer(images))
    alphas = torch.rand(len(images), 1)[:, 0].double()
    return features, alphas, torch.randperm(len(images)), torch.randperm(len(images))


def _mean_and_variance(z):
    mean = sum(z) / len(z)
    return mean, sum((v - mean) ** 2 for v in z) / (len(z) - 1)


def _restyled(features, alphas, order):
    rows = []
    for i, z in enumerate(features):
        mean, variance = _mean_and_variance(z)
        other_mean, other_variance = _mean_and_variance(features[order[i]])
        mixed_mean = alphas[i] * mean + (1 - alphas[i]) * other_mean
        mixed_variance = alphas[i] * variance + (1 - alphas[i]) * other_variance
        rows.append((z - mean) / (variance + 1e-5).sqrt() * (mixed_variance + 1e-5).sqrt() + mixed_mean)
    return torch.stack(rows)


def _refilled(features, order):
    rows = []
    for i, z in enumerate(features):
        mean, variance = _mean_and_variance(z)
        other_mean, other_variance = _mean_and_variance(features[order[i]])
        content = (features[order[i]] - other_mean) / (other_variance + 1e-5).sqrt()
        rows.append(content.detach() * (variance + 1e-5).sqrt() + mean)
    return torch.stack(rows)


def _domainbeds_step(algorithm, batches, step, optimizers):
    """One update in three steps, with an optimizer each for featurizer, classifier and style head."""
    images, labels = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    rows = range(len(labels))

    def take(loss, *names):
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        loss.backward()
        for name in names:
            optimizers[name].step()

    features, alphas, styles, _ = _features_and_draws(algorithm, images, step, "classifier")
    log_p = torch.log_softmax(algorithm.network.classifier(_restyled(features, alphas, styles)), 1)
    first = -sum(log_p[i, labels[i]] for i in rows) / len(labels)
    take(first, "featurizer", "classifier")
    features, _, _, contents = _features_and_draws(algorithm, images, step, "style")
    log_p = torch.log_softmax(algorithm.style_head(_refilled(features, contents)), 1)
    take(-sum(log_p[i, labels[i]] for i in rows) / len(labels), "style")
    features, _, _, contents = _features_and_draws(algorithm, images, step, "adversary")
    log_p = torch.log_softmax(algorithm.style_head(_refilled(features, contents)), 1)
    take(algorithm.adversary_weight * sum(-sum(log_p[i]) / CLASSES for i in rows) / len(labels), "featurizer")
    return first.detach()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("sizes", [(6,), (3, 5), (2, 4, 1, 3)])
def test_in_three_steps_it_trains_as_domainbed_does(optimizer, sizes):
    algorithm = SagNet(double_network(0.3), len(sizes), 0.7, three_steps=True).train()
    reference = copy.deepcopy(algorithm)
    hparams = {"lr": 0.01, "weight_decay": 0.05, **({"momentum": 0.9} if optimizer == "sgd" else {})}
    kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer]
    network = reference.network
    parts = {"featurizer": network.featurizer, "classifier": network.classifier, "style": reference.style_head}
    optimizers = {name: kind(part.parameters(), **hparams) for name, part in parts.items()}
    steps = built_steps(algorithm, optimizer, **hparams)
    for step in range(1, 5):
        batches = uneven_batches(sizes, step)
        expected = _domainbeds_step(reference, batches, step, optimizers)
        torch.testing.assert_close(steps.take(batches, step), expected, rtol=1e-10, atol=0)
    assert steps.passes == 4  # only the first of three counts
    for (name, p), q in zip(algorithm.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11, msg=name)


def test_each_of_the_three_steps_has_its_own_numbers_and_moves_what_it_should(monkeypatch):
    algorithm, drawn, moved = SagNet(double_network(0.5), 2, three_steps=True), [], []
    own = sagnet.randomised
    monkeypatch.setattr(sagnet, "randomised", lambda z, **o: drawn.append(z.detach()) or own(z, **o))
    steps = built_steps(algorithm, "sgd", lr=0.1, momentum=0.9, weight_decay=0.1)
    optimizer = algorithm.optimizers["all"]
    optimizer.register_step_post_hook(
        lambda *_: moved.append({name.split(".")[-2] for name, p in algorithm.named_parameters() if p.grad is not None})
    )
    assert steps.take(uneven_batches(), 1).isfinite()
    featurizer = {name.split(".")[-2] for name, _ in algorithm.network.featurizer.named_parameters(prefix="f")}
    assert moved == [featurizer | {"classifier"}, {"style_head"}, featurizer]
    masks = [z == 0 for z in drawn]
    assert not any(torch.equal(masks[i], masks[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("optimizer", ["adam", "sam", "genie", "adahessian"])
def test_in_three_steps_a_resumed_run_is_bit_equal(optimizer):
    whole = assert_resumes(lambda: SagNet(double_network(0.3), 2, three_steps=True), optimizer)
    assert whole.passes == (12 if optimizer == "sam" else 6)


def test_in_three_steps_gradients_accumulate_and_bfloat16_stays_close():
    losses = {}
    for options in ({}, {"accumulate": 2}, {"precision": "bf16"}):
        steps = steps_of(small(SagNet, three_steps=True), "adam", 0.002, **options)
        losses[str(options)] = torch.stack([steps.take(made_up((8, 8), seed=n), n) for n in (1, 2, 3)]).float()
        assert all(bool(p.isfinite().all()) for p in steps.algorithm.parameters())
    whole, parts, bf16 = losses.values()
    torch.testing.assert_close(bf16, whole, rtol=0.03, atol=0.03)
    torch.testing.assert_close(parts, whole, rtol=0.2, atol=0.2)  # other draws of the same law


def test_in_three_steps_a_frozen_featurizer_stays_and_the_heads_train():
    network = double_network()
    network.featurizer.requires_grad_(False)
    algorithm = SagNet(network, 2, three_steps=True)
    start = copy.deepcopy(algorithm.state_dict())
    built_steps(algorithm, "sam").take(uneven_batches(), 1)
    changed = {name for name, value in algorithm.state_dict().items() if not torch.equal(value, start[name])}
    heads = ("network.classifier", "style_head")
    assert changed == {f"{head}.{part}" for head in heads for part in ("weight", "bias")}


@pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan")])
def test_a_weight_out_of_range_is_refused(weight):
    with pytest.raises(ValueError, match=f"Invalid adversary_weight value: {weight}; it must be at least 0"):
        SagNet(double_network(), 2, weight)


def test_it_is_registered_with_its_defaults():
    assert ALGORITHMS["sagnet"] is SagNet
    registered, constructed = defaults(SagNet)
    assert registered == constructed
