import copy
import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from algorithms.made_up_batches import assert_resumes, built_steps, defaults, double_network, uneven_batches
from shiftproof.algorithms import ALGORITHMS, ERM
from shiftproof.algorithms.dann import CDANN, DANN
from shiftproof.base.randomness import seed_hash
from shiftproof.protocol.settings import search_space, setting
from shiftproof.studies import Study
from shiftproof.studies.planning import plan_run
from shiftproof.training.checkpoint import load_checkpoint, save_checkpoint

KINDS = pytest.mark.parametrize("kind", [DANN, CDANN])
NARROW = {"mlp_width": 8}


def _discrimination(algorithm, encoded):
    """Return the discriminator's loss by loops over images."""
    losses, labels = [], []
    for domain, (features, domain_labels) in enumerate(encoded):
        for z, label in zip(features, domain_labels, strict=True):
            if algorithm.conditional:
                z = z + algorithm.discriminator.embedding.weight[label]
            logits = algorithm.discriminator.layers(z)
            losses.append(torch.logsumexp(logits, 0) - logits[domain])
            labels.append(label.item())
    if not algorithm.conditional:
        return sum(losses) / len(losses), losses
    classes = Counter(labels)
    by_class = {c: sum(v for v, label in zip(losses, labels, strict=True) if label == c) for c in classes}
    return sum(total / classes[c] for c, total in by_class.items()) / len(classes), losses


def _encoded(algorithm, batches):
    return [(algorithm.network.featurizer(images), labels) for images, labels in batches]


def _classification(algorithm, encoded):
    losses = [
        torch.logsumexp(logits, 0) - logits[label]
        for features, labels in encoded
        for logits, label in zip(algorithm.network.classifier(features), labels, strict=True)
    ]
    return sum(losses) / len(losses)


@KINDS
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_networks_objective_and_gradient_are_the_transcription(kind, weight):
    algorithm, batches = kind(double_network(), 3, weight, **NARROW).double(), uneven_batches((3, 5, 2))
    encoded = _encoded(algorithm, batches)
    expected = _classification(algorithm, encoded) - weight * _discrimination(algorithm, encoded)[0]
    loss = algorithm.objective(batches)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    loss.backward()
    parameters = list(algorithm.network.parameters())
    gradients = torch.autograd.grad(expected, parameters)
    torch.testing.assert_close([p.grad for p in parameters], list(gradients), rtol=1e-8, atol=1e-11)
    assert all(p.grad is None for p in algorithm.discriminator.parameters())


@KINDS
@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_the_discriminators_loss_and_gradient_are_the_transcription(kind, penalty):
    algorithm, batches = kind(double_network(), 2, grad_penalty=penalty, **NARROW).double(), uneven_batches()
    encoded = _encoded(algorithm, batches)
    expected, losses = _discrimination(algorithm, encoded)
    if penalty:
        squares = []
        for loss in losses:
            parts = torch.autograd.grad(loss, [z for z, _ in encoded], create_graph=True, allow_unused=True)
            squares.append(sum((g**2).sum() for g in parts if g is not None))  # of its own features alone
        expected = expected + penalty * sum(squares) / len(losses)
    loss = algorithm.discriminator_loss(encoded)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    loss.backward()
    parameters = list(algorithm.discriminator.parameters())
    gradients = torch.autograd.grad(expected, parameters, allow_unused=True)
    for p, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(p.grad if gradient is not None else None, gradient, rtol=1e-8, atol=1e-11)
    assert all(p.grad is None for p in algorithm.network.parameters())


