"""L2-SP: its gradient under every algorithm, what it leaves alone, and that a kill does not move the start."""

import copy

import pytest
import torch
from torch import nn

from algorithms.made_up_batches import double_network, uneven_batches
from algorithms.made_up_runs import FROM_SCRATCH
from shiftproof.algorithms import ALGORITHMS, DANN, ERM
from shiftproof.annealing import GGAL, Annealer
from shiftproof.base.field_error import FieldError
from shiftproof.studies import Study, make_plan
from shiftproof.training import Inputs, StepBuilder, build_steps, train
from shiftproof.training.start_penalty import StartPenalty
from training.killed import train_killed_at

CPU = torch.device("cpu")
STRENGTH = 0.7


class _Spy(torch.optim.SGD):
    """Calls its closure and moves nothing; keeps the loss and the gradients."""

    def step(self, closure):
        with torch.enable_grad():
            self.loss = closure()
        self.grads = [p.grad for p in self.param_groups[0]["params"]]
        return self.loss


def _moved_erm(seed=1):
    """ERM away from where it started, its penalty and its network at the start."""
    algorithm = ERM(double_network(), 2)
    algorithm.build_optimizers(lambda params: _Spy(params, lr=0.1))
    penalty = StartPenalty(STRENGTH, algorithm.network.featurizer.parameters())
    start = copy.deepcopy(algorithm.network)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in algorithm.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype), alpha=0.1)
    return algorithm, penalty, start


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_gradient_is_that_of_the_loss_plus_the_penalty_and_the_loss_is_without(accumulate):
    algorithm, penalty, start = _moved_erm()
    batches = uneven_batches((4, 4))
    loss = StepBuilder(algorithm, Annealer(), seed=0, accumulate=accumulate, penalty=penalty).take(batches, 1)
    objective = algorithm.objective(batches)
    torch.testing.assert_close(loss, objective.detach(), rtol=1e-12, atol=0)
    pairs = zip(algorithm.network.featurizer.parameters(), start.featurizer.parameters(), strict=True)
    whole = objective + STRENGTH / 2 * sum((p - q.detach()).square().sum() for p, q in pairs)
    expected = torch.autograd.grad(whole, list(algorithm.parameters()))
    for found, gradient in zip(algorithm.optimizers["all"].grads, expected, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-10, atol=1e-14)
        assert not found.requires_grad


def test_it_is_clipped_with_the_rest():
    algorithm, penalty, _ = _moved_erm()
    StepBuilder(algorithm, Annealer(), seed=0, clip_norm=1e-3, penalty=penalty).take(uneven_batches(), 1)
    norm = nn.utils.get_total_norm(algorithm.optimizers["all"].grads)
    torch.testing.assert_close(norm, torch.tensor(1e-3).double(), rtol=1e-3, atol=0)


@pytest.mark.filterwarnings("ignore:Using backward")
def test_a_second_derivative_has_its_curvature():
    """The Hessian of the penalty is its strength times one, for the featurizer alone."""
    products = []
    for has in (True, False):
        algorithm, penalty, _ = _moved_erm()
        steps = StepBuilder(algorithm, Annealer(), seed=0, create_graph=True, penalty=penalty if has else None)
        steps.take(uneven_batches(), 1)
        sums = sum(g.sum() for g in algorithm.optimizers["all"].grads)
        products.append(torch.autograd.grad(sums, list(algorithm.parameters())))
    for (name, _), with_it, without in zip(algorithm.named_parameters(), *products, strict=True):
        curvature = STRENGTH if name.startswith("network.featurizer.") else 0.0
        torch.testing.assert_close(with_it - without, torch.full_like(without, curvature), rtol=1e-9, atol=1e-11)


