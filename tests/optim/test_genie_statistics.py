"""statistics() of GENIE and GENIEAdamW against what the transcriptions say that the last step did."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from shiftproof.optim import GENIE, GENIEAdamW

from . import genie_adamw_transcription
from . import genie_transcription as transcription
from .test_genie import (
    FORMS,
    IMPLEMENTATIONS,
    SEED,
    Twin,
    assert_same_bits,
    bits,
    one_parameter,
    saved_and_loaded,
    step_with,
)

GROUPS = [
    {"lr": 0.02},
    {"lr": 0.3, "beta": 0.8, "noise": 0.5, "dropout": 0.25},
    {"lr": 0.1, "precondition": False, "weight_decay": 0.1},
    {"lr": 0.1, "dropout": 0.0, "maximize": True},
]
OTHERS = {"paper": "released", "released": "paper"}


def expected_statistics(members, settings, precision=np.float64):
    """A group's statistics, from the states (by position) that a step of the transcription left."""
    form, beta = settings["form"], settings.get("beta", 0.95)
    noise, lr = settings.get("noise", 1.0), settings.get("lr", transcription.DEFAULT_LR[form])
    parts = [transcription.terms(state, form, beta) for _, state in members]
    factors = np.concatenate([part.factor for part in parts])
    preconditioned = settings.get("precondition", True)
    updates = np.concatenate([part.mean * (part.factor if preconditioned else 1.0) for part in parts])
    noises = np.concatenate([noise * part.spread * (1 - part.certainty) for part in parts])
    # Noise acts where certainty is not 1 in the precision of the step.
    noisy = np.concatenate([part.certainty.astype(precision) < 1 for part in parts]) & bool(noise)
    threshold = round(65536 * settings.get("dropout", 0.4))
    halfwords = [
        transcription.halfwords(SEED, state["exp_avg"].size, position, state["step"]) for position, state in members
    ]
    kept = np.concatenate(halfwords) >= threshold
    rescale = 1.0 if form == "paper" else 1 / (1 - threshold / 65536)
    return {
        "factor_mean": factors.mean(),
        "factor_quantiles": {q: np.quantile(factors, q, method="inverted_cdf") for q in (0.05, 0.25, 0.5, 0.75, 0.95)},
        "noisy_fraction": noisy.mean(),
        "noise_to_update": np.sqrt((noises[noisy] ** 2).sum() / (updates[noisy] ** 2).sum()) if noisy.any() else None,
        "noise_exceeds_update": (noises[noisy] ** 2).sum() > (updates**2).sum(),
        "kept_fraction": kept.mean(),
        "update_magnitude": np.abs(lr * updates * kept * rescale).mean(),
    }


def assert_agree(statistics, expected, precision=np.float64):
    # In float32 one minus certainty is a multiple of 6e-8.
    tolerance = {"rel": 1e-9, "abs": 0.0} if precision == np.float64 else {"rel": 1e-3, "abs": 1e-8}
    quantiles, exact = statistics.factor_quantiles, expected["factor_quantiles"]
    assert quantiles.keys() == exact.keys()
    assert all(abs(quantiles[q] - exact[q]) <= 1 / 2048 for q in exact)
    assert statistics.kept_fraction == expected["kept_fraction"]
    assert statistics.noise_exceeds_update == expected["noise_exceeds_update"]
    for name in ("factor_mean", "noisy_fraction", "noise_to_update", "update_magnitude"):
        actual = getattr(statistics, name)
        assert actual == expected[name] or actual == pytest.approx(expected[name], **tolerance), name


@FORMS
@IMPLEMENTATIONS
@pytest.mark.parametrize("std", [0.02, 1.0])
def test_statistics_are_the_transcriptions(form, implementation, std):
    shapes = [(40, 30), (500,), ()]
    groups = [(shapes, options) for options in GROUPS] + [(shapes, {"form": OTHERS[form], "lr": 0.05})]
    twin = Twin(*groups, implementation=implementation, form=form)
    twin.freeze(7)
    for index in range(8):
        twin.step(std, missing={4} if index > 5 else ())  # whose last step is earlier than the others'
    precision = {torch.float64: np.float64, torch.float32: np.float32}[implementation.dtype]
    statistics = twin.optimizer.statistics()
    assert len(statistics) == len(groups)
    for index, actual in enumerate(statistics):
        members = [(i, twin.states[i]) for i in range(3 * index, 3 * index + 3) if twin.states[i]]
        assert_agree(actual, expected_statistics(members, twin.settings[3 * index], precision), precision)