@pytest.mark.parametrize(("kind", "accumulate"), [(DANN, 1), (DANN, 2), (CDANN, 1)])
def test_an_update_steps_both_from_the_same_weights(kind, accumulate):
    """Ganin et al.'s equations 13 to 15, with steps of 0.1 and 0.02."""
    algorithm = kind(double_network(), 2, 0.5, lr_ratio=0.2, **NARROW).double()
    batches = uneven_batches((4, 4) if accumulate > 1 else (3, 5))
    encoded = _encoded(algorithm, batches)
    classification, (discrimination, _) = _classification(algorithm, encoded), _discrimination(algorithm, encoded)
    moved = []
    for module, loss, rate in (
        (algorithm.network, classification - 0.5 * discrimination, 0.1),
        (algorithm.discriminator, discrimination, 0.02),
    ):
        parameters = list(module.parameters())
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        moved += [p - rate * (0 if g is None else g) for p, g in zip(parameters, gradients, strict=True)]
    calls = []
    algorithm.network.featurizer.register_forward_hook(lambda *_: calls.append(1))
    steps = built_steps(algorithm, "sgd", accumulate, lr=0.1, momentum=0.0)
    loss = steps.take(batches, 1)
    torch.testing.assert_close(loss, classification.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(list(algorithm.parameters()), moved, rtol=1e-8, atol=1e-11)
    assert len(calls) == accumulate


@KINDS
def test_sam_perturbs_both_and_the_discriminator_sees_the_features_of_the_weights(kind):
    algorithm, batches = kind(double_network(), 2, **NARROW).double(), uneven_batches()
    seen = []
    original = algorithm.discriminator_loss
    algorithm.discriminator_loss = lambda encoded: seen.append(encoded) or original(encoded)
    expected = [features.detach() for features, _ in _encoded(algorithm, batches)]
    calls = []
    algorithm.network.featurizer.register_forward_hook(lambda *_: calls.append(1))
    steps = built_steps(algorithm, "sam")
    steps.take(batches, 1)
    assert (len(calls), len(seen), steps.passes) == (2, 2, 2)
    for encoded in seen:
        torch.testing.assert_close([features for features, _ in encoded], expected, rtol=1e-12, atol=1e-15)


def test_every_step_trains_the_classifier_unless_they_alternate():
    for alternate, expected in ((False, "gd gd gd gd"), (True, "d g d d")):
        algorithm = DANN(double_network(), 2, d_steps=2, alternate=alternate, **NARROW).double()
        steps, moved = built_steps(algorithm), []
        for step in range(1, 5):
            before = {name: p.detach().clone() for name, p in algorithm.named_parameters()}
            steps.take(uneven_batches(seed=step), step)
            names = [name for name, p in algorithm.named_parameters() if not torch.equal(p, before[name])]
            g, d = ("g" * any(n.startswith(p) for n in names) for p in ("network.", "discriminator."))
            moved.append(g + d.replace("g", "d"))
        assert " ".join(moved) == expected


@KINDS
def test_a_step_of_the_discriminator_alone_does_not_reach_the_network(kind):
    algorithm, batches = kind(double_network(), 2, alternate=True, **NARROW).double(), uneven_batches()
    expected, _ = _discrimination(algorithm, _encoded(algorithm, batches))
    steps = built_steps(algorithm)
    loss = steps.take(batches, 2)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    assert all(p.grad is None for p in algorithm.network.parameters())
    assert algorithm.discriminator_loss(_encoded(algorithm, batches)) < loss


@KINDS
def test_the_network_raises_the_loss_that_the_discriminator_lowers(kind):
    batches = uneven_batches((8, 8))
    algorithm = kind(double_network(), 2, penalty_weight=100.0, **NARROW).double()
    discriminator = copy.deepcopy(algorithm.discriminator.state_dict())
    steps = built_steps(algorithm, "sgd", lr=1e-4, momentum=0.0)
    before = algorithm.discriminator_loss(_encoded(algorithm, batches)).item()
    steps.take(batches, 1)
    after = algorithm.discriminator_loss(_encoded(algorithm, batches)).item()
    algorithm.discriminator.load_state_dict(discriminator)  # the network's step alone
    raised = algorithm.discriminator_loss(_encoded(algorithm, batches)).item()
    assert raised > before + 1e-5
    assert after < raised


@KINDS
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "genie"])
def test_one_source_domain_is_erm_and_warns(kind, optimizer):
    with pytest.warns(UserWarning, match=f"{kind.__name__} with one source domain is ERM"):
        algorithm = kind(double_network(), 1)
    erm = ERM(double_network(), 1)
    batches = uneven_batches((6,))
    assert torch.equal(algorithm.objective(batches), erm.objective(batches))
    for each in (algorithm, erm):
        steps = built_steps(each, optimizer, lr=0.01)
        for step in (1, 2, 3):
            steps.take(batches, step)
    assert list(algorithm.optimizers) == ["all"]
    assert all(torch.equal(a, b) for a, b in zip(algorithm.parameters(), erm.parameters(), strict=True))


