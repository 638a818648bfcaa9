import copy

import numpy as np
import pytest
import torch

from algorithms.made_up_batches import assert_resumes, built_steps, defaults, double_network, uneven_batches
from draws import draw
from shiftproof.algorithms import ADRMX, ALGORITHMS, ERM
from shiftproof.base.randomness import seed_generators, seed_hash, torch_seed
from shiftproof.protocol.settings import search_space, setting
from shiftproof.training import results_version

NARROW = {"mlp_width": 8, "mlp_depth": 3}


def _built(domains=3, apart=True, **options):
    torch.manual_seed(4)
    algorithm = ADRMX(double_network(), domains, **{**NARROW, **options}).double()
    if apart:  # from the start, where all features without the domain are zero
        with torch.no_grad():
            algorithm.of_domain.featurizer[0].weight *= 0.9
    return algorithm


def _cross_entropy(logits, label):
    return torch.logsumexp(logits, 0) - logits[label]


def _contrast(rows, labels):
    rows = [row / (row @ row).sqrt() for row in rows]
    losses = []
    for i in range(len(rows)):
        others = [j for j in range(len(rows)) if j != i]
        same = [j for j in others if labels[j] == labels[i]]
        total = sum((rows[i] @ rows[j] / 0.07).exp() for j in others)
        if same:
            losses.append(-sum(((rows[i] @ rows[j] / 0.07).exp() / total).log() for j in same) / len(same))
    return sum(losses) / len(losses)


def _pairs(algorithm, labels, domains):
    """The numbers of the two images that are remixed for every class, or none."""
    count = len(labels)
    order = torch.rand(4, count) if algorithm.remixes_any else torch.randperm(count)
    pairs = {}
    for label in range(4):
        members = [i for i in range(count) if labels[i] == label]
        if algorithm.remixes_any:  # DomainBed draws places in this list and takes them for places in the batch
            places = sorted(range(len(members)), key=lambda k: float(order[label, k]))
            pairs[label] = places[:2] if len(places) > 1 else []
        else:
            members.sort(key=lambda i: int(order[i]))
            partners = [j for j in members[1:] if domains[j] != domains[members[0]]]
            pairs[label] = [members[0], partners[0]] if partners else []
    return pairs


def _transcription(algorithm, batches):
    """The networks' loss without the discriminator's, and the discriminator's, image by image."""
    network, other = algorithm.network, algorithm.of_domain
    images, labels = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]).tolist()
    domains = [i for i, (_, of_domain) in enumerate(batches) for _ in of_domain]
    z, z_d = list(network.featurizer(images)), list(other.featurizer(images))
    bar = [a - b for a, b in zip(z, z_d, strict=True)]
    count = len(labels)

    def mean(head, rows, targets):
        return sum(_cross_entropy(head(row), y) for row, y in zip(rows, targets, strict=True)) / count

    remix = 0.0
    for label, pair in _pairs(algorithm, labels, domains).items():
        if pair:
            i, j = pair
            target = labels[i] if algorithm.remixes_any else label
            remix = remix + _cross_entropy(network.classifier(bar[i] + z_d[j]), target) / 4
    loss = mean(network.classifier, z, labels) + mean(algorithm.second_classifier, bar, labels)
    loss = loss + algorithm.domain_weight * mean(other.classifier, z_d, domains) + algorithm.remix_weight * remix
    loss = loss + algorithm.contrast_weight * (_contrast(z, labels) + _contrast(bar, labels))
    return loss, mean(algorithm.discriminator.layers, bar, domains)


def _parts(algorithm):
    discriminator = list(algorithm.discriminator.parameters())
    return [p for n, p in algorithm.named_parameters() if not n.startswith("discriminator.")], discriminator


@pytest.mark.parametrize("remixes_any", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_objective_and_gradient_are_the_transcription(seed, remixes_any):
    weights = {"penalty_weight": 0.3, "domain_weight": 0.7, "remix_weight": 1.3, "contrast_weight": 0.6}
    algorithm, batches = _built(**weights, remixes_any=remixes_any), uneven_batches((3, 5, 2))
    torch.manual_seed(seed)
    loss = algorithm.objective(batches)
    torch.manual_seed(seed)
    own, discrimination = _transcription(algorithm, batches)
    expected = own - 0.3 * discrimination
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=0)
    networks, discriminator = _parts(algorithm)
    gradients = torch.autograd.grad(expected, networks, retain_graph=True)
    loss.backward()
    torch.testing.assert_close([p.grad for p in networks], list(gradients), rtol=1e-7, atol=1e-10)
    assert all(p.grad is None for p in discriminator)


def test_remixed_pairs_are_of_a_class_and_two_domains_or_of_domainbeds_first_places():
    algorithm, seen = _built(2, contrast_weight=0.0), set()
    labels, domains = torch.tensor([2, 1, 0, 0, 0, 2]), torch.tensor([0, 0, 0, 0, 1, 1])
    marks = torch.eye(6, 64, dtype=torch.float64)
    sums = []
    algorithm.network.classifier.register_forward_hook(lambda module, inputs, _: sums.append(inputs[0]))
    for remixes_any in (False, True):
        algorithm.remixes_any = remixes_any
        for seed in range(60):
            torch.manual_seed(seed)
            algorithm._remix(marks, 10 * marks, labels, domains)
            for label, row in enumerate(sums[-1][:, :6]):
                pair = (row.remainder(10).argmax().item(), (row / 10).floor().argmax().item())
                if label in (0, 2):  # the class 1 has one image, and 3 has none
                    seen.add((remixes_any, label, pair))
    of_classes = {(0, pair) for pair in ((2, 4), (3, 4), (4, 2), (4, 3))} | {(2, (0, 5)), (2, (5, 0))}
    assert {(label, pair) for any_image, label, pair in seen if not any_image} == of_classes
    first_places = {(0, (i, j)) for i in range(3) for j in range(3) if i != j} | {(2, (0, 1)), (2, (1, 0))}
    assert {(label, pair) for any_image, label, pair in seen if any_image} == first_places


