import copy
import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from algorithms.made_up_batches import assert_resumes, built_steps, uneven_batches
from draws import draw
from shiftproof.algorithms.mldg import MLDG
from shiftproof.annealing import Annealer
from shiftproof.base.randomness import seed_generators, seed_hash, torch_seed
from shiftproof.models import build_network
from shiftproof.optim import SAM
from shiftproof.protocol.settings import search_space, setting
from shiftproof.training import StepBuilder
from shiftproof.training.optimizer_factory import RunOptimizers

LR = 0.3


def _network():
    return build_network("small_conv", (1, 16, 16), 3, dropout=0.0, seed=0).double()


def _algorithm(domains, **hparams):
    algorithm = MLDG(_network(), domains, **hparams)
    algorithm.build_optimizers(lambda params: torch.optim.SGD(params, lr=LR))
    return algorithm


def _gradient(network, batches):
    """The loss and the gradient of the mean over some domains, one forward pass each."""
    losses = [F.cross_entropy(network(images), labels) for images, labels in batches]
    loss = sum(losses) / len(losses)
    return loss.detach(), torch.autograd.grad(loss, list(network.parameters()))


def _reference(network, meta_train, meta_test, beta):
    """F(w) + beta G(w - lr F'(w)), F'(w) and G'(w - lr F'(w)), by a copy of the network."""
    loss, gradient = _gradient(network, meta_train)
    moved = copy.deepcopy(network)
    with torch.no_grad():
        for p, g in zip(moved.parameters(), gradient, strict=True):
            p -= LR * g
    held_out, held_out_gradient = _gradient(moved, meta_test)
    return loss + beta * held_out, gradient, held_out_gradient


def _divided(batches, held_out, seed):
    torch.manual_seed(seed)
    order = torch.randperm(len(batches)).tolist()
    torch.manual_seed(seed)
    return [batches[i] for i in order[held_out:]], [batches[i] for i in order[:held_out]]


@pytest.mark.parametrize(("domains", "n_meta_test", "held_out"), [(2, 2, 1), (3, 2, 2), (3, 1, 1), (5, 2, 2)])
def test_objective(domains, n_meta_test, held_out):
    algorithm, batches = (
        _algorithm(domains, n_meta_test=n_meta_test, beta=0.7),
        uneven_batches((3, 4, 2, 3, 3))[:domains],
    )
    meta_train, meta_test = _divided(batches, held_out, seed=3)
    loss = algorithm.objective(batches)
    expected, _, _ = _reference(algorithm.network, meta_train, meta_test, 0.7)
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-12, atol=0)


def test_the_gradient_goes_through_the_inner_step():
    algorithm, batches = _algorithm(3, beta=0.7), uneven_batches((3, 4, 2))
    meta_train, meta_test = _divided(batches, 2, seed=3)
    algorithm.backward(batches)
    parameters = list(algorithm.network.parameters())
    torch.manual_seed(0)
    along = [torch.randn_like(p) for p in parameters]
    slope = sum((p.grad * d).sum() for p, d in zip(parameters, along, strict=True))

    def at(distance):
        shifted = copy.deepcopy(algorithm.network)
        with torch.no_grad():
            for p, d in zip(shifted.parameters(), along, strict=True):
                p += distance * d
        return _reference(shifted, meta_train, meta_test, 0.7)[0]

    torch.testing.assert_close(slope, (at(1e-6) - at(-1e-6)) / 2e-6, rtol=1e-6, atol=1e-9)
    _, gradient, held_out = _reference(algorithm.network, meta_train, meta_test, 0.7)
    first_order = sum(((g + 0.7 * h) * d).sum() for g, h, d in zip(gradient, held_out, along, strict=True))
    assert abs(float(slope - first_order)) > 1e-3 * abs(float(slope))  # the second derivatives are seen


def test_first_order_leaves_the_second_derivatives_out():
    algorithm, batches = _algorithm(3, beta=0.7, first_order=True), uneven_batches((3, 4, 2))
    meta_train, meta_test = _divided(batches, 2, seed=3)
    loss = algorithm.backward(batches)
    expected, gradient, held_out = _reference(algorithm.network, meta_train, meta_test, 0.7)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for p, g, h in zip(algorithm.network.parameters(), gradient, held_out, strict=True):
        torch.testing.assert_close(p.grad, g + 0.7 * h, rtol=1e-9, atol=1e-15)
    once = [p.grad.clone() for p in algorithm.parameters()]
    torch.manual_seed(3)
    algorithm.backward(batches)  # adds, as any backward pass does
    torch.testing.assert_close([p.grad for p in algorithm.parameters()], [2 * g for g in once], rtol=1e-9, atol=1e-15)