def test_optimizers_have_options_and_seeds_of_their_own():
    algorithm = DANN(double_network(), 2, weight_decay_d=0.03, beta1=0.2, lr_ratio=3.0, **NARROW).double()
    built_steps(algorithm, "adam", lr=0.01, weight_decay=0.001)
    generator, discriminator = algorithm.optimizers["generator"], algorithm.optimizers["discriminator"]
    assert generator.param_groups[0]["betas"] == discriminator.param_groups[0]["betas"] == (0.2, 0.9)
    assert (generator.param_groups[0]["lr"], discriminator.param_groups[0]["lr"]) == (0.01, 0.03)
    assert (generator.param_groups[0]["weight_decay"], discriminator.param_groups[0]["weight_decay"]) == (0.001, 0.03)
    names = []
    algorithm.build_optimizers(lambda params, name, **_: names.append(name) or torch.optim.SGD(params, lr=0.1))
    assert names == ["generator", "discriminator"]


@KINDS
def test_both_take_the_steps_of_adam_with_domainbeds_betas(kind):
    algorithm = kind(double_network(), 2, penalty_weight=0.5, lr_ratio=0.3, **NARROW).double()
    parts = [list(algorithm.network.parameters()), list(algorithm.discriminator.parameters())]
    weights = [[p.detach().clone() for p in part] for part in parts]
    references = [
        torch.optim.Adam(part, lr=lr, betas=(0.5, 0.9)) for part, lr in zip(weights, (1e-2, 3e-3), strict=True)
    ]
    steps = built_steps(algorithm, "adam")
    for step in range(1, 6):
        batches = uneven_batches(seed=step)
        encoded = _encoded(algorithm, batches)
        discrimination, _ = _discrimination(algorithm, encoded)
        losses = (_classification(algorithm, encoded) - 0.5 * discrimination, discrimination)
        for part, copies, loss, reference in zip(parts, weights, losses, references, strict=True):
            found = torch.autograd.grad(loss, part, retain_graph=True, allow_unused=True)
            for p, gradient in zip(copies, found, strict=True):
                p.grad = gradient
            reference.step()
        steps.take(batches, step)
        for part, copies in zip(parts, weights, strict=True):
            torch.testing.assert_close([p.detach() for p in part], copies, rtol=1e-7, atol=1e-9)


def test_a_half_finished_run_from_before_beta2_goes_on_with_the_betas_that_it_had(tmp_path):
    def build(**options):
        torch.manual_seed(2)
        return DANN(double_network(), 2, **NARROW, **options).double()

    before = built_steps(build(beta2=0.999))
    for step in (1, 2, 3):
        before.take(uneven_batches(seed=step), step)
    save_checkpoint(tmp_path / "checkpoint.pt", before.algorithm, {"step": 3})
    after = built_steps(build())
    load_checkpoint(tmp_path / "checkpoint.pt", after.algorithm)
    for optimizer in after.algorithm.optimizers.values():
        assert tuple(optimizer.param_groups[0]["betas"]) == (0.5, 0.999)
    for step in (4, 5, 6):
        batches = uneven_batches(seed=step)
        assert torch.equal(before.take(batches, step), after.take(batches, step))
    for p, expected in zip(after.algorithm.parameters(), before.algorithm.parameters(), strict=True):
        assert torch.equal(p, expected)


def test_a_run_with_beta2_is_another_than_one_from_before():
    """So no table mixes them, and no folder of the one is continued as the other."""
    study = Study(datasets=["rotated_digits"], algorithms=["dann"], optimizers=["adam"], targets=["30"], steps=10)
    spec = plan_run(study, 0, 0)
    assert spec.hparams["algorithm.beta2"] == 0.9
    hparams = {name: value for name, value in spec.hparams.items() if name != "algorithm.beta2"}
    assert dataclasses.replace(spec, hparams=hparams).name != spec.name