def test_the_copy_starts_equal_so_that_nothing_is_left_of_the_features():
    algorithm, (batch, *_) = _built(apart=False), uneven_batches()
    [(both, _)] = algorithm._encoded([batch])
    own, of_domain = both.chunk(2, 1)
    assert torch.equal(own, of_domain)
    algorithm.backward(uneven_batches((3, 5, 2)))
    assert all(p.grad.isfinite().all() for p in _parts(algorithm)[0])


@pytest.mark.parametrize("alternate", [False, True])
def test_several_steps_are_those_of_adam_on_the_transcription(alternate):
    algorithm = _built(2, alternate=alternate, d_steps=1 + alternate)
    reference = copy.deepcopy(algorithm)
    adams = [torch.optim.Adam(part, lr=1e-2, betas=(0.5, 0.9)) for part in _parts(reference)]
    steps = built_steps(algorithm)
    for step in range(1, 5):
        batches = uneven_batches(seed=step)
        seed_generators(torch_seed(0, "step", step), torch.device("cpu"))
        own, discrimination = _transcription(reference, batches)
        turns = (0, 1) if not alternate else (1,) if step % 3 < 2 else (0,)
        found = {}
        for turn in turns:
            loss = (own - 0.75 * discrimination, discrimination)[turn]
            found[turn] = torch.autograd.grad(loss, _parts(reference)[turn], retain_graph=True)
        for turn, gradients in found.items():
            for p, gradient in zip(_parts(reference)[turn], gradients, strict=True):
                p.grad = gradient
            adams[turn].step()
        reported = steps.take(batches, step)
        torch.testing.assert_close(reported, (own if 0 in turns else discrimination).detach(), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(list(algorithm.parameters()), list(reference.parameters()), rtol=1e-5, atol=1e-7)


def test_without_weights_the_classifiers_alone_remain():
    algorithm = _built(penalty_weight=0.0, domain_weight=0.0, remix_weight=0.0, contrast_weight=0.0)
    batches = uneven_batches((3, 5, 2))
    expected = ERM(double_network(), 3).objective(batches)
    both = algorithm._encoded(batches)
    without = torch.cat([features[:, :64] - features[:, 64:] for features, _ in both])
    labels = torch.cat([y for _, y in batches])
    expected = expected + torch.nn.functional.cross_entropy(algorithm.second_classifier(without), labels)
    torch.testing.assert_close(algorithm.objective(batches), expected, rtol=1e-12, atol=0)


def test_one_source_domain_is_erm_and_warns():
    with pytest.warns(UserWarning, match="ADRMX with one source domain is ERM"):
        algorithm = ADRMX(double_network(), 1)
    erm, batches = ERM(double_network(), 1), uneven_batches((6,))
    assert torch.equal(algorithm.objective(batches), erm.objective(batches))
    for each in (algorithm, erm):
        steps = built_steps(each)
        for step in (1, 2, 3):
            steps.take(batches, step)
    assert all(torch.equal(a, b) for a, b in zip(algorithm.parameters(), erm.parameters(), strict=True))


@pytest.mark.parametrize("alternate", [False, True])
@pytest.mark.parametrize(("optimizer", "sizes"), [("adam", (2, 4, 1, 3, 2)), ("sam", (4, 6)), ("adahessian", (4, 6))])
def test_resume_is_bit_equal(optimizer, sizes, alternate):
    def build():
        torch.manual_seed(2)
        network = double_network(0.1)
        return ADRMX(network, len(sizes), **NARROW, alternate=alternate).double()

    assert_resumes(build, optimizer, sizes, before=4, after=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domain_weight": -1.0}, "Invalid domain_weight value: -1.0; it must be at least 0"),
        ({"remix_weight": float("nan")}, "Invalid remix_weight value: nan"),
        ({"contrast_weight": -0.1}, "Invalid contrast_weight value: -0.1"),
        ({"penalty_weight": -0.1}, "Invalid penalty_weight value: -0.1"),
        ({"d_steps": 0}, "Invalid d_steps value: 0"),
        ({"mlp_depth": 1}, "Invalid mlp_depth value: 1"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ADRMX(double_network(), 2, **options)


def test_it_is_registered_with_its_defaults_and_draws_domainbeds():
    assert ALGORITHMS["adrmx"] is ADRMX
    registered = {name: hparam.default for name, hparam in ADRMX.hparams.items()}
    constructed = defaults(ADRMX)[1]
    assert registered == constructed
    random = np.random.RandomState(seed_hash(seed_hash(3, 1), "mlp_depth"))
    assert draw(ADRMX.hparams, 3, 1)["mlp_depth"] == random.choice([8, 9, 10])
    space = search_space("PACS", "photographs", True, "adrmx", "adam", "none", "protocol")
    chosen = setting(space, {}, 0, 0, "domainbed-head")
    assert chosen["algorithm.alternate"] is chosen["algorithm.remixes_any"] is True


def test_its_results_are_of_a_later_version_since_its_pairs_in_the_dialect_changed():
    assert (results_version("adrmx"), results_version("dann")) == (7, 6)