@FORMS
def test_update_magnitude_is_how_far_weights_move(form):
    """Measured on the weights themselves, where there is no noise."""
    twin = Twin(([(30, 20), (50,)], {}), form=form, noise=0.0)
    for _ in range(5):
        before = bits(twin.params)
        twin.step()
        moved = torch.cat([(old - new).abs().flatten() for old, new in zip(before, twin.params, strict=True)])
        (statistics,) = twin.optimizer.statistics()
        assert statistics.update_magnitude == pytest.approx(moved.mean().item(), rel=1e-9)
        assert statistics.kept_fraction == (moved != 0).double().mean().item()
        assert (statistics.noisy_fraction, statistics.noise_to_update) == (0.0, None)


@FORMS
def test_noise_to_update_is_how_much_further_weights_move_with_noise(form):
    """Measured on the weights themselves, to the error of a sample."""
    runs = [Twin(([(20_000,)], {}), form=form, noise=noise, dropout=0.0) for noise in (1.0, 0.0)]
    for _ in range(6):
        before = [bits(twin.params)[0] for twin in runs]
        for twin in runs:
            twin.step(2.0)
    loud, quiet = (twin.params[0].detach() - old for twin, old in zip(runs, before, strict=True))
    (statistics,) = runs[0].optimizer.statistics()
    assert statistics.noisy_fraction > 0.95
    ratio = ((loud - quiet).square().mean() / quiet.square().mean()).sqrt().item()
    assert statistics.noise_to_update == pytest.approx(ratio, rel=0.05)


def test_a_spike_of_the_gradient_makes_the_noise_larger_than_the_update():
    """In the paper's form, even on few of many elements; the released form's noise is as large as a mean update."""
    param, optimizer = one_parameter([0.0] * 1000, torch.float64, dropout=0.0)
    generator = torch.Generator().manual_seed(0)
    shown = []
    for step in range(12):
        gradient = 1e-3 + 1e-3 * torch.randn(1000, generator=generator, dtype=torch.float64)
        if step == 11:
            gradient[:20] = 50.0
        before = param.detach().clone()
        step_with(optimizer, gradient)
        shown += optimizer.statistics()
    assert [one.noise_exceeds_update for one in shown] == [False] * 11 + [True]
    assert shown[-1].noisy_fraction == 0.02
    assert (param.detach() - before)[:20].square().mean() > 10 * shown[-1].update_magnitude ** 2


def test_genie_adamws_are_its_transcriptions():
    param = torch.zeros(3000, dtype=torch.float64, requires_grad=True)
    options = {"lr": 0.1, "dropout": 0.25, "weight_decay": 0.0}
    optimizer = GENIEAdamW([param], seed=SEED, **options)
    generator, state = torch.Generator().manual_seed(0), {}
    for _ in range(6):
        before = param.detach().clone()
        step_with(optimizer, 0.5 + torch.randn(3000, generator=generator, dtype=torch.float64))
        genie_adamw_transcription.step(np.zeros(3000), param.grad.numpy(), state)
        (shown,) = optimizer.statistics()
        moved = (param.detach() - before).abs()
        correction = 1 - 0.9 ** state["step"]
        mean, power = state["exp_avg"] / correction, state["exp_avg_sq"] / (1 - 0.999 ** state["step"])
        factors = genie_adamw_transcription.factor(mean, power, correction, 0.9)
        assert shown.factor_mean == pytest.approx(factors.mean(), rel=1e-9)
        for q, value in shown.factor_quantiles.items():
            assert value == pytest.approx(np.quantile(factors, q, method="inverted_cdf"), abs=1 / 2048)
        assert shown.kept_fraction == (moved != 0).double().mean().item()
        assert shown.update_magnitude == pytest.approx(moved.mean().item(), rel=1e-9)
        assert (shown.noisy_fraction, shown.noise_to_update, shown.noise_exceeds_update) == (0.0, None, False)


