import pytest
import torch
from torch import nn

from algorithms.made_up_batches import assert_resumes, built_steps, defaults, double_network, uneven_batches
from shiftproof.algorithms import ALGORITHMS, ERM, SelfReg
from shiftproof.algorithms.selfreg import _shuffled_within
from shiftproof.base.randomness import seed_generators, torch_seed
from shiftproof.models import Network, Normalisation


def _cross_entropy(logits, label):
    return logits.exp().sum().log() - logits[label]


def _partners(labels):
    """The two permutations within the classes, class by class, from the draws of torch's generator."""
    found = []
    for _ in range(2):
        order = torch.randperm(len(labels)).tolist()
        partners = [0] * len(labels)
        for label in set(labels):
            members = [i for i in range(len(labels)) if labels[i] == label]
            for i, j in zip(members, [i for i in order if labels[i] == label], strict=True):
                partners[i] = j
        found.append(partners)
    return found


def _perturbed(algorithm, rows):
    """The perturbation layer with batch norms written out."""
    for layer in algorithm.perturbation:
        if isinstance(layer, nn.BatchNorm1d):
            mean = sum(rows) / len(rows)
            variance = sum((row - mean) ** 2 for row in rows) / len(rows)
            rows = [(row - mean) / (variance + 1e-5).sqrt() * layer.weight + layer.bias for row in rows]
        else:
            rows = [layer(row) for row in rows]
    return rows


def _transcription(algorithm, batches, feature_weight, logit_weight, alpha):
    images, labels = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]).tolist()
    features = [algorithm.network.featurizer(image[None])[0] for image in images]
    logits = [algorithm.network.classifier(z) for z in features]
    perturbed = _perturbed(algorithm, features)
    loss = sum(_cross_entropy(s, y) for s, y in zip(logits, labels, strict=True)) / len(labels)
    concentration = torch.tensor(alpha, dtype=torch.float64)
    gamma = torch.distributions.Beta(concentration, concentration).sample().item()
    first, second = _partners(labels)
    penalty = 0
    for i, (j, k) in enumerate(zip(first, second, strict=True)):
        for weight, own, others in ((feature_weight, features, perturbed), (logit_weight, logits, logits)):
            near = ((own[i] - others[j]) ** 2).mean()
            mixed = ((own[i] - gamma * others[j] - (1 - gamma) * others[k]) ** 2).mean()
            penalty = penalty + weight * (gamma * near + (1 - gamma) * mixed) / len(labels)
    return loss + min(1.0, loss.item()) * penalty


def _built(domains, **options):
    torch.manual_seed(5)
    return SelfReg(double_network(), domains, **options).double()


@pytest.mark.parametrize("sizes", [(3, 5, 2), (6,)])
@pytest.mark.parametrize("easy", [False, True])
def test_objective_and_gradient_are_the_transcription(sizes, easy):
    algorithm, batches = _built(len(sizes), feature_weight=0.7, logit_weight=0.4, alpha=0.8), uneven_batches(sizes)
    if easy:  # a loss below 1, which scales the penalty
        batches = [(images, labels * 0) for images, labels in batches]
        algorithm.network.classifier.bias.data[0] += 2
    torch.manual_seed(1)
    loss = algorithm.objective(batches)
    torch.manual_seed(1)
    expected = _transcription(algorithm, batches, 0.7, 0.4, 0.8)
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=0)
    parameters = list(algorithm.parameters())
    gradients = [torch.autograd.grad(value, parameters) for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-10)
    assert bool(ERM(algorithm.network, 2).objective(batches) < 1) is easy


def test_partners_are_of_the_class_and_all_are_met():
    labels = torch.tensor([2, 0, 0, 1, 2, 2, 0])
    met = set()
    for seed in range(80):
        torch.manual_seed(seed)
        partners = _shuffled_within(labels)
        assert torch.equal(partners.sort().values, torch.arange(7))
        assert torch.equal(labels[partners], labels)
        met |= set(enumerate(partners.tolist()))
    assert len(met) == 3 * 3 + 3 * 3 + 1


def test_without_weights_it_is_erm():
    batches = uneven_batches()
    expected = ERM(double_network(), 2).objective(batches)
    assert torch.equal(_built(2, feature_weight=0.0, logit_weight=0.0).objective(batches), expected)


def test_several_steps_are_those_of_adam_on_the_transcription():
    algorithm, reference = _built(2), _built(2)
    adam = torch.optim.Adam(reference.parameters(), lr=1e-2)
    steps = built_steps(algorithm, "adam")
    for step in (1, 2, 3):
        batches = uneven_batches(seed=step)
        steps.take(batches, step)
        seed_generators(torch_seed(0, "step", step), torch.device("cpu"))
        adam.zero_grad()
        _transcription(reference, batches, 0.3, 1.0, 0.5).backward()
        adam.step()
    assert steps.passes == 3
    torch.testing.assert_close(list(algorithm.parameters()), list(reference.parameters()), rtol=1e-6, atol=1e-8)


def test_the_perturbation_layer_has_the_sizes_of_the_authors():
    for size, hidden in ((512, 1024), (2048, 2048)):
        network = Network(nn.Flatten(), size, 3, Normalisation((0.5,), (0.5,)))
        linear = [m for m in SelfReg(network, 2).perturbation if isinstance(m, nn.Linear)]
        assert [(m.in_features, m.out_features) for m in linear] == [(size, hidden), (hidden, hidden), (hidden, size)]


@pytest.mark.parametrize("sizes", [(6,), (2, 4, 2, 3, 2)])
@pytest.mark.parametrize("optimizer", ["adam", "sam", "adahessian"])
def test_resume_is_bit_equal(sizes, optimizer):
    def build():
        torch.manual_seed(2)
        return SelfReg(double_network(0.1), len(sizes)).double()

    assert_resumes(build, optimizer, sizes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_weight": -1.0}, "Invalid feature_weight value: -1.0; it must be at least 0"),
        ({"logit_weight": float("nan")}, "Invalid logit_weight value: nan"),
        ({"alpha": 0.0}, "Invalid alpha value: 0.0; it must be at least 0.01"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SelfReg(double_network(), 2, **options)


def test_it_is_registered_with_its_defaults():
    assert ALGORITHMS["selfreg"] is SelfReg
    registered, constructed = defaults(SelfReg)
    assert registered == constructed == {"feature_weight": 0.3, "logit_weight": 1.0, "alpha": 0.5}
