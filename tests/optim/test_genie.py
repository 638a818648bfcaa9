"""GENIE against its transcription; its stream of random numbers, its edge cases and its state."""

import copy
import io
import math
import random
from typing import NamedTuple

import numpy as np
import pytest
import torch

from shiftproof.base.randomness import philox
from shiftproof.optim import GENIE
from shiftproof.optim.genie import fused_cpu, seeds
from shiftproof.optim.genie.rule import Row

from . import genie_transcription as transcription

SHAPES = [(33,), (3, 4, 5), ()]
FORMS = pytest.mark.parametrize("form", ["paper", "released"])


class Implementation(NamedTuple):
    """One of the ways to take a step, and the precision that it is compared in."""

    flags: dict[str, bool]
    dtype: torch.dtype

    def obstacle(self, param=None):
        """Why it does not take such a ``param``, None if it does."""
        if not self.flags.get("fused"):
            return None
        param = torch.zeros(1, dtype=self.dtype) if param is None else param.detach()
        param = torch.view_as_real(param) if param.is_complex() else param
        moment = torch.zeros_like(param, dtype=torch.promote_types(param.dtype, torch.float32))
        return fused_cpu.obstacle(Row(param, param, moment, moment, 1, 0, None))

    def options(self, param=None):
        """The options that select it; the test is skipped where it does not take such a ``param``."""
        obstacle = self.obstacle(param)
        if obstacle is not None:
            pytest.skip(f"not for the fused implementation: {obstacle}")
        return dict(self.flags)

    def tolerance(self, steps):
        """Of a tensor after some steps, relative to its largest entry."""
        if self.dtype == torch.float64:
            return 1e-12
        # Each step rounds weight, moments and update. An update is no larger than the tensor's largest weight,
        # and some ten roundings go into one, partly of var = v - m^2, whose terms exceed it.
        return 10 * steps * torch.finfo(self.dtype).eps


FORLOOP = Implementation({"foreach": False, "fused": False}, torch.float64)
FOREACH = Implementation({"foreach": True, "fused": False}, torch.float64)
FUSED = Implementation({"fused": True}, torch.float32)
IMPLEMENTATIONS = pytest.mark.parametrize(
    "implementation", [FORLOOP, FOREACH, FUSED], ids=["forloop", "foreach", "fused"]
)
OPTIONS = {
    "defaults": {},
    "no mask": {"dropout": 0.0},
    "no noise": {"noise": 0.0},
    "no preconditioner": {"precondition": False},
    "weight decay": {"weight_decay": 0.1},
    "maximize": {"maximize": True},
}
# Both words of the key have to matter.
SEED = 0x0123456789ABCDEF


class Twin:
    """GENIE and its transcription, stepped on the same gradients."""

    def __init__(self, *groups, implementation=None, dtype=None, data_seed=0, **options):
        implementation = implementation or Implementation({}, torch.float64)
        self.implementation = implementation._replace(dtype=dtype or implementation.dtype)
        flags = self.implementation.options()
        self.steps, self.options = 0, {"seed": SEED, **options}
        self.rng = np.random.default_rng(data_seed)
        self.params, self.weights, self.states, self.settings = [], [], [], []
        described = [self._describe(shapes, group) for shapes, group in groups]
        self.optimizer = GENIE(described, **flags, **self.options)

    def _describe(self, shapes, options):
        settings = {**self.options, **options}
        settings["bfloat16"] = settings.pop("moment_dtype", None) == torch.bfloat16
        params = [torch.tensor(self.rng.normal(size=shape), dtype=self.implementation.dtype) for shape in shapes]
        for param in params:
            self.params.append(param.requires_grad_())
            self.weights.append(param.detach().double().numpy().flatten())
            self.states.append({})
            self.settings.append(settings)
        return {"params": params, **options}

    def add_group(self, shapes, **options):
        self.optimizer.add_param_group(self._describe(shapes, options))

    def freeze(self, index):
        self.params[index].requires_grad_(False)

    def step(self, std=1.0, mean=0.5, missing=(), quantum=None):
        """One step of both, on normal gradients; parameters that are frozen or ``missing`` get none."""
        for index, param in enumerate(self.params):
            draw = self.rng.normal(mean * std, std, size=tuple(param.shape))
            if quantum is not None:
                draw = np.round(draw / quantum) * quantum
            grad = torch.tensor(draw, dtype=self.implementation.dtype)
            if index in missing or not param.requires_grad:
                param.grad = None
                continue
            param.grad = grad
            self.weights[index] = transcription.step(
                self.weights[index],
                grad.double().numpy().ravel(),
                self.states[index],
                index,
                **self.settings[index],
            )
        self.optimizer.step()
        self.steps += 1

    def check(self, tolerance=None):
        """Compare weights and state; ``tolerance`` is relative to each tensor's largest entry."""
        tolerance = self.implementation.tolerance(self.steps) if tolerance is None else tolerance
        for param, weight, state in zip(self.params, self.weights, self.states, strict=True):
            assert_near(param, weight, tolerance)
            assert set(self.optimizer.state[param]) == set(state)
            for key, value in state.items():
                assert_near(self.optimizer.state[param][key], value, tolerance)