@FORMS
@IMPLEMENTATIONS
def test_asking_changes_nothing(form, implementation):
    asked, silent = (Twin(([(33,), (4, 5)], {}), form=form, implementation=implementation) for _ in range(2))
    for index in range(6):
        for twin in (asked, silent):
            twin.step(2.0)
        if index == 3:
            for param in asked.params:
                param.grad = None  # it is not needed
        torch.manual_seed(0)
        generator = torch.get_rng_state()
        first = asked.optimizer.statistics()
        assert asked.optimizer.statistics() == first
        assert torch.equal(torch.get_rng_state(), generator)
    assert_same_bits(asked.params, silent.params)
    for one, other in zip(asked.params, silent.params, strict=True):
        left, right = asked.optimizer.state[one], silent.optimizer.state[other]
        assert set(left) == set(right)
        assert_same_bits([left[name] for name in sorted(left)], [right[name] for name in sorted(right)])


@FORMS
def test_none_where_no_step_was_taken(form):
    params = [torch.ones(5, requires_grad=True) for _ in range(3)]
    optimizer = GENIE([{"params": params[:1]}, {"params": params[1:]}], form=form)
    assert optimizer.statistics() == [None, None]
    optimizer.init_state()
    assert optimizer.statistics() == [None, None]
    step_with(optimizer, None, torch.ones(5), None)
    first, second = optimizer.statistics()
    assert first is None
    assert second.factor_mean > 0
    json.dumps(dataclasses.asdict(second))  # plain numbers


@FORMS
def test_none_where_there_are_no_elements(form):
    param = torch.ones(0, 3, requires_grad=True)
    optimizer = GENIE([param], form=form)
    step_with(optimizer, torch.ones(0, 3))
    assert optimizer.statistics() == [None]


@FORMS
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("moment_dtype", [None, torch.bfloat16])
def test_a_loaded_state_tells_the_same(form, capturable, moment_dtype):
    """All that the last step did is in the state."""
    param = torch.ones(400, requires_grad=True)
    optimizer = GENIE([param], form=form, capturable=capturable, moment_dtype=moment_dtype, seed=0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        step_with(optimizer, 2 * torch.randn(400, generator=generator))
    loaded = GENIE([param.detach().clone().requires_grad_()])
    loaded.load_state_dict(saved_and_loaded(optimizer))
    assert loaded.statistics() == optimizer.statistics()
    assert optimizer.statistics()[0].noisy_fraction > 0.5


@FORMS
def test_rounded_moments_are_what_the_step_went_on_with(form):
    """Steps of which nothing but the rounding to bfloat16 is inexact, so that both sides round alike."""
    options = {"form": form, "beta": 0.5, "moment_dtype": torch.bfloat16}
    twin = Twin(([(2000,)], {}), dtype=torch.float32, **options)
    for _ in range(6):
        twin.step(quantum=1 / 16)
    (statistics,) = twin.optimizer.statistics()
    expected = expected_statistics([(0, twin.states[0])], twin.settings[0], np.float32)
    assert_agree(statistics, expected, np.float32)


def test_a_user_sees_that_noise_is_inert():
    """At the gradients of an ordinary network, in float32: there is none, whatever ``noise`` is."""
    shown = {}
    for form in transcription.DEFAULT_LR:
        param, optimizer = one_parameter([0.0] * 1000, torch.float32, form=form, noise=100.0)
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            step_with(optimizer, 1e-3 * torch.randn(1000, generator=generator))
        assert param.isfinite().all()
        (shown[form],) = optimizer.statistics()
        assert (shown[form].noisy_fraction, shown[form].noise_to_update) == (0.0, None)
    # The paper's factor is m^2 / v here, about (1 - b) / (1 + b) on average.
    assert shown["paper"].factor_mean == pytest.approx(0.04, abs=0.02)