def test_it_is_added_where_an_annealers_passes_give_the_gradient():
    grads = []
    for has in (True, False):
        algorithm, penalty, start = _moved_erm()
        steps = StepBuilder(algorithm, GGAL(gamma=0.1), seed=0, penalty=penalty if has else None)
        steps.take(uneven_batches((4, 4)), 1)
        assert steps.annealer.extra_passes == 0
        grads.append(algorithm.optimizers["all"].grads)
    moved = zip(algorithm.network.featurizer.parameters(), start.featurizer.parameters(), strict=True)
    expected = [STRENGTH * (p - q).detach() for p, q in moved]
    for with_it, without, gradient in zip(*grads, [*expected, *[0 * g for g in grads[0][-2:]]], strict=True):
        torch.testing.assert_close(with_it - without, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("algorithm", FROM_SCRATCH)
def test_every_algorithm_is_held(algorithm, make_spec, digits):
    """A step of plain SGD goes further towards the start by its rate times the strength times the distance."""
    entry, rate = ALGORITHMS[algorithm], 0.1
    hparams = {f"algorithm.{name}": hparam.default for name, hparam in {**entry.hparams, **entry.short_hparams}.items()}
    hparams |= {"data.batch_size": 4, "model.dropout": 0.2, "optimizer.lr": rate, "optimizer.momentum": 0.0}
    if algorithm == "iga":  # at the default a step at this rate is so long that rounding hides the difference
        hparams["algorithm.penalty_weight"] = 0.01
    # with several domains, Fish takes several steps one after the other
    targets = tuple(digits.domain_names[1:]) if algorithm == "fish" else ("30",)
    facts = {"algorithm": algorithm, "optimizer": "sgd", "hparams": hparams, "targets": targets}
    states = []
    for strength in (0.0, STRENGTH):
        spec = make_spec(**facts, l2_sp=strength)
        steps = build_steps(spec, digits, CPU, None)
        start = {name: p.detach().clone() for name, p in steps.algorithm.network.featurizer.named_parameters()}
        moved = {}
        with torch.no_grad():
            for i, (name, p) in enumerate(steps.algorithm.network.featurizer.named_parameters()):
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)), alpha=0.1)
                moved[f"network.featurizer.{name}"] = p.detach() - start[name]
        steps.algorithm.train()
        steps.take(Inputs(digits, spec, steps.algorithm.network.normalisation, CPU).batches(1), 1)
        states.append({name: p.detach().clone() for name, p in steps.algorithm.named_parameters()})
    step = rate * STRENGTH * (hparams["algorithm.meta_lr"] if algorithm == "fish" else 1)
    for name, free in states[0].items():
        expected = -step * moved[name] if name in moved else torch.zeros_like(free)
        torch.testing.assert_close(states[1][name] - free, expected, rtol=1e-3, atol=2e-6, msg=name)


def test_a_discriminators_closure_is_without():
    algorithm = DANN(double_network(), 2).double()
    algorithm.build_optimizers(lambda params, **_: _Spy(params, lr=0.1))
    penalty = StartPenalty(STRENGTH, algorithm.network.featurizer.parameters())
    StepBuilder(algorithm, Annealer(), seed=0, penalty=penalty).take(uneven_batches(), 1)
    # the discriminator's turn is the last
    assert all(p.grad is None for p in algorithm.network.featurizer.parameters())


def test_what_is_frozen_is_left_and_what_has_no_gradient_is_held():
    frozen, unused = nn.Parameter(torch.ones(2), requires_grad=False), nn.Parameter(torch.ones(2))
    penalty = StartPenalty(0.5, [frozen, unused])
    with torch.no_grad():
        unused += 3
    penalty.add_gradients(create_graph=False)
    assert frozen.grad is None
    assert torch.equal(unused.grad, torch.full((2,), 1.5))


def test_a_killed_run_is_held_to_the_same_start(make_spec, digits, tmp_path):
    facts = {"optimizer": "genie_adamw", "schedule": "cosine", "layer_decay": 0.5}
    spec = make_spec(**facts, l2_sp=STRENGTH)
    undisturbed = train(spec, digits, tmp_path / "a", device=CPU)
    for step in (5, 10):
        train_killed_at(step, spec, digits, tmp_path / "b")
    resumed = train(spec, digits, tmp_path / "b", device=CPU)
    assert {**resumed, "seconds": None} == {**undisturbed, "seconds": None}
    free = train(make_spec(**facts), digits, tmp_path / "c", device=CPU)
    assert free["weights_sha256"] != undisturbed["weights_sha256"]


def test_what_cannot_be_held_is_refused():
    with pytest.raises(FieldError, match="l2_sp acts on the weights before the classifier, and none of them") as error:
        make_plan(Study(datasets=("vowels",), model="linear", optimizers=("adam",), trials=1, l2_sp=0.1))
    assert error.value.fields == ("l2_sp", "trained", "model")
    with pytest.raises(FieldError, match=r"l2_sp must be a number, at least 0, not -0\.1"):
        Study(l2_sp=-0.1)