def test_the_discriminator_has_the_shape_asked_for():
    algorithm = DANN(double_network(0.0), 3, mlp_width=10, mlp_depth=4, mlp_dropout=0.25)
    linear = [m for m in algorithm.discriminator.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(64, 10), (10, 10), (10, 10), (10, 3)]
    assert [m.p for m in algorithm.discriminator.modules() if isinstance(m, nn.Dropout)] == [0.25] * 3
    assert algorithm.discriminator.embedding is None
    assert CDANN(double_network(), 2).discriminator.embedding.weight.shape == (4, 64)


@KINDS
@pytest.mark.parametrize(
    ("optimizer", "sizes", "options"),
    [
        ("adam", (2, 4, 1, 3, 2), {}),
        ("sam", (4, 6), {"d_steps": 3, "mlp_dropout": 0.1}),
        ("genie", (4, 6), {"grad_penalty": 0.1}),
        ("adam", (4, 6), {"alternate": True, "d_steps": 2}),
        ("adam", (4, 6), {"grad_penalty": 0.1, "penalised_network": True, "penalised": "probabilities"}),
        ("adahessian", (4, 6), {}),
    ],
)
def test_resume_is_bit_equal(kind, optimizer, sizes, options):
    def build():
        torch.manual_seed(2)
        return kind(double_network(0.1), len(sizes), **NARROW, **options).double()

    whole = assert_resumes(build, optimizer, sizes)
    start = build().state_dict()
    for name, value in whole.algorithm.named_parameters():
        assert not torch.equal(value, start[name]), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty_weight": -1.0}, "Invalid penalty_weight value: -1.0; it must be at least 0"),
        ({"weight_decay_d": float("nan")}, "Invalid weight_decay_d value: nan"),
        ({"grad_penalty": -0.5}, "Invalid grad_penalty value: -0.5"),
        ({"d_steps": 0}, "Invalid d_steps value: 0; it must be a whole number, at least 1"),
        ({"d_steps": 1.5}, "Invalid d_steps value: 1.5"),
        ({"mlp_width": 0}, "Invalid mlp_width value: 0"),
        ({"mlp_depth": 1}, "Invalid mlp_depth value: 1; it must be a whole number, at least 2"),
        ({"beta1": 1.0}, r"Invalid beta1 value: 1.0; it must be in \[0, 1\)"),
        ({"beta2": -0.1}, "Invalid beta2 value: -0.1"),
        ({"mlp_dropout": -0.1}, "Invalid mlp_dropout value: -0.1"),
        ({"lr_ratio": 0.0}, "Invalid lr_ratio value: 0.0; it must be above 0"),
        ({"penalised": "logits"}, "Invalid penalised value: logits; it must be one of loss, probabilities"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DANN(double_network(), 2, **options)


def test_they_are_registered_with_their_defaults_and_draw_as_domainbed():
    for name, kind in (("dann", DANN), ("cdann", CDANN)):
        assert ALGORITHMS[name] is kind
        registered, constructed = defaults(kind)
        assert registered == constructed

    def random(name):
        return np.random.RandomState(seed_hash(seed_hash(7, 3), name))

    space = search_space("PACS", "photographs", True, "dann", "adam", "none", "protocol")
    drawn = setting(space, {}, 7, 3)
    assert drawn["algorithm.penalty_weight"] == 10 ** random("lambda").uniform(-2, 2)
    assert drawn["algorithm.d_steps"] == int(2 ** random("d_steps_per_g_step").uniform(0, 3))
    assert drawn["algorithm.mlp_depth"] == int(random("mlp_depth").choice([3, 4, 5]))
    assert type(drawn["algorithm.mlp_depth"]) is type(drawn["algorithm.d_steps"]) is int
    settings = [setting(space, {}, seed, 0) for seed in range(1, 1001)]
    rates = np.log10([each["algorithm.lr_ratio"] * each["optimizer.lr"] for each in settings])
    assert (rates.min(), rates.max()) == (pytest.approx(-5, abs=0.01), pytest.approx(-3.5, abs=0.01))
    own = np.log10([each["optimizer.lr"] for each in settings])
    assert abs(np.corrcoef(rates, own)[0, 1]) < 0.1  # drawn apart from the network's


def _published_losses(algorithm, batches, of_probabilities):
    """Return the class loss and the discriminator's with its penalty, image by image, as DomainBed has them."""
    encoded = _encoded(algorithm, batches)
    count = sum(len(labels) for _, labels in encoded)
    drawn = [domain for domain, (_, labels) in enumerate(encoded) for _ in labels]
    losses, squares, labels = [], [], []
    for domain, (features, domain_labels) in enumerate(encoded):
        for z, label in zip(features, domain_labels, strict=True):
            seen = z + algorithm.discriminator.embedding.weight[label] if algorithm.conditional else z
            logits = algorithm.discriminator.layers(seen)
            losses.append(torch.logsumexp(logits, 0) - logits[domain])
            probabilities = logits.softmax(0)
            loud = sum(probabilities[other] for other in drawn) if of_probabilities else losses[-1]
            squares.append(torch.autograd.grad(loud, seen, create_graph=True)[0].square().sum())
            labels.append(label.item())
    weights = [1 / labels.count(y) / (max(labels) + 1) if algorithm.conditional else 1 / count for y in labels]
    discrimination = sum(w * loss for w, loss in zip(weights, losses, strict=True))
    return _classification(algorithm, encoded), discrimination + algorithm.grad_penalty * sum(squares) / count


@KINDS
@pytest.mark.parametrize("dialect", ["domainbed", "domainbed-head", "swad"])
def test_the_dialects_take_the_steps_of_published_code(kind, dialect):
    """Two Adams that take turns; the penalty is in both losses. No batch has the classes 1 and 3."""
    space = search_space("PACS", "photographs", True, kind.__name__.lower(), "adam", "none", "protocol")
    fixed = {"algorithm.grad_penalty": 0.7, "algorithm.penalty_weight": 0.4, "algorithm.mlp_width": 8}
    values = setting(space, fixed, 0, 0, dialect)
    options = {n.removeprefix("algorithm."): v for n, v in values.items() if n.startswith("algorithm.")}
    algorithm = kind(double_network(), 2, **options).double()
    parts = {
        "network": list(algorithm.network.parameters()),
        "discriminator": list(algorithm.discriminator.parameters()),
    }
    copies = {name: [p.detach().clone() for p in part] for name, part in parts.items()}
    references = {name: torch.optim.Adam(part, lr=1e-2, betas=(0.5, 0.9)) for name, part in copies.items()}
    steps = built_steps(algorithm, "adam")
    for step in range(1, 7):
        batches = [(images, 2 * (labels % 2)) for images, labels in uneven_batches((3, 5), seed=step)]
        classification, discrimination = _published_losses(algorithm, batches, dialect != "domainbed-head")
        turn = "discriminator" if step % 2 < 1 else "network"
        loss = discrimination if turn == "discriminator" else classification - 0.4 * discrimination
        found = torch.autograd.grad(loss, parts[turn], allow_unused=True)
        for p, gradient in zip(copies[turn], found, strict=True):
            p.grad = gradient
        references[turn].step()
        steps.take(batches, step)
        for name, part in parts.items():
            torch.testing.assert_close([p.detach() for p in part], copies[name], rtol=1e-7, atol=1e-9)


def test_the_published_penalty_vanishes_for_batches_of_one_size():
    """Every row of the probabilities, summed over the domains of all images, is then the same number."""
    for sizes, zero in (((4, 4), True), ((3, 5), False)):
        losses = []
        for grad_penalty in (0.0, 0.7):
            torch.manual_seed(0)
            algorithm = DANN(
                double_network(), 2, grad_penalty=grad_penalty, penalised="probabilities", **NARROW
            ).double()
            losses.append(algorithm.discriminator_loss(_encoded(algorithm, uneven_batches(sizes))).item())
        assert (abs(losses[1] - losses[0]) < 1e-20) is zero
