"""The simulated landscape, its wells and the rule by which learning rates are chosen."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.optim import SGD, Adam, Optimizer

from shiftproof.diagnostics import landscape as module
from shiftproof.diagnostics.landscape import (
    BASINS,
    LEARNING_RATES,
    MINIMA,
    NEITHER,
    NOISE,
    START_SIDE,
    basins,
    descend,
    landscape,
    landscape_at,
    shares,
    simulate,
)
from shiftproof.optim import GENIE, OPTIMIZERS, SAM


def sgd(params, *, lr, seed):
    return SGD(params, lr)


@pytest.fixture
def one_rate(monkeypatch):
    """Spares the tuning where it is not what is tested."""
    monkeypatch.setattr(module, "LEARNING_RATES", (0.1,))


def test_the_formula_its_gradient_and_its_minima():
    points = torch.empty(50, 2, dtype=torch.float64).uniform_(-5, 5, generator=torch.Generator().manual_seed(0))
    points.requires_grad_()
    losses = landscape(points)
    (gradients,) = torch.autograd.grad(losses.sum(), points)
    for (x, y), loss, gradient in zip(points.tolist(), losses, gradients, strict=True):
        walls = [1 - math.exp(-((x - c) ** 2 + y**2) / (2 * s**2)) for c, s in ((-2, 0.3), (2, 1))]
        assert loss.item() == pytest.approx((1 + (x**2 + y**2) / 20) * walls[0] * walls[1], rel=1e-12)
        assert landscape_at(x, y) == pytest.approx((loss.item(), *gradient.tolist()), rel=1e-11)
    for minimum, curvature in zip(MINIMA, (13.3, 1.2), strict=True):
        centre = torch.tensor([minimum.x, minimum.y], dtype=torch.float64)
        assert landscape(centre) == 0
        assert landscape_at(*centre.tolist()) == (0, 0, 0)
        hessian = torch.autograd.functional.hessian(landscape, centre)
        torch.testing.assert_close(hessian, curvature * torch.eye(2).double(), rtol=0.01, atol=1e-9)


def test_there_is_no_third_minimum():
    grid = torch.linspace(-4.5, 4.5, 40, dtype=torch.float64)
    ends = descend(torch.cartesian_prod(grid, grid + 0.01))
    assert landscape(ends).max() < 1e-12
    found = basins(ends)
    assert set(found.tolist()) == {0, 1}
    assert 0.1 < (found == 0).double().mean() < 0.3


def test_basins_reach_two_widths():
    points = torch.tensor([[-2, 0.59], [-2.61, 0], [-1.41, 0], [2, -1.99], [0.01, 0], [-0.01, 0], [torch.nan, 0]])
    assert [BASINS[i] for i in basins(points)] == ["sharp", "neither", "sharp", "flat", "flat", "neither", "neither"]


@pytest.mark.parametrize("count", [0, 1, 30, 99, 100])
def test_shares_have_wilsons_interval(count):
    found = torch.full((100,), NEITHER)
    found[:count] = 1
    _, flat, neither = shares(found)
    assert (flat.value, neither.value) == (count / 100, (100 - count) / 100)
    for bound in (flat.low, flat.high):  # a true fraction of which what was seen is one standard error away
        assert (flat.value - bound) ** 2 == pytest.approx(bound * (1 - bound) / 100, abs=1e-15)
    assert flat.low <= flat.value <= flat.high
    assert 0 < flat.error == pytest.approx((flat.high - flat.low) / 2)


def test_runs_are_those_of_a_transcription(one_rate):
    seen = []

    def factory(params, *, lr, seed):
        seen.append((params[0].detach().clone(), seed))
        return SGD(params, lr)

    result = simulate({"SGD": factory, "again": factory}, steps=40, runs=5, tuning_runs=3)
    (runs, again), (sharp, _) = result.runs.values(), MINIMA
    assert torch.equal(runs.paths, again.paths)  # the same starts and noise
    assert torch.equal(runs.ends, again.ends)
    starts = torch.stack([start for start, _ in seen]).double()
    assert torch.equal(starts[3:8], runs.starts)
    assert len({tuple(start.tolist()) for start in starts[:8]}) == 8  # tuning runs start elsewhere
    assert len({seed for _, seed in seen[:8]}) == 8  # and optimizers draw anew in every run
    assert ((starts - torch.tensor([sharp.x, sharp.y])).abs() <= START_SIDE / 2).all()
    assert runs.paths.shape == (4, 41, 2)
    noises = []
    for path in runs.paths:
        for before, after in pairwise(path):
            slope = np.array(landscape_at(*before.tolist())[1:])
            noises.append((before - after).numpy() / 0.1 - slope)
    noises = np.concatenate(noises)
    assert noises.std() == pytest.approx(NOISE, rel=0.15)
    assert abs(noises.mean()) < 4 * NOISE / math.sqrt(len(noises))
    torch.testing.assert_close(runs.losses, landscape(runs.ends))
    assert torch.equal(runs.paths[:, 0], runs.starts[:4])
    assert torch.equal(runs.paths[:, -1], runs.ends[:4])
    assert result.descent == shares(basins(descend(runs.starts)))


def test_all_passes_of_a_step_have_the_noise_of_the_step(one_rate):
    gradients = []

    class Looks(Optimizer):
        def __init__(self, params):
            super().__init__(params, {})

        def step(self, closure):
            (point,) = self.param_groups[0]["params"]
            gradients.append([(closure(), point.grad.clone()) for _ in range(3)])

    simulate({"looks": lambda params, *, lr, seed: Looks(params)}, steps=4, runs=1, tuning_runs=1)
    assert len(gradients) == 8
    for (loss, first), *others in gradients:
        assert all(again == loss and torch.equal(gradient, first) for again, gradient in others)
    reported = torch.stack([passes[0][1] for passes in gradients[4:]])
    assert len({tuple(gradient.tolist()) for gradient in reported}) == 4


def test_the_learning_rate_with_the_lowest_loss_of_tuning_runs_is_chosen():
    told = []
    result = simulate(
        {"SGD": sgd, "slow": lambda params, *, lr, seed: SGD(params, lr / 10)},
        steps=60,
        runs=3,
        tuning_runs=2,
        on_progress=lambda *counts: told.append(counts),
    )
    assert told[-1] == (2 * (9 * 2 + 3),) * 2
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    fast, slow = result.runs["SGD"], result.runs["slow"]
    assert tuple(fast.tuning) == LEARNING_RATES
    assert fast.tuning[fast.lr] == min(fast.tuning.values())
    for lr in LEARNING_RATES[2:]:  # a tenth as fast: what is two half-decades less, to rounding
        assert slow.tuning[lr] == pytest.approx(fast.tuning[LEARNING_RATES[LEARNING_RATES.index(lr) - 2]], rel=1e-3)
    # the tuning losses, from runs whose learning rate is the only one
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LEARNING_RATES", (fast.lr,))
        alone = simulate({"SGD": sgd}, steps=60, runs=3, tuning_runs=2).runs["SGD"]
    assert alone.tuning == {fast.lr: fast.tuning[fast.lr]}
    assert torch.equal(alone.ends, fast.ends)


def test_what_diverges_is_never_chosen_and_told_if_all_do():
    def wild(above):
        return lambda params, *, lr, seed: SGD(params, lr * 1e30 if lr > above else lr)

    runs = simulate({"wild": wild(0.05)}, steps=30, runs=2, tuning_runs=2).runs["wild"]
    assert runs.lr < 0.05
    assert runs.tuning[1.0] == math.inf
    with pytest.raises(ValueError, match="wild diverges with every learning rate"):
        simulate({"wild": wild(0)}, steps=30, runs=2, tuning_runs=2)


def test_optimizers_of_all_kinds_and_entries_of_the_registry(one_rate):
    optimizers = {
        "Adam": lambda params, *, lr, seed: Adam(params, lr),
        "SAM": lambda params, *, lr, seed: SAM(params, Adam, rho=0.3, lr=lr),
        "GENIE": lambda params, *, lr, seed: GENIE(params, lr=lr, form="released", seed=seed),
        "genie": OPTIMIZERS["genie"],
        "LBFGS": lambda params, *, lr, seed: torch.optim.LBFGS(params, lr),
    }
    once, again = (simulate(optimizers, steps=10, runs=2, tuning_runs=1) for _ in range(2))
    ends = {name: runs.ends for name, runs in once.runs.items()}
    assert all(torch.equal(runs.ends, ends[name]) for name, runs in again.runs.items())
    assert all((runs.ends - runs.starts).norm(dim=1).min() > 1e-3 for runs in once.runs.values())
    assert len({tuple(end.flatten().tolist()) for end in ends.values()}) == len(optimizers)
    assert again.rows() == once.rows()


def test_rows_caption_and_figure_tell_the_same(one_rate):
    optimizers = dict.fromkeys(("first", "second", "third", "fourth", "fifth"), sgd)
    result = simulate(optimizers, steps=20, runs=6, tuning_runs=2)
    rows = [dict(zip(result.HEADER, row, strict=True)) for row in result.rows()]
    assert [row["optimizer"] for row in rows] == ["noise-free descent", *optimizers]
    for row, runs in zip(rows[1:], result.runs.values(), strict=True):
        sharp = (basins(runs.ends) == 0).double().mean().item()
        assert (row["sharp"], row["lr"], row["runs"]) == (sharp, 0.1, 6)
        assert row["mean_final_loss"] == pytest.approx(runs.losses.mean().item())
        assert row["sharp"] + row["flat"] + row["neither"] == pytest.approx(1)
        assert row["flat_standard_error"] == runs.shares()[1].error
    caption = result.caption()
    for part in (
        "6 runs of 20 steps",
        "second 0.1 (the edge of the grid)",
        "deviation 0.5",
        "2 other runs",
        "(x + 2)^2",
    ):
        assert part in caption
    figure = result.plot()
    panels = [axes for part in figure.subfigs for axes in part.axes]
    assert [axes.get_title() for axes in panels] == [*(f"{name}\nlr 0.1" for name in optimizers), ""]
    for axes, runs in zip(panels, result.runs.values(), strict=False):
        np.testing.assert_allclose(axes.lines[-1].get_xydata(), runs.ends)
        np.testing.assert_allclose(axes.lines[1].get_xydata(), runs.paths[0])


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="no optimizer"):
        simulate({})
    with pytest.raises(ValueError, match="runs value: 0"):
        simulate({"SGD": sgd}, runs=0)
