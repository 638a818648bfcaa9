"""Schedules of the learning rate: their course, and that every optimizer follows it, killed or not."""

import copy
import json
import math
from itertools import pairwise

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, SequentialLR

from algorithms.made_up_batches import uneven_batches
from algorithms.made_up_runs import FROM_SCRATCH
from shiftproof.algorithms import ALGORITHMS, ERM
from shiftproof.annealing import Annealer
from shiftproof.models import build_network
from shiftproof.optim import GENIE, OPTIMIZERS, GENIEAdamW
from shiftproof.training import StepBuilder, build_steps, train
from shiftproof.training.loop import Loop
from shiftproof.training.optimizer_factory import RunOptimizers
from shiftproof.training.schedules import ScheduledRates, rate_factor
from training.killed import train_killed_at

CPU = torch.device("cpu")
STEPS = 6


def _factors(schedule, steps, warm_up=0):
    return [rate_factor(schedule, step, steps=steps, warm_up=warm_up) for step in range(1, steps + 1)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 2, 1, 1, 1, 1, 1]),
        ("linear", [1 / 2, 1, 3 / 4, 1 / 2, 1 / 4, 0]),
        ("cosine", [1 / 2, 1, (1 + math.sqrt(1 / 2)) / 2, 1 / 2, (1 - math.sqrt(1 / 2)) / 2, 0]),
    ],
)
def test_the_rate_rises_over_the_warm_up_and_falls_to_0_at_the_last_step(schedule, expected):
    assert _factors(schedule, 6, warm_up=2) == pytest.approx(expected, abs=1e-15)
    for step in (6, 7, 60):
        assert rate_factor(schedule, step, steps=6) == (1 if schedule == "constant" else 0)


@pytest.mark.parametrize("warm_up", [1, 2, 7])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_course_is_that_of_torchs_schedulers(schedule, warm_up):
    steps = 20
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rise = LinearLR(optimizer, 1 / warm_up, 1.0, max(warm_up - 1, 1))
    fall = (
        LinearLR(optimizer, 1.0, 0.0, steps - warm_up)
        if schedule == "linear"
        else CosineAnnealingLR(optimizer, steps - warm_up)
    )
    scheduler = fall if warm_up == 1 else SequentialLR(optimizer, [rise, fall], [warm_up - 1])
    expected = []
    for _ in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert _factors(schedule, steps, warm_up) == pytest.approx(expected, abs=1e-12)


def _algorithm(optimizer, **hparams):
    """ERM with an optimizer at its defaults, with weight decay, dropout of updates and noise where there are any."""
    entry = OPTIMIZERS[optimizer]
    defaults = {name: hparam.default for name, hparam in entry.search_space(False, "short").items()}
    drawn = {"dropout": 0.4} if "dropout" in defaults else {}
    algorithm = ERM(build_network("small_conv", (1, 16, 16), 4, dropout=0.2, seed=0), 2)
    algorithm.build_optimizers(RunOptimizers(optimizer, 3, {**defaults, **drawn, "weight_decay": 0.1, **hparams}))
    return algorithm


def _steps(algorithm, optimizer, rates=None):
    return StepBuilder(algorithm, Annealer(), seed=0, create_graph=OPTIMIZERS[optimizer].needs_graph, rates=rates)


def _batches(step=0):
    return [(images.float(), labels) for images, labels in uneven_batches(seed=step)]


def _weights(algorithm):
    return copy.deepcopy([p.detach() for p in algorithm.parameters()])


def _cosine(step):
    return rate_factor("cosine", step, steps=STEPS, warm_up=2)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_every_optimizer_follows_the_schedule_as_under_torchs_and_stands_still_at_the_last_step(optimizer):
    ours, torchs = _algorithm(optimizer), _algorithm(optimizer)
    taken = _steps(ours, optimizer, ScheduledRates(ours.optimizers, _cosine)), _steps(torchs, optimizer)
    scheduler = LambdaLR(torchs.optimizers["all"], lambda epoch: _cosine(epoch + 1))
    seen = [_weights(ours)]
    for step in range(1, STEPS + 1):
        losses = [one.take(_batches(step), step) for one in taken]
        assert torch.equal(*losses)
        scheduler.step()
        seen.append(_weights(ours))
        assert all(torch.equal(p, q) for p, q in zip(seen[-1], _weights(torchs), strict=True))
    moved = [not all(map(torch.equal, before, after)) for before, after in pairwise(seen)]
    assert moved == [True] * (STEPS - 1) + [False]