def assert_near(actual, expected, tolerance):
    actual, scale = actual.detach().double().numpy().ravel(), np.abs(expected).max(initial=0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def bits(tensors):
    return [tensor.detach().clone() for tensor in tensors]


def assert_same_bits(left, right):
    for one, other in zip(left, right, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def one_parameter(values, dtype=torch.float64, **options):
    param = torch.tensor(values, dtype=dtype, requires_grad=True)
    return param, GENIE([param], **{"seed": 0, **options})


def step_with(optimizer, *gradients):
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for param, grad in zip(params, gradients, strict=True):
        param.grad = grad
    optimizer.step()


# ----------------------------------------------------------------------------- against the transcription


@FORMS
@IMPLEMENTATIONS
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("std", [0.01, 1.0, 3.0])
def test_a_step_is_the_transcription(form, implementation, options, std):
    twin = Twin((SHAPES, {}), form=form, implementation=implementation, **options)
    twin.freeze(1)
    before = bits(twin.params)
    for _ in range(20):
        twin.step(std)
    twin.check()
    assert torch.equal(twin.params[1], before[1])
    assert not any(torch.equal(twin.params[index], before[index]) for index in (0, 2))


@FORMS
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("std", [0.01, 1.0, 3.0])
def test_float32_is_the_transcription_but_for_rounding(form, options, std):
    twin = Twin((SHAPES, {}), implementation=FORLOOP, dtype=torch.float32, form=form, **options)
    for _ in range(20):
        twin.step(std)
    twin.check()


@FORMS
@IMPLEMENTATIONS
def test_groups_have_their_own_options(form, implementation):
    other = {"paper": "released", "released": "paper"}[form]
    twin = Twin(
        ([(3,), (4, 5)], {}),
        ([(9,)], {"lr": 0.03, "beta": 0.8, "noise": 0.5, "weight_decay": 0.2}),
        ([(17,), (6,)], {"form": other, "lr": 0.05, "dropout": 0.25}),
        ([(11,)], {"precondition": False, "maximize": True}),
        form=form,
        implementation=implementation,
    )
    twin.freeze(3)
    for _ in range(20):
        twin.step()
    twin.check()


@FORMS
@IMPLEMENTATIONS
def test_several_dtypes_in_one_group(form, implementation):
    generator = torch.Generator().manual_seed(0)
    dtypes = [torch.float32, torch.float64, torch.float32, torch.float64]
    params = [torch.randn(19, generator=generator, dtype=dtype).requires_grad_() for dtype in dtypes]
    weights, states = [param.detach().numpy().astype(float) for param in params], [{} for _ in params]
    optimizer = GENIE(params, form=form, seed=0, **implementation.options(params[1]))
    for _ in range(5):
        gradients = [torch.randn(19, generator=generator, dtype=dtype) for dtype in dtypes]
        step_with(optimizer, *gradients)
        for index, grad in enumerate(gradients):
            weights[index] = transcription.step(weights[index], grad.double().numpy(), states[index], index, form=form)
    for param, weight in zip(params, weights, strict=True):
        assert_near(param, weight, 1e-12 if param.dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize(
    ("form", "implementation"),
    [("paper", FOREACH), ("released", FORLOOP), ("released", FOREACH), ("paper", FUSED), ("released", FUSED)],
    ids=["paper-foreach", "released-forloop", "released-foreach", "paper-fused", "released-fused"],
)
def test_large_tensor(form, implementation):
    """Random numbers have to line up across whatever pieces a large tensor is worked on in."""
    twin = Twin(([(2**20 + 11,)], {}), form=form, implementation=implementation)
    for _ in range(2):
        twin.step()
    twin.check()


@FORMS
@IMPLEMENTATIONS
@pytest.mark.parametrize("layout", ["transposed", "channels last", "strided", "expanded gradient"])
def test_elements_are_counted_in_logical_order(form, implementation, layout):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=implementation.dtype)

    draw = {
        "transposed": lambda: normal(5, 7).t(),
        "channels last": lambda: normal(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "strided": lambda: normal(6, 10)[:, ::2],
        "expanded gradient": lambda: normal(6, 10),
    }[layout]
    param = draw().requires_grad_()
    weight, state = param.detach().double().numpy().ravel().copy(), {}
    optimizer = GENIE([param], form=form, seed=0, **implementation.options(param))
    for index in range(5):
        grad = draw() if index % 2 else draw().contiguous()
        if layout == "expanded gradient":
            grad = grad[:1].expand(6, 10)
        step_with(optimizer, grad)
        weight = transcription.step(weight, grad.double().numpy().ravel(), state, 0, form=form)
    assert_near(param, weight, implementation.tolerance(5))


@FORMS
@IMPLEMENTATIONS
def test_options_are_read_at_every_step(form, implementation):
    twin = Twin((SHAPES, {}), form=form, implementation=implementation)
    changes = [
        {},
        {"lr": 0.03},
        {"dropout": 0.1},
        {"noise": 0.5},
        {"weight_decay": 0.1},
        {"maximize": True},
        {"precondition": False},
    ]
    for change in changes:
        twin.optimizer.param_groups[0].update(change)
        twin.settings[0].update(change)  # one dict that all parameters of the group share
        twin.step()
    twin.check()


@FORMS
@IMPLEMENTATIONS
def test_low_precision_weights_move_by_float32_moments(form, implementation):
    twin = Twin(([(64,)], {}), dtype=torch.bfloat16, form=form, implementation=implementation, lr=1.0)
    twin.step()
    state = twin.optimizer.state[twin.params[0]]
    assert_near(state["exp_avg"], twin.states[0]["exp_avg"], 1e-6)
    assert_near(state["exp_avg_sq"], twin.states[0]["exp_avg_sq"], 1e-6)
    # One rounding to 8 significant bits, at most of the largest weight.
    assert_near(twin.params[0], twin.weights[0], torch.finfo(torch.bfloat16).eps / 2)


@FORMS
@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_moments_are_rounded_by_the_transcriptions_bits(form, implementation, dtype):
    """Multiples of 1/16 and b = 1/2 leave moments exact before they are rounded: no other bit may decide."""
    options = {"moment_dtype": torch.bfloat16, "beta": 0.5, "weight_decay": 0.0}
    twin = Twin((SHAPES, {}), ([(130,)], {}), dtype=dtype, form=form, implementation=implementation, **options)
    rounded = 0
    for _ in range(20):
        before = [dict(state) for state in twin.states]
        twin.step(quantum=1 / 16)
        for param, state, previous in zip(twin.params, twin.states, before, strict=True):
            actual = twin.optimizer.state[param]
            for name in ("exp_avg", "exp_avg_sq"):
                assert actual[name].dtype == torch.bfloat16
                assert np.array_equal(actual[name].double().numpy().ravel(), state[name])
            exact = 0.5 * previous.get("exp_avg", 0.0) + 0.5 * param.grad.double().numpy().ravel()
            rounded += (exact != state["exp_avg"]).sum()
    assert rounded > 1000
    if dtype == torch.float32:
        twin.check()


@FORMS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_foreach_is_the_forloop_bit_for_bit(form, dtype):
    groups = [(SHAPES, options) for options in OPTIONS.values()]
    twins = [Twin(*groups, dtype=dtype, form=form, implementation=each) for each in (FORLOOP, FOREACH)]
    for index in range(8):
        for twin in twins:
            twin.step(std=2.0, missing={3} if index % 3 == 1 else ())
    forloop, foreach = twins
    assert_same_bits(forloop.params, foreach.params)
    for one, other in zip(forloop.params, foreach.params, strict=True):
        left, right = forloop.optimizer.state[one], foreach.optimizer.state[other]
        assert_same_bits([left[key] for key in sorted(left)], [right[key] for key in sorted(right)])


# --------------------------------------------------------------------------------- the random numbers


def as_integers(words):
    return [int(word) for word in words]


def test_philox_golden_values():
    golden = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    zero = torch.zeros((), dtype=torch.int64)
    assert as_integers(philox(0, (zero, zero, zero, 0))) == golden
    assert as_integers(transcription.philox(0, (0, 0, 0, 0))) == golden


def test_philox_agrees_with_the_transcription_on_all_words():
    rng = np.random.default_rng(0)
    counters = rng.integers(0, 2**32, size=(3, 1000))
    for _ in range(5):
        seed, last = int(rng.integers(0, 2**64, dtype=np.uint64)), int(rng.integers(0, 2**32))
        ours = philox(seed, (*map(torch.from_numpy, counters), last))
        np.testing.assert_array_equal(
            np.stack([word.numpy() for word in ours]),
            transcription.philox(seed, (*counters, last)).astype(np.int64),
        )


GOLDEN_HALFWORDS = [15953, 62291, 19600, 30790, 6253, 31777, 23362, 20974]


def test_halfwords_golden_values():
    assert transcription.halfwords(7, 8, position=3, step=1).tolist() == GOLDEN_HALFWORDS


@FORMS
@IMPLEMENTATIONS
@pytest.mark.parametrize("dropout", [0.4, 20974 / 65536, 20975 / 65536, 20974.4 / 65536, 0.9])
def test_mask_golden_values(form, implementation, dropout):
    """What moves at seed 7, position 3, step 1 is what the published halfwords keep."""
    params = [torch.zeros(8, requires_grad=True) for _ in range(4)]
    optimizer = GENIE(params, form=form, **implementation.options(), dropout=dropout, seed=7)
    step_with(optimizer, None, None, None, torch.ones(8))
    kept = [halfword >= round(65536 * dropout) for halfword in GOLDEN_HALFWORDS]
    assert (params[3] != 0).tolist() == kept


@FORMS
def test_no_mask_where_dropout_rounds_to_zero(form):
    for dropout in (0.0, 1e-6):
        param, optimizer = one_parameter([0.0] * 100_000, form=form, dropout=dropout)
        step_with(optimizer, torch.ones_like(param))
        assert (param != 0).all()


@FORMS
@pytest.mark.parametrize("dropout", [0.1, 0.4, 0.8])
def test_kept_fraction(form, dropout):
    n = 2**17
    param, optimizer = one_parameter([0.0] * n, torch.float32, form=form, dropout=dropout, noise=0.0)
    previous = None
    for _ in range(3):
        before = param.detach().clone()
        step_with(optimizer, torch.ones(n))
        kept = param != before
        assert abs(kept.double().mean().item() - (1 - dropout)) < 4 * math.sqrt(dropout * (1 - dropout) / n)
        if previous is not None:  # a new mask, independent of the last one
            overlap = (kept & previous).double().mean().item()
            assert abs(overlap - (1 - dropout) ** 2) < 4 / math.sqrt(n)
        previous = kept


@FORMS
def test_expected_update_is_rescaled_but_in_the_paper_form(form):
    steps = []
    for dropout in (0.0, 0.5):
        param, optimizer = one_parameter([0.0] * 64, form=form, dropout=dropout, noise=0.0)
        step_with(optimizer, torch.ones_like(param))
        steps.append(param.detach().abs().max().item())
    assert steps[1] / steps[0] == pytest.approx(1.0 if form == "paper" else 2.0, rel=1e-12)


def noise_in(form, n, steps, lr=1.0):
    """The draws xi of every step but the first, recovered from the noise under gradients of +-3."""
    draws, runs = [], []
    for noise in (1.0, 0.0):
        param, optimizer = one_parameter([0.0] * n, form=form, lr=lr, dropout=0.0, noise=noise)
        weights = []
        for index in range(steps):
            step_with(optimizer, torch.full_like(param, 3.0 if index % 2 else -3.0))
            weights.append(param.detach().numpy().copy())
        runs.append(np.stack(weights))
    difference = np.diff(runs[1] - runs[0], axis=0)  # from the second step on: the first has no noise
    state, ones = {}, np.ones(n)
    for index in range(steps):
        transcription.step(ones * 0, ones * (3.0 if index % 2 else -3.0), state, 0, form=form)
        m, v, t = state["exp_avg"][0], state["exp_avg_sq"][0], index + 1
        if t == 1:
            continue
        if form == "paper":
            factor = math.sqrt(v - m**2) * (1 - math.tanh(1 / (v - m**2)))
        else:
            c = 1 - 0.95**t
            rho = 0.05 * (2 - c) / (1.95 * c)
            var = (v / c - (m / c) ** 2) / (1 - rho)
            # All elements are alike, so s = f |gm| / a = |gm| / (1 + rho var / gm^2).
            s = abs(m / c) / (1 + rho * var / ((m / c) ** 2 + 1e-8))
            factor = s * (1 - math.tanh(1 / var))
        draws.append(difference[index - 1] / (lr * factor))
    return np.stack(draws)


@FORMS
def test_noise_is_standard_normal_and_independent(form):
    n = 2**14
    draws = noise_in(form, n, steps=5)
    limit = 4.5 / math.sqrt(draws.size)
    assert abs(draws.mean()) < limit
    assert abs(draws.var() - 1) < limit * math.sqrt(2)
    assert abs((draws**3).mean()) < limit * math.sqrt(15)
    assert abs((draws**4).mean() - 3) < limit * math.sqrt(96)
    # Neither neighbours (which share a radius) nor steps are correlated, and no draw comes twice.
    assert abs((draws[:, 0::2] * draws[:, 1::2]).mean()) < limit * math.sqrt(2)
    assert abs((draws[1:] * draws[:-1]).mean()) < limit * math.sqrt(2)
    assert np.unique(draws.round(9)).size > 0.999 * draws.size


@FORMS
def test_noise_acts_on_large_variances_only(form):
    fractions = {}
    for std in (0.01, 1.0, 3.0):
        loud, quiet = (
            Twin(([(400,)], {}), dtype=torch.float32, form=form, noise=noise, dropout=0.0) for noise in (1.0, 0.0)
        )
        for _ in range(10):
            loud.step(std)
            quiet.step(std)
        fractions[std] = (loud.params[0] != quiet.params[0]).double().mean().item()
    assert fractions[0.01] == 0  # exactly: tanh is 1 in float32
    assert fractions[1.0] > 0.9
    assert fractions[3.0] > 0.9


@pytest.mark.parametrize(("std", "expected"), [(1.0, 23.0), (3.0, 484.0)])
def test_paper_noise_over_update_under_pure_noise(std, expected):
    """The ratio of their r.m.s. once the moving averages have settled; values measured independently."""
    generator = torch.Generator().manual_seed(0)
    loud, quiet = (one_parameter([0.0] * 3000, dropout=0.0, noise=noise) for noise in (1.0, 0.0))
    for _ in range(120):
        gradient = torch.randn(3000, generator=generator, dtype=torch.float64) * std
        previous = bits([loud[0], quiet[0]])
        step_with(loud[1], gradient)
        step_with(quiet[1], gradient)
    moved, update = loud[0] - previous[0], quiet[0] - previous[1]
    ratio = ((moved - update).square().mean() / update.square().mean()).sqrt().item()
    assert ratio == pytest.approx(expected, rel=0.1)


def test_position_and_step_and_seed_select_the_draws():
    """Equal parameters with equal gradients part ways; equal seeds do not."""
    runs = {}
    for seed in (0, 1, 2**32, 0):
        params = [torch.zeros(256, requires_grad=True) for _ in range(2)]
        optimizer = GENIE(params, seed=seed)
        step_with(optimizer, torch.ones(256), torch.ones(256))
        first = bits(params)
        assert not torch.equal(*first)
        step_with(optimizer, torch.ones(256), torch.ones(256))
        assert not torch.equal(first[0] != 0, params[0] != first[0])
        if seed in runs:
            assert torch.equal(runs[seed], params[0])
        runs[seed] = params[0].detach()
    assert len({tuple(run.tolist()) for run in runs.values()}) == 3


@FORMS
@IMPLEMENTATIONS
def test_global_generators_are_neither_read_nor_moved(form, implementation):
    runs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        twin = Twin((SHAPES, {}), dtype=torch.float32, form=form, implementation=implementation)
        for _ in range(3):
            twin.step(std=3.0)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert np.random.get_state()[1].tolist() == states[1]
        assert random.getstate() == states[2]
        runs.append(twin.params)
    assert_same_bits(*runs)


@FORMS
@IMPLEMENTATIONS
def test_a_group_added_later_leaves_earlier_draws_alone(form, implementation):
    alone, joined = (Twin((SHAPES, {}), form=form, implementation=implementation) for _ in range(2))
    rng = np.random.default_rng(1)
    for index in range(8):
        if index == 4:
            joined.add_group([(13,), (2, 2)], lr=0.02)
        alone.rng, joined.rng = (np.random.default_rng([2, index]) for _ in range(2))
        std = rng.uniform(0.5, 3)
        alone.step(std)
        joined.step(std)
    assert_same_bits(alone.params, joined.params[: len(SHAPES)])
    joined.check()  # the new parameters take the next positions and start at step 1


@FORMS
@IMPLEMENTATIONS
def test_a_parameter_without_gradient_keeps_its_position(form, implementation):
    twin = Twin(([(8,), (9,)], {}), ([(10,)], {}), form=form, implementation=implementation)
    for index in range(6):
        twin.step(missing={1} if index < 3 else {0})
        assert (twin.params[1] in twin.optimizer.state) == (index >= 3)
    twin.check()
    assert [twin.optimizer.state[param]["step"].item() for param in twin.params] == [3, 3, 6]


@FORMS
@IMPLEMENTATIONS
def test_a_thawed_parameter_starts_at_its_own_first_step(form, implementation):
    twin = Twin((SHAPES, {}), form=form, implementation=implementation)
    twin.freeze(0)
    for index in range(6):
        if index == 3:
            twin.params[0].requires_grad_()
        twin.step()
    twin.check()


# ------------------------------------------------------------------------------------------- edge cases


@IMPLEMENTATIONS
def test_first_released_step_is_defined(implementation):
    """No noise at all in float32, and nothing that rounding decides: f depends on the gradient alone."""
    gradients = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    gradients *= 10.0 ** torch.linspace(-6, 2, 4096)
    moved = []
    for noise in (0.0, 1.0, 1e6):
        param = torch.zeros(4096, requires_grad=True)
        optimizer = GENIE([param], form="released", dropout=0.0, **implementation.options(), noise=noise, lr=1.0)
        step_with(optimizer, gradients)
        moved.append(param.detach())
    assert_same_bits(moved[:1] * 2, moved[1:])
    g = gradients.double()
    expected = -g / (1 + 1e-8 / (g.square() + 1e-8))
    # A handful of float32 roundings; a var decided by rounding would be wrong by a factor of two and more.
    torch.testing.assert_close(moved[0].double(), expected, rtol=1e-6, atol=0)


def rounding_has_made_a_variance_negative(optimizer, param, form, beta):
    state = optimizer.state[param]
    m, v = state["exp_avg"], state["exp_avg_sq"]
    if form != "paper":
        c = 1 - beta ** state["step"].item()
        m, v = m / c, v / c
    return bool((v - m * m < 0).any())


@FORMS
@IMPLEMENTATIONS
def test_negative_variance_means_no_noise_and_no_turned_update(form, implementation):
    """A constant gradient in float32, once b^t is below rounding."""
    beta, n = 0.5, 4096
    gradients = torch.linspace(1, 4, n) * (-1) ** torch.arange(n)
    moved, seen = [], False
    for noise in (1.0, 0.0):
        param = torch.zeros(n, requires_grad=True)
        optimizer = GENIE([param], form=form, lr=1.0, beta=beta, dropout=0.0, noise=noise, **implementation.options())
        for _ in range(40):
            step_with(optimizer, gradients)
        with torch.no_grad():
            param.zero_()
        step_with(optimizer, gradients)
        seen = seen or rounding_has_made_a_variance_negative(optimizer, param, form, beta)
        moved.append(param.detach())
    assert seen
    assert_same_bits(*([run] for run in moved))
    # m^2 / v (paper) and f (released) are 1 here, up to rounding and the constant beside gm^2.
    torch.testing.assert_close(moved[0], -gradients, rtol=1e-6, atol=0)


@IMPLEMENTATIONS
def test_released_variance_is_replaced_by_its_floor_not_raised_to_it(implementation):
    """With b = 1/2 and gradients that are powers of two, all of m, v, c are exact, and var is exactly 0."""
    dtype = implementation.dtype
    gradient = torch.tensor([2.0**-13, 2.0**-10, -(2.0**-16)], dtype=dtype)
    options = {"form": "released", "lr": 1.0, "beta": 0.5, "dropout": 0.0}
    param, optimizer = one_parameter([0.0] * 3, dtype, **implementation.options(), **options)
    steps = 6
    for _ in range(steps):
        before = param.detach().clone()
        step_with(optimizer, gradient)
    c = 1 - 0.5**steps
    rho = 0.5 * (2 - c) / (1.5 * c)
    expected = gradient * math.tanh(10) / (1 + rho * 1e-8 / (gradient.square() + 1e-8))
    # What is left is the noise of tanh(10), 4e-9 of s.
    assert_near(before - param, expected.double().numpy(), max(1e-7, implementation.tolerance(1)))

    # A variance between 0 and 1e-8 stays what it is.
    weight, state = np.zeros(3), {}
    param, optimizer = one_parameter([0.0] * 3, dtype, **implementation.options(), **options)
    for scale in (1.0, 0.5, 1.5):
        step_with(optimizer, gradient * scale)
        weight = transcription.step(weight, (gradient * scale).double().numpy(), state, 0, **options)
    assert_near(param, weight, implementation.tolerance(3))


@FORMS
@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_zero_gradients_leave_weights_alone(form, implementation, dtype):
    params = [torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype) for size in (7, 70)]
    before = bits(params)
    options = implementation.options(params[0])
    optimizer = GENIE([param.requires_grad_() for param in params], form=form, noise=10.0, **options)
    for _ in range(3):
        step_with(optimizer, *(torch.zeros_like(param) for param in params))
    assert_same_bits(params, before)
    assert all(not state["exp_avg"].any() and state["step"] == 3 for state in optimizer.state.values())


@FORMS
@IMPLEMENTATIONS
@pytest.mark.parametrize("precondition", [True, False])
def test_elements_without_gradient_do_not_move(form, implementation, precondition):
    """v = 0 beside elements that do move: 0 / 0 in the paper form."""
    param = torch.ones(64, requires_grad=True)
    optimizer = GENIE([param], form=form, **implementation.options(), precondition=precondition, dropout=0.0)
    gradient = torch.ones(64)
    gradient[::2] = 0
    for _ in range(3):
        step_with(optimizer, gradient)
    assert (param[::2] == 1).all()
    assert (param[1::2] < 1).all()


@FORMS
@IMPLEMENTATIONS
def test_underflowing_squares_stay_finite(form, implementation):
    """The square of a float32 gradient underflows from 1e-23 on, and leaves m beside v = 0."""
    gradient = 10.0 ** torch.linspace(-36, -18, 261)
    param = torch.zeros(261, requires_grad=True)
    optimizer = GENIE([param], form=form, lr=1.0, **implementation.options(), dropout=0.0)
    for _ in range(3):
        step_with(optimizer, gradient)
    assert param.isfinite().all()
    assert (param.abs() <= 3 * gradient * (1 + 1e-5)).all()
    assert (optimizer.state[param]["exp_avg_sq"] == 0).any()


@FORMS
@IMPLEMENTATIONS
@pytest.mark.parametrize("shapes", [[(0, 3), (), (1,)], [(0,)]], ids=["among others", "alone"])
def test_empty_and_scalar_parameters(form, implementation, shapes):
    twin = Twin((shapes, {}), form=form, implementation=implementation)
    for _ in range(5):
        twin.step()
    twin.check()


@FORMS
@IMPLEMENTATIONS
def test_highest_dropout(form, implementation):
    """The largest probability that does not round to 1 drops nearly everything, and keeps weights finite."""
    twin = Twin(([(70_000,)], {}), form=form, implementation=implementation, dropout=65535 / 65536)
    before = bits(twin.params)
    twin.step()
    twin.check()
    assert 0 < (twin.params[0] != before[0]).sum() < 10


@FORMS
@IMPLEMENTATIONS
def test_changes_of_weights_from_outside_are_kept(form, implementation):
    twin = Twin((SHAPES, {}), form=form, implementation=implementation)
    for index in range(6):
        twin.step()
        if index == 2:
            for param, weight in zip(twin.params, twin.weights, strict=True):
                param.data.mul_(0.5).add_(3.0)
                weight *= 0.5
                weight += 3.0
    twin.check()


@FORMS
@IMPLEMENTATIONS
def test_gradients_are_not_written_to(form, implementation):
    twin = Twin((SHAPES, {}), form=form, implementation=implementation, maximize=True, weight_decay=0.1)
    twin.step()
    before = bits(param.grad for param in twin.params)
    twin.optimizer.step()
    assert_same_bits([param.grad for param in twin.params], before)


# -------------------------------------------------------------------------------------- state and options


@FORMS
@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_state_is_two_moments_and_a_step(form, implementation, dtype):
    twin = Twin((SHAPES, {}), dtype=dtype, form=form, implementation=implementation)
    for _ in range(3):
        twin.step()
    moments = torch.float64 if dtype == torch.float64 else torch.float32
    for param in twin.params:
        state = twin.optimizer.state[param]
        assert set(state) == {"exp_avg", "exp_avg_sq", "step"}
        assert (state["step"].shape, state["step"].dtype, state["step"].item()) == ((), torch.float32, 3)
        size = 0
        for key in ("exp_avg", "exp_avg_sq"):
            assert (state[key].shape, state[key].dtype) == (param.shape, moments)
            size += state[key].untyped_storage().nbytes()
        assert size == param.numel() * (16 if dtype == torch.float64 else 8)


def saved_and_loaded(optimizer):
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@FORMS
@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_run_continues_from_a_state_dict(form, implementation, dtype):
    options = {"lr": 0.05, "beta": 0.9, "dropout": 0.3, "weight_decay": 0.01, "seed": 2**64 - 1}
    through, resumed = (
        Twin((SHAPES, {}), dtype=dtype, form=form, implementation=implementation, **options) for _ in range(2)
    )
    for _ in range(4):
        through.step(std=2.0)
        resumed.step(std=2.0)
    state = saved_and_loaded(resumed.optimizer)
    # A fresh optimizer with none of the settings: all that a run depends on is in the state.
    resumed.optimizer = GENIE(resumed.params)
    resumed.optimizer.load_state_dict(state)
    for _ in range(4):
        through.step(std=2.0)
        resumed.step(std=2.0)
    assert_same_bits(through.params, resumed.params)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_moments_survive_loading(dtype):
    twin = Twin((SHAPES, {}), dtype=dtype)
    for _ in range(3):
        twin.step()
    other = GENIE(twin.params)
    other.load_state_dict(saved_and_loaded(twin.optimizer))
    for param in twin.params:
        saved, loaded = twin.optimizer.state[param], other.state[param]
        keys = ["exp_avg", "exp_avg_sq", "step"]
        assert [loaded[key].dtype for key in keys] == [torch.float32] * 3
        assert_same_bits([saved[key] for key in keys], [loaded[key] for key in keys])
    moments = [twin.optimizer.state[param]["exp_avg"] for param in twin.params]
    assert not all(torch.equal(moment, moment.to(dtype).float()) for moment in moments)


@FORMS
def test_a_copy_continues_alike(form):
    model = torch.nn.Linear(4, 3)
    optimizer = GENIE(model.parameters(), form=form, seed=5)
    step_with(optimizer, *(torch.ones_like(param) for param in model.parameters()))
    twin_model, twin_optimizer = copy.deepcopy((model, optimizer))
    for each in (optimizer, twin_optimizer):
        step_with(each, torch.ones(3, 4), torch.ones(3))
    assert_same_bits(model.parameters(), twin_model.parameters())


def test_defaults(monkeypatch):
    monkeypatch.setattr(seeds, "_living", type(seeds._living)())  # as in a process that has made no GENIE yet
    (group,) = GENIE([torch.zeros(1)]).param_groups
    expected = {
        "lr": 0.1,
        "beta": 0.95,
        "dropout": 0.4,
        "noise": 1.0,
        "precondition": True,
        "weight_decay": 0.0,
        "form": "paper",
        "seed": 0,
        "maximize": False,
        "foreach": None,
        "fused": None,
        "capturable": False,
        "differentiable": False,
        "moment_dtype": None,
    }
    assert {key: value for key, value in group.items() if key != "params"} == expected
    (group,) = GENIE([torch.zeros(1)], form="released").param_groups
    assert (group["form"], group["lr"]) == ("released", 0.015)


def test_a_groups_own_form_needs_its_learning_rate():
    params = [torch.zeros(1), torch.zeros(1)]
    groups = [{"params": params[:1]}, {"params": params[1:], "form": "released"}]
    with pytest.raises(ValueError, match="lr"):
        GENIE(groups)
    optimizer = GENIE(params[:1])
    with pytest.raises(ValueError, match="lr"):
        optimizer.add_param_group(groups[1])
    optimizer.add_param_group({**groups[1], "lr": 0.02})
    forms = [(group["form"], group["lr"]) for group in optimizer.param_groups]
    assert forms == [("paper", 0.1), ("released", 0.02)]


@FORMS
@IMPLEMENTATIONS
def test_sparse_gradients_are_refused(form, implementation):
    param = torch.ones(3, requires_grad=True)
    param.grad = torch.sparse_coo_tensor([[1]], [2.0], (3,), check_invariants=True)
    with pytest.raises(RuntimeError, match="sparse"):
        GENIE([param], form=form, **implementation.options()).step()
    assert torch.equal(param, torch.ones(3))


@FORMS
def test_closure_is_optional_and_runs_once_with_gradients(form):
    param, optimizer = one_parameter([1.0, 2.0], form=form, dropout=0.0)
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert (loss.item(), calls) == (5.0, [True])
    assert (param < torch.tensor([1.0, 2.0])).all()
    assert optimizer.step() is None