@pytest.mark.slow
def test_first_order_trains_a_compiled_network():
    plain, compiled = (_algorithm(2, first_order=True) for _ in range(2))
    compiled.network.compile(backend="aot_eager")
    losses = []
    for algorithm in (plain, compiled):
        torch.manual_seed(3)
        losses.append(algorithm.backward(uneven_batches((3, 4))))
    torch.testing.assert_close(*losses, rtol=1e-9, atol=0)
    gradients = ([p.grad for p in algorithm.parameters()] for algorithm in (plain, compiled))
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-12)


def test_without_the_meta_test_it_trains_the_meta_train_domains():
    algorithm, batches = _algorithm(2, beta=0.0), uneven_batches((4, 4))
    (kept,), _ = _divided(batches, 1, seed=1)
    start = copy.deepcopy(algorithm.network)
    torch.manual_seed(1)
    algorithm.update(batches, 1, lambda batches: lambda: algorithm.backward(batches))
    for p, before, g in zip(
        algorithm.network.parameters(), start.parameters(), _gradient(start, [kept])[1], strict=True
    ):
        torch.testing.assert_close(p.detach(), before.detach() - LR * g, rtol=1e-9, atol=1e-15)


def test_all_passes_of_an_optimizer_hold_out_the_same_domains_and_step_by_its_learning_rate():
    algorithm = MLDG(_network(), 3, n_meta_test=1)
    algorithm.build_optimizers(lambda params: SAM(params, base=torch.optim.SGD, rho=1e-9, lr=LR))
    builder = StepBuilder(algorithm, Annealer(), seed=0)
    plain = StepBuilder(_algorithm(3, n_meta_test=1), Annealer(), seed=0)
    for step in range(1, 4):  # so small a perturbation changes nothing but by another draw
        builder.take(uneven_batches((3, 4, 2)), step)
        plain.take(uneven_batches((3, 4, 2)), step)
    for p, expected in zip(algorithm.parameters(), plain.algorithm.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=0, atol=1e-7)


def test_resumed_it_continues_bit_equal():
    whole = StepBuilder(_algorithm(3), Annealer(), seed=0)
    for step in (1, 2):
        whole.take(uneven_batches((3, 4, 2)), step)
    again = StepBuilder(_algorithm(3), Annealer(), seed=0)
    again.algorithm.load_state_dict(copy.deepcopy(whole.algorithm.state_dict()))
    for step in (3, 4):
        assert torch.equal(whole.take(uneven_batches((3, 4, 2)), step), again.take(uneven_batches((3, 4, 2)), step))
    for p, expected in zip(again.algorithm.parameters(), whole.algorithm.parameters(), strict=True):
        assert torch.equal(p, expected)


def test_a_transformer_has_the_second_derivatives():
    torch.manual_seed(0)
    network = build_network("vit_tiny_patch16_224", (3, 32, 32), 3, dropout=0.0, seed=0)
    algorithm = MLDG(network, 2)
    algorithm.build_optimizers(lambda params: torch.optim.SGD(params, lr=LR))
    batches = [(torch.randn(2, 3, 32, 32), torch.tensor([0, 1])) for _ in range(2)]
    assert algorithm.backward(batches).isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_one_domain_is_refused():
    with pytest.raises(ValueError, match="needs at least two, not 1"):
        MLDG(_network(), 1)


@pytest.mark.parametrize(
    ("hparam", "value"),
    [("beta", -1.0), ("beta", float("nan")), ("n_meta_test", 0), ("n_meta_test", 1.0), ("n_meta_test", True)],
)
def test_invalid_hyperparameters(hparam, value):
    with pytest.raises(ValueError, match=f"Invalid {hparam} value"):
        MLDG(_network(), 3, **{hparam: value})


def test_draws_are_those_of_domainbed_and_plain_numbers():
    seed = seed_hash(3, 1)
    drawn = draw(MLDG.hparams, 3, 1)
    assert drawn == {
        "beta": 10 ** np.random.RandomState(seed_hash(seed, "mldg_beta")).uniform(-1, 1),
        "n_meta_test": int(np.random.RandomState(seed_hash(seed, "n_meta_test")).choice([1, 2])),
        "first_order": False,
    }
    assert json.loads(json.dumps(drawn)) == drawn
    MLDG(_network(), 3, **drawn)


def _published_pairs(order, pairing, n_meta_test):
    """DomainBed's pairs of (meta-train, meta-test) domains; of "split", the held-out ones come first in our order."""
    if pairing == "ring":
        return [(order[i], order[(i + 1) % len(order)]) for i in range(len(order))]
    held_out, rest = order[:n_meta_test], order[n_meta_test:]
    return [(one, held_out[i % len(held_out)]) for i, one in enumerate(rest)]