@pytest.mark.parametrize("optimizer", ["adam", "genie", "genie_adamw"])
def test_the_rate_of_a_step_scales_its_update(optimizer):
    """Half the rate at the first step moves the weights half as far."""
    moved = []
    for factor in (1.0, 0.5):
        algorithm = _algorithm(optimizer, weight_decay=0.0)
        start = _weights(algorithm)
        rates = ScheduledRates(algorithm.optimizers, lambda step, factor=factor: factor)
        _steps(algorithm, optimizer, rates).take(_batches(), 1)
        moved.append([p - q for p, q in zip(_weights(algorithm), start, strict=True)])
    for whole, half in zip(*moved, strict=True):
        torch.testing.assert_close(half, whole / 2, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("algorithm", FROM_SCRATCH)
def test_all_groups_of_all_optimizers_are_scheduled(algorithm, make_spec, digits):
    """Each has its own rate times the factor, whatever an algorithm builds."""
    facts = _facts(algorithm, **({"algorithm.lr_ratio": 3.0} if algorithm == "dann" else {}))
    plain, scheduled = (
        build_steps(make_spec(**facts, **schedule), digits, CPU, None)
        for schedule in ({}, {"schedule": "linear", "warm_up": 2})
    )
    for step, factor in ((1, 0.5), (2, 1.0), (7, 0.5), (12, 0.0)):
        scheduled.rates.set(step)
        assert _lrs(scheduled) == {
            name: [pytest.approx(lr * factor) for lr in lrs] for name, lrs in _lrs(plain).items()
        }
    ratios = {lr / 0.01 for lrs in _lrs(plain).values() for lr in lrs}
    assert ratios == {1.0, *{"dann": [3.0], "miro": [10.0]}.get(algorithm, [])}


def _lrs(steps):
    return {n: [group["lr"] for group in one.param_groups] for n, one in steps.algorithm.optimizers.items()}


def _facts(algorithm, **changes):
    """What a spec says of an algorithm at its defaults."""
    entry = ALGORITHMS[algorithm]
    hparams = {f"algorithm.{name}": hparam.default for name, hparam in {**entry.hparams, **entry.short_hparams}.items()}
    small = {"data.batch_size": 4, "model.dropout": 0.2, "optimizer.lr": 0.01}
    return {"algorithm": algorithm, "hparams": {**hparams, **small, **changes}}


def test_fish_stands_still_where_the_rate_is_0():
    algorithm = ALGORITHMS["fish"](build_network("small_conv", (1, 16, 16), 4, dropout=0.0, seed=0).double(), 2)
    algorithm.build_optimizers(RunOptimizers("adam", 3, {"lr": 0.01}))
    steps = _steps(algorithm, "adam", ScheduledRates(algorithm.optimizers, lambda step: 2 - step))
    start = _weights(algorithm)
    steps.take(uneven_batches(), 1)
    first = _weights(algorithm)
    steps.take(uneven_batches(), 2)
    assert not any(map(torch.equal, start, first))
    assert all(map(torch.equal, first, _weights(algorithm)))


def test_a_rate_held_as_a_tensor_is_set_in_place():
    rate = torch.tensor(0.5)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=rate, foreach=False)
    held = optimizer.param_groups[0]["lr"]
    ScheduledRates({"all": optimizer}, lambda step: 1 / step).set(4)
    assert optimizer.param_groups[0]["lr"] is held
    assert held.item() == 0.125


@pytest.mark.parametrize("algorithm", ["irm", "vrex", "fishr", "ib_erm", "eqrm", "rdm"])
def test_an_optimizer_that_an_algorithm_builds_anew_has_the_rate_of_its_step(algorithm, make_spec, digits):
    """These build another one after the step at which their penalty rises."""
    spec = make_spec(
        algorithm=algorithm, schedule="linear", steps=10,
        hparams={"data.batch_size": 4, "model.dropout": 0.0, "optimizer.lr": 0.01, "algorithm.anneal_steps": 5},
    )  # fmt: skip
    loop = Loop(spec, digits, torch.device("cpu"), None)
    for step in range(1, 8):
        loop.steps.take(loop.inputs.batches(step), step)
        [group] = loop.algorithm.optimizers["all"].param_groups
        later = loop.algorithm.lr_ratio if step > 5 else 1.0
        assert group["lr"] == pytest.approx(0.01 * later * (10 - step) / 10)


@pytest.mark.parametrize("optimizer", [GENIE, GENIEAdamW])
def test_genie_follows_a_rate_held_as_a_tensor(optimizer):
    """A tensor gives what a number gives; these are exact in float32."""
    weights = []
    for rate in (0.125, torch.tensor(0.125)):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 64))
        built = optimizer([p], lr=rate, seed=1)
        rates = ScheduledRates({"all": built}, lambda step: 0.5**step)
        for step in (1, 2, 3):
            rates.set(step)
            p.grad = torch.sin(step * p.detach())
            built.step()
        weights.append(p.detach())
    assert torch.equal(*weights)


def test_an_optimizer_without_a_rate_is_refused():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))])
    del optimizer.param_groups[0]["lr"]
    with pytest.raises(ValueError, match="SGD has no lr in its param_groups that a schedule could set"):
        ScheduledRates({"all": optimizer}, lambda step: 1.0)


@pytest.mark.parametrize("algorithm", ["erm", "dann"])
@pytest.mark.parametrize("optimizer", ["sam", "genie_adamw"])
def test_a_killed_run_continues_its_schedule(algorithm, optimizer, make_spec, digits, tmp_path):
    facts = {"optimizer": optimizer, **_facts(algorithm)}
    spec = make_spec(**facts, schedule="cosine", warm_up=3)
    undisturbed = train(spec, digits, tmp_path / "a", device=CPU)
    for step in (2, 6, 11):
        train_killed_at(step, spec, digits, tmp_path / "b")
    resumed = train(spec, digits, tmp_path / "b", device=CPU)
    assert {**resumed, "seconds": None} == {**undisturbed, "seconds": None}
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "a" / "spec.json").read_text())["schedule"] == "cosine"
    constant = train(make_spec(**facts), digits, tmp_path / "c", device=CPU)
    assert constant["weights_sha256"] != undisturbed["weights_sha256"]