@pytest.mark.parametrize(
    ("dialect", "n_meta_test", "inner_lr"),
    [("domainbed", 2, 0.0), ("swad", 2, 3e-3), ("domainbed-head", 2, 0.0), ("domainbed-head", 1, 3e-3)],
)
def test_the_dialects_take_the_steps_of_published_code(dialect, n_meta_test, inner_lr):
    """For every pair, the first step of a new Adam on a copy; then one outer step, of first order."""
    lr, decay, beta = 1e-2, 0.03, 0.7
    space = search_space("PACS", "photographs", True, "mldg", "adam", "none", "protocol")
    fixed = {"algorithm.n_meta_test": n_meta_test, "algorithm.beta": beta, "algorithm.inner_lr": inner_lr}
    values = setting(space, fixed, 0, 0, dialect)
    options = {n.removeprefix("algorithm."): v for n, v in values.items() if n.startswith("algorithm.")}
    algorithm = MLDG(_network(), 3, **options)
    steps = built_steps(algorithm, "adam", lr=lr, weight_decay=decay)
    network = copy.deepcopy(algorithm.network)
    outer = torch.optim.Adam(network.parameters(), lr=lr, weight_decay=decay)
    for step in range(1, 6):
        batches = uneven_batches((3, 4, 2), seed=step)
        seed_generators(torch_seed(0, "step", step), torch.device("cpu"))
        order = torch.randperm(3).tolist()
        pairing = "split" if dialect == "domainbed-head" else "ring"
        total, sums = 0.0, [torch.zeros_like(p) for p in network.parameters()]
        for i, j in _published_pairs(order, pairing, n_meta_test):
            count = min(len(batches[i][1]), len(batches[j][1]))
            (images, labels), (others, other_labels) = ([part[:count] for part in batches[domain]] for domain in (i, j))
            inner = copy.deepcopy(network)
            loss = F.cross_entropy(inner(images), labels)
            gradients = torch.autograd.grad(loss, list(inner.parameters()))
            for p, gradient in zip(inner.parameters(), gradients, strict=True):
                p.grad = gradient
            torch.optim.Adam(inner.parameters(), lr=inner_lr or lr, weight_decay=decay).step()
            held_out = F.cross_entropy(inner(others), other_labels)
            there = torch.autograd.grad(held_out, list(inner.parameters()))
            for total_of, at_start, moved in zip(sums, gradients, there, strict=True):
                total_of += (at_start + beta * moved) / 3
            total += (loss + beta * held_out).item() / 3
        for p, gradient in zip(network.parameters(), sums, strict=True):
            p.grad = gradient
        outer.step()
        assert steps.take(batches, step).item() == pytest.approx(total, rel=1e-10)
        weights = [list(one.parameters()) for one in (algorithm.network, network)]
        torch.testing.assert_close(*weights, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("optimizer", ["sam", "adahessian", "genie"])
def test_the_inner_step_is_one_of_any_optimizer(optimizer):
    def build():
        torch.manual_seed(2)
        return MLDG(_network(), 3, inner_optimizer=True, pairing="ring")

    whole = assert_resumes(build, optimizer, (4, 6, 3))
    start = build().state_dict()
    assert all(not torch.equal(p, start[name]) for name, p in whole.algorithm.named_parameters())


def test_statistics_of_batch_norms_follow_the_passes_at_the_weights_themselves():
    network = build_network("resnet18", (3, 32, 32), 3, dropout=0.0, seed=0)
    algorithm = MLDG(network, 2, inner_optimizer=True, pairing="ring")
    steps = built_steps(algorithm, "adam")
    batches = [(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])) for _ in range(2)]
    expected = copy.deepcopy(network)
    seed_generators(torch_seed(0, "step", 1), torch.device("cpu"))
    for domain in torch.randperm(2).tolist():  # of both pairs of the ring, the first
        expected(batches[domain][0])
    steps.take(batches, 1)
    for name, b in network.named_buffers():
        torch.testing.assert_close(b, expected.get_buffer(name), msg=name)


def test_inner_optimizers_draw_anew_in_every_pair_and_step():
    algorithm, names = MLDG(_network(), 3, inner_optimizer=True, pairing="ring"), []
    steps = built_steps(algorithm, "genie")
    factory = algorithm._factory
    algorithm._factory = lambda params, name: names.append(name) or factory(params, name=name)
    for step in (1, 2):
        steps.take(uneven_batches((3, 4, 2), seed=step), step)
    assert len(set(names)) == len(names) == 6


def test_asam_goes_by_names_in_the_inner_step_too():
    algorithm = MLDG(_network(), 2, inner_optimizer=True)
    named = {p: name for name, p in algorithm.network.named_parameters()}
    hparams = {"lr": 1e-2, "weight_decay": 0.0, "by_name": True}
    algorithm.build_optimizers(RunOptimizers("asam", 1, hparams, names=named))
    loss = StepBuilder(algorithm.train(), Annealer(), seed=0).take(uneven_batches((3, 4)), 1)
    assert loss.isfinite()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_lr": -1.0}, "Invalid inner_lr value: -1.0; it must be at least 0"),
        ({"pairing": "line"}, "Invalid pairing value: line; it must be one of groups, split, ring"),
    ],
)
def test_options_of_the_inner_step_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        _algorithm(2, **options)
