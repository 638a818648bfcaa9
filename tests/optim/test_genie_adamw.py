"""GENIEAdamW against its transcription and against torch's AdamW; its mask, its edge cases and its complaints.

Tolerances are counted in ``unit``, which in float32 is the largest relative error of one rounding.
"""

import copy
import functools
import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.optim import AdamW

from shiftproof.optim import GENIEAdamW
from shiftproof.optim.stream import Place, draw_masks

from . import genie_adamw_transcription as transcription
from .test_genie import FUSED as GENIE_FUSED

# Both words of the key have to matter.
SEED = 0x0123456789ABCDEF
SHAPES = [(), (3,), (17, 5), (64, 3, 3, 3)]
LARGE = (70_001,)
FLAGS = {
    "forloop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True, "fused": False},
    "fused": {"fused": True},
    "default": {},
}
CASES = [
    ("forloop", torch.float64),
    ("foreach", torch.float64),
    ("forloop", torch.float32),
    ("foreach", torch.float32),
    ("fused", torch.float32),
    ("default", torch.float32),
]
BETAS = [(0.9, 0.999), (0.5, 0.9), (0.0, 0.99)]
OPTIONS = {
    "defaults": {},
    "no decay": {"weight_decay": 0.0},
    "decay, maximize": {"weight_decay": 0.1, "maximize": True},
    "dropout": {"dropout": 0.4},
    "no eps": {"eps": 0.0},
    "large eps": {"eps": 1e-3},
    "short memory": {"betas": (0.5, 0.9)},
    "no momentum": {"betas": (0.0, 0.99)},
    "no momentum, no eps, dropout": {"betas": (0.0, 0.99), "eps": 0.0, "dropout": 0.4},
    "all": {
        "betas": (0.5, 0.9),
        "eps": 1e-3,
        "weight_decay": 0.1,
        "dropout": 0.4,
        "maximize": True,
    },
}
every_case = pytest.mark.parametrize(
    ("implementation", "dtype"),
    CASES,
    ids=[f"{name}-{str(dtype).removeprefix('torch.')}" for name, dtype in CASES],
)
every_implementation = pytest.mark.parametrize("implementation", FLAGS)
QUICK = ("defaults", "no momentum, no eps, dropout", "all")  # which cover every option between them
every_option = pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=[] if name in QUICK else pytest.mark.slow)
        for name, options in OPTIONS.items()
    ],
)


def flags(implementation):
    """The options that select an implementation; the test is skipped where there is no compiled one."""
    if implementation == "fused":
        GENIE_FUSED.options()
    return FLAGS[implementation]


def unit_of(dtype):
    """What tolerances are counted in: 2^-24 in float32, and 2^-46 in float64.

    There, 1 - b2^t is the coarsest: one rounding of 0.999^t is 500 times as large in relation to the difference.
    """
    return {torch.float32: 2.0**-24, torch.float64: 2.0**-46}[dtype]


def as_array(tensor):
    return tensor.detach().double().numpy().copy()


def gradients(shape, steps, seed=0, exponents=(-12, 9)):
    """Yield float64 arrays: each element has a magnitude of its own and is of one of eight kinds."""
    rng = np.random.default_rng(seed)
    size = math.prod(shape)
    scale, sign = 10 ** rng.uniform(*exponents, size), rng.choice([-1, 1], size)
    kind = rng.integers(0, 8, size)
    for t in range(steps):
        normal, uniform = rng.normal(size=size), rng.uniform(size=size)
        kinds = [
            normal,  # noise
            normal + sign / 2,
            sign,  # where f is 1
            sign * (0.5 + uniform),  # of one sign
            0 * sign,
            np.where(uniform < 0.5, normal, 0),  # zero now and then
            sign * (-1) ** t,  # of mean zero
            np.where(t % 13 == 12, sign, 1e-3 * normal),  # large now and then
        ]
        values = scale * np.choose(kind, kinds)
        values[np.abs(values) < 1e-15] = 0  # whose squares float32 holds with few bits or none
        yield values.reshape(shape)


class Twin:
    """GENIEAdamW and its transcription, stepped on the same gradients."""

    def __init__(self, shapes, implementation, dtype, gradient_seed=0, steps=60, exponents=(-12, 9), **options):
        rng = np.random.default_rng(1)
        self.dtype, self.options = dtype, {"lr": 0.1, **options}
        self.params = [torch.tensor(rng.normal(size=shape), dtype=dtype).requires_grad_() for shape in shapes]
        self.optimizer = GENIEAdamW(self.params, **self.options, seed=SEED, **flags(implementation))
        self.rule = {name: value for name, value in self.options.items() if name != "moment_dtype"}
        self.weights = [as_array(param) for param in self.params]
        self.states = [{} for _ in shapes]
        self.streams = [gradients(shape, steps, gradient_seed + i, exponents) for i, shape in enumerate(shapes)]
        self.steps = 0

    def step(self):
        self.steps += 1
        self.before = [param.detach().clone() for param in self.params]
        self.before_states = copy.deepcopy(self.states)
        for index, (param, stream) in enumerate(zip(self.params, self.streams, strict=True)):
            param.grad = torch.tensor(next(stream), dtype=self.dtype)
            self.weights[index] = transcription.step(
                self.weights[index], as_array(param.grad), self.states[index], self.mask(index), **self.rule
            )
        self.optimizer.step()

    def mask(self, index):
        dropout = self.options.get("dropout", 0.0)
        return mask_of(self.params[index].shape, index, self.steps, dropout)

    def actual(self, index):
        """The optimizer's own moments."""
        state = self.optimizer.state[self.params[index]]
        return as_array(state["exp_avg"]), as_array(state["exp_avg_sq"])

    def follow(self):
        """Let the transcription go on from where the optimizer is."""
        self.weights = [as_array(param) for param in self.params]
        for index, state in enumerate(self.states):
            state["exp_avg"], state["exp_avg_sq"] = self.actual(index)


@functools.cache
def mask_of(shape, position, step, dropout, seed=SEED):
    """Which elements are kept, as an array."""
    threshold = round(65536 * dropout)
    return draw_masks([Place(shape, position)], seed, step, threshold, torch.device("cpu"))[0].numpy()


def assert_within(actual, expected, tolerance):
    actual, expected, tolerance = np.broadcast_arrays(actual, expected, tolerance)
    excess = np.abs(actual - expected) > tolerance
    assert np.isfinite(actual).all()
    assert not excess.any(), (
        f"{excess.sum()} of {excess.size} differ, e.g. {actual[excess][0]} where {expected[excess][0]} is expected, "
        f"which allows {tolerance[excess][0]}"
    )


def one_parameter(values, implementation, dtype=torch.float32, **options):
    param = torch.tensor(values, dtype=dtype).requires_grad_()
    return param, GENIEAdamW([param], **{"seed": SEED, **flags(implementation), **options})


def step_with(optimizer, *grads):
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    optimizer.step()


# --------------------------------------------------------------------------------- against the transcription


def test_two_steps_by_hand():
    """Gradients 1 and 0 at betas 0.5 and 0.75: mhat = 1/3, V = 3/7, c = 3/4, rho = 5/9, f = 63/163."""
    state, options = {}, {"lr": 1.0, "betas": (0.5, 0.75), "eps": 0.0, "weight_decay": 0.0}
    theta = transcription.step(np.zeros(1), np.ones(1), state, **options)
    np.testing.assert_allclose(theta, -1.0, rtol=1e-15)
    theta = transcription.step(theta, np.zeros(1), state, **options)
    np.testing.assert_allclose(theta, -1.0 - 21 / 163 * math.sqrt(7 / 3), rtol=1e-15)


@every_case
@every_option
def test_sixty_steps_are_the_transcriptions(implementation, dtype, options):
    check_a_run(SHAPES, implementation, dtype, options)


@every_case
@pytest.mark.parametrize("options", [OPTIONS["defaults"], OPTIONS["all"]], ids=["defaults", "all"])
def test_steps_of_a_large_tensor_are_the_transcriptions(implementation, dtype, options):
    check_a_run([LARGE], implementation, dtype, options)


def check_a_run(shapes, implementation, dtype, options):
    """Errors add up over the run: `drift` bounds each step's."""
    twin = Twin(shapes, implementation, dtype, **options)
    unit, lr, betas = unit_of(dtype), twin.options["lr"], options.get("betas", (0.9, 0.999))
    tolerance = [np.zeros(shape) for shape in shapes]
    for t in range(1, 61):
        twin.step()
        for index, param in enumerate(twin.params):
            largest = np.maximum(np.abs(as_array(twin.before[index])), np.abs(as_array(param)))
            tolerance[index] += drift(unit, largest, lr, options.get("dropout", 0.0), t)
            assert_within(as_array(param), twin.weights[index], tolerance[index])
            if dtype == torch.float64:
                bound = 1e-12 * np.maximum(np.abs(twin.weights[index]), lr)
                assert_within(as_array(param), twin.weights[index], bound)
            m, v = twin.actual(index)
            expected = twin.states[index]
            average = np.sqrt(expected["exp_avg_sq"] / (1 - betas[1] ** t))
            assert_within(m, expected["exp_avg"], unit * 40 * average)
            assert_within(v, expected["exp_avg_sq"], unit * (4 + 2 * t) * expected["exp_avg_sq"])
            assert twin.optimizer.state[param]["step"] == t


def drift(unit, weight, lr, dropout, t):
    """What step ``t`` may add to the difference from the transcription.

    Four roundings of the weight. u is at most three times as sensitive to mhat / sqrt(V) as to a change of its own,
    and that ratio's error grows with the roundings of v, at most two a step and halved by the root, and of m, some
    three a step, which the average forgets. As roundings go either way, 20 + t / 4 of u are four times what is seen;
    a slip of one term makes thousands.
    """
    return unit * (4 * weight + lr / (1 - dropout) * (20 + t / 4))


@every_case
@every_option
def test_each_step_is_the_transcriptions_from_the_same_state(implementation, dtype, options):
    twin = Twin(SHAPES, implementation, dtype, gradient_seed=100, **options)
    for _ in range(60):
        twin.step()
        check_one_step(twin)
        twin.follow()


def check_one_step(twin, storage=0.0):
    """Compare a step from a state that both had: an error has no time to grow, so that a few roundings are allowed.

    Moments: three products and sums each, and their coefficients. Weights, from the moments that were found: u takes
    some twelve roundings of M / V and V - M, none of which cancels anything (the relative error of f is no larger
    than that of M / V), five of mhat / sqrt(V) and two of its use; the weights themselves take three. ``storage`` is
    the relative error of writing weights to their type, if that is a narrower one.
    """
    betas = twin.options.get("betas", (0.9, 0.999))
    unit, lr = unit_of(torch.promote_types(twin.dtype, torch.float32)), twin.options["lr"]
    p = round(65536 * twin.options.get("dropout", 0.0)) / 65536
    eps, decay = twin.options.get("eps", 1e-8), twin.options.get("weight_decay", 1e-2)
    for index, param in enumerate(twin.params):
        m, v = twin.actual(index)
        old, grad = twin.before_states[index], np.abs(as_array(param.grad))
        scale = betas[0] * np.abs(old.get("exp_avg", 0.0)) + (1 - betas[0]) * grad
        assert_within(m, twin.states[index]["exp_avg"], 4 * unit * scale)
        assert_within(v, twin.states[index]["exp_avg_sq"], 5 * unit * twin.states[index]["exp_avg_sq"])
        before = as_array(twin.before[index])
        u = np.where(twin.mask(index), transcription.update(m, v, twin.steps, betas, eps) / (1 - p), 0.0)
        expected = before - lr * (u + decay * before)
        largest = np.maximum(np.abs(before), np.abs(expected))
        # M may underflow, at a ratio of 1e-15 or less.
        tolerance = unit * (4 * largest + 24 * lr * np.abs(u)) + 1e-15 * lr
        tolerance += storage * np.maximum(largest, torch.finfo(twin.dtype).tiny)
        assert_within(as_array(param), expected, tolerance)


LOW_PRECISION = [
    ("forloop", torch.bfloat16),
    ("foreach", torch.bfloat16),
    ("fused", torch.bfloat16),
    ("default", torch.bfloat16),
    ("forloop", torch.float16),
    ("foreach", torch.float16),
    ("default", torch.float16),
]
every_low_precision = pytest.mark.parametrize(
    ("implementation", "dtype"),
    LOW_PRECISION,
    ids=[f"{name}-{str(dtype).removeprefix('torch.')}" for name, dtype in LOW_PRECISION],
)


@every_low_precision
@pytest.mark.parametrize("options", [OPTIONS["no decay"], OPTIONS["all"]], ids=["no decay", "all"])
def test_low_precision_parameters_have_float32_moments(implementation, dtype, options):
    """Weights are rounded to their type once in a step, to the nearest; everything else is float32's."""
    twin = Twin(SHAPES, implementation, dtype, exponents=(-3, 3), **options)
    for _ in range(50):
        twin.step()
        check_one_step(twin, storage=torch.finfo(dtype).eps / 2)
        twin.follow()
    for param in twin.params:
        assert twin.optimizer.state[param]["exp_avg"].dtype == torch.float32
        assert twin.optimizer.state[param]["exp_avg_sq"].dtype == torch.float32


@every_implementation
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_moments_are_rounded_to_a_neighbour(implementation, dtype):
    """The stored moments are off by less than one of bfloat16's spacings, at most 2^-7 of them.

    Whether the step takes them before or after, M / V is then off by three times that and mhat / sqrt(V) by half as
    much, so that u is within 4.5 times that.
    """
    options = {"betas": (0.5, 0.9), "eps": 0.0, "dropout": 0.4, "weight_decay": 0.1}
    twin = Twin(SHAPES, implementation, dtype, exponents=(-6, 6), moment_dtype="bfloat16", **options)
    storage = torch.finfo(dtype).eps
    for _ in range(50):
        twin.step()
        for index, param in enumerate(twin.params):
            m, v = twin.actual(index)
            exact = twin.states[index]
            assert twin.optimizer.state[param]["exp_avg"].dtype == torch.bfloat16
            assert twin.optimizer.state[param]["exp_avg_sq"].dtype == torch.bfloat16
            scale = 0.5 * np.abs(twin.before_states[index].get("exp_avg", 0.0)) + 0.5 * np.abs(as_array(param.grad))
            assert_within(m, exact["exp_avg"], 2**-7 * np.abs(exact["exp_avg"]) + 2**-21 * scale)
            assert_within(v, exact["exp_avg_sq"], (2**-7 + 2**-21) * exact["exp_avg_sq"])
            before = as_array(twin.before[index])
            u = np.abs(twin.weights[index] - before * (1 - 0.1 * 0.1))
            largest = np.maximum(np.abs(before), np.abs(twin.weights[index]))
            assert_within(as_array(param), twin.weights[index], 5 * 2**-7 * u + 2 * storage * largest)
        twin.follow()


@every_implementation
def test_bfloat16_moments_are_rounded_without_bias(implementation):
    """1 + 2^-9 lies a quarter of the way from 1 to 1 + 2^-7; rounding to the nearest would make all of them 1."""
    size = 40_000
    param, optimizer = one_parameter([0.0] * size, implementation, moment_dtype="bfloat16", betas=(0.5, 0.5))
    root = torch.full((size,), math.sqrt(2 * (1 + 2**-9)))
    for grad, moment in ((torch.full((size,), 2 * (1 + 2**-9)), "exp_avg"), (root, "exp_avg_sq")):
        optimizer.state.clear()
        step_with(optimizer, grad)
        stored = optimizer.state[param][moment].float()
        assert set(stored.unique().tolist()) == {1.0, 1 + 2**-7}
        # Five standard deviations of the mean of as many coins.
        assert stored.mean().item() == pytest.approx(1 + 2**-9, abs=5 * 2**-7 * math.sqrt(0.1875 / size))


@every_case
def test_groups_have_their_own_options_which_are_read_at_every_step(implementation, dtype):
    """A parameter whose gradients come later counts its own steps, and positions count over all groups."""
    own = [
        {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "dropout": 0.0, "maximize": False},
        {"lr": 0.03, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.2, "dropout": 0.4, "maximize": True},
        {"lr": 0.2, "betas": (0.0, 0.99), "eps": 0.0, "weight_decay": 0.1, "dropout": 0.8, "maximize": False},
    ]
    shapes = [[(33,), (4, 5)], [(129,)], [(17, 3), (7,), ()]]
    rng = np.random.default_rng(3)
    groups = [
        {"params": [torch.tensor(rng.normal(size=shape), dtype=dtype).requires_grad_() for shape in each], **options}
        for each, options in zip(shapes, own, strict=True)
    ]
    optimizer = GENIEAdamW(groups[:2], seed=SEED, **flags(implementation))
    optimizer.add_param_group(groups[2])
    rows = [(param, group) for group in optimizer.param_groups for param in group["params"]]
    weights = [as_array(param) for param, _ in rows]
    states, tolerance = [{} for _ in rows], [0.0 for _ in rows]
    late = 4  # whose gradients come from the sixth step on
    for t in range(30):
        if t == 10:
            for group in optimizer.param_groups:
                group["lr"] /= 2
                group["weight_decay"] += 0.1
                group["dropout"] = 0.3
        for index, (param, group) in enumerate(rows):
            if index == late and t < 5:
                continue
            param.grad = torch.tensor(rng.normal(0.5, 1.0, size=param.shape), dtype=dtype)
            mask = mask_of(param.shape, index, states[index].get("step", 0) + 1, group["dropout"])
            rule = {name: group[name] for name in own[0]}
            largest = np.abs(weights[index])
            weights[index] = transcription.step(weights[index], as_array(param.grad), states[index], mask, **rule)
            largest = np.maximum(largest, np.abs(weights[index]))
            tolerance[index] += drift(unit_of(dtype), largest, group["lr"], group["dropout"], states[index]["step"])
        optimizer.step()
        for (param, _), weight, bound in zip(rows, weights, tolerance, strict=True):
            assert_within(as_array(param), weight, bound)


@every_case
def test_gradients_are_left_as_they_are(implementation, dtype):
    twin = Twin(SHAPES, implementation, dtype, **OPTIONS["all"])
    twin.step()
    stream = [next(gradients(shape, 1, index)) for index, shape in enumerate(SHAPES)]
    for param, values in zip(twin.params, stream, strict=True):
        assert torch.equal(param.grad, torch.tensor(values, dtype=dtype))


@every_implementation
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_lr_may_be_a_tensor(implementation, dropout):
    if implementation == "foreach":
        pytest.skip("refused, as AdamW does: see test_complaints_are_adamws")
    grads = [torch.randn(17, 5) for _ in range(10)]
    results = []
    for lr in (0.125, torch.tensor(0.125)):
        param, optimizer = one_parameter(torch.ones(17, 5).tolist(), implementation, lr=lr, dropout=dropout)
        for grad in grads:
            step_with(optimizer, grad)
        results.append(param.detach())
    torch.testing.assert_close(*results, rtol=0, atol=10 * 2**-24 * 8)


# ------------------------------------------------------------------------------------------- against AdamW


@every_case
@pytest.mark.parametrize("eps", [0.0, 1e-8, 1e-3, 1.0])
@pytest.mark.parametrize("betas", BETAS)
def test_the_first_step_is_adamws(implementation, dtype, eps, betas):
    rng = np.random.default_rng(0)
    values = rng.choice([-1, 1], 5000) * 10 ** rng.uniform(-12, 9, 5000)
    start, grad = torch.tensor(rng.normal(size=5000), dtype=dtype), torch.tensor(values, dtype=dtype)
    options = {"lr": 0.1, "betas": betas, "eps": eps, "weight_decay": 0.1}
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    step_with(GENIEAdamW([ours], **options, **flags(implementation)), grad)
    step_with(AdamW([theirs], **options, foreach=False), grad)
    # Both may be off by as much as `check_one_step` allows.
    u = np.abs(values) / (np.abs(values) + eps)
    tolerance = 2 * unit_of(dtype) * (4 * np.abs(start.numpy()) + 24 * 0.1 * u)
    assert_within(as_array(ours), as_array(theirs), tolerance)


@every_case
@pytest.mark.parametrize("eps", [0.0, 1e-8, 1.0])
@pytest.mark.parametrize("betas", BETAS)
def test_constant_gradients_are_followed_as_adamw_does(implementation, dtype, eps, betas):
    """M = V, but for rounding, so f = 1: each step is lr sign(g), and lr g / (|g| + eps) with an eps."""
    steps, lr = 100, 0.01
    values = [sign * 10.0**exponent for sign in (-1, 1) for exponent in range(-12, 9)]
    grad = torch.tensor(values, dtype=dtype)
    start = torch.linspace(-1, 1, len(values), dtype=dtype)
    options = {"lr": lr, "betas": betas, "eps": eps}
    u = as_array(grad) / (np.abs(as_array(grad)) + eps)
    for decay in (0.0, 0.1):
        ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
        optimizer = GENIEAdamW([ours], **options, weight_decay=decay, **flags(implementation))
        adamw = AdamW([theirs], **options, weight_decay=decay, foreach=False)
        for _ in range(steps):
            step_with(optimizer, grad)
            step_with(adamw, grad)
        tolerance = sum(drift(unit_of(dtype), 2, lr, 0.0, t) for t in range(1, steps + 1))
        assert_within(as_array(ours), as_array(theirs), 2 * tolerance)
        if decay == 0:
            assert_within(as_array(ours), as_array(start) - steps * lr * u, tolerance)


@every_case
@pytest.mark.parametrize("b1", [0.5, 0.9])
def test_gradients_of_mean_zero_take_nearly_no_step(implementation, dtype, b1):
    """Of alternating gradients a, -a, a, ... V is a^2, and mhat / a = s (1 - (-b1)^t) / (1 - b1^t) but for the sign.

    s = (1 - b1) / (1 + b1) is what mhat / a and rho both come to, so the step comes to s^3 / (s^2 + s (1 - s^2)), near
    s^2, where Adam's is s: at the default betas, a twentieth of it.
    """
    a, lr, steps = 0.25, 0.1, 200
    param, optimizer = one_parameter([0.0], implementation, dtype, lr=lr, betas=(b1, 0.999), eps=0.0, weight_decay=0.0)
    s = (1 - b1) / (1 + b1)
    limit = s**2 / (s + 1 - s**2)
    assert limit < {0.5: 0.1, 0.9: 0.0027}[b1]
    for t in range(1, steps + 1):
        before = param.detach().clone()
        step_with(optimizer, torch.tensor([a * (-1) ** t], dtype=dtype))
        ratio = s * (1 - (-b1) ** t) / (1 - b1**t)
        rho = s * (1 + b1**t) / (1 - b1**t)
        expected = lr * ratio**3 / (ratio**2 + rho * (1 - ratio**2))
        # m's error is relative to a, which mhat is twenty times below; u falls with its cube.
        tolerance = unit_of(dtype) * (2 * abs(before.item()) + lr * (100 + t))
        moved = (before - param.detach()).item()
        assert moved == pytest.approx(expected * (-1) ** t, abs=tolerance)
        if t > 100:
            assert abs(moved) <= lr * limit * (1 + 1e-3)
    assert abs(param.item()) < 3 * lr  # the first steps, which may be larger


@every_case
def test_a_mean_of_exactly_zero_takes_no_step_but_the_decay(implementation, dtype):
    options = {"lr": 0.5, "betas": (0.5, 0.999), "eps": 0.0, "weight_decay": 0.25}
    param, optimizer = one_parameter([2.0], implementation, dtype, **options)
    step_with(optimizer, torch.tensor([4.0], dtype=dtype))
    before = param.item()
    step_with(optimizer, torch.tensor([-2.0], dtype=dtype))  # exp_avg: 0.5 * 2 + 0.5 * -2
    assert optimizer.state[param]["exp_avg"].item() == 0
    assert optimizer.state[param]["exp_avg_sq"].item() > 0
    assert param.item() == pytest.approx(before * (1 - 0.125), rel=3 * unit_of(dtype))


@every_case
def test_where_the_ratio_exceeds_one_the_step_is_adamws(implementation, dtype):
    """After a long silence, gradients that grow by b2 / b1 at each step raise mhat / sqrt(V) to its highest.

    From the first of them on it is at least (1 - b1) / sqrt(1 - b2) = 3.16, and comes to
    (1 - b1) / sqrt((1 - b2) (1 - b1^2 / b2)) = 7.27.
    """
    b1, b2 = 0.9, 0.999
    start = torch.linspace(-1, 1, 21, dtype=dtype)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    options = {"lr": 0.01, "eps": 1e-8, "weight_decay": 0.01}
    optimizer = GENIEAdamW([ours], **options, **flags(implementation))
    adamw = AdamW([theirs], **options, foreach=False)
    silence = {"step": torch.tensor(20_000.0), "exp_avg": 0 * start, "exp_avg_sq": 0 * start}
    for each in (optimizer, adamw):
        each.load_state_dict({**each.state_dict(), "state": {0: copy.deepcopy(silence)}})
    sign = torch.tensor([1.0, -1.0, 1.0] * 7, dtype=dtype)
    for k in range(60):
        before = ours.detach().clone()
        grad = 1e-3 * (b2 / b1) ** k * sign
        step_with(optimizer, grad)
        step_with(adamw, grad)
        state = adamw.state[theirs]
        ratio = as_array(state["exp_avg"]) / np.sqrt(as_array(state["exp_avg_sq"])) * sign.numpy()
        assert (ratio > 3.1).all()
        # Of updates up to 7.27, which may be off by as much more.
        bound = sum(drift(unit_of(dtype), 5, 7.27 * 0.01, 0.0, t) for t in range(1, k + 2))
        assert_within(as_array(ours), as_array(theirs), 2 * bound)
        moved = before - ours.detach()
        assert (moved * sign > 0.01 * 3).all()
    assert (ratio > 7.26).all()
    assert (ratio < 7.271).all()


# --------------------------------------------------------------------------------------------------- scale


@every_case
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dropout": 0.4},
        {"dropout": 0.4, "moment_dtype": "bfloat16"},
        {"dropout": 0.4, "betas": (0.5, 0.9)},
        {"dropout": 0.4, "betas": (0.0, 0.99), "maximize": True},
    ],
    ids=["defaults", "dropout", "bfloat16 moments", "short memory", "no momentum"],
)
def test_the_scale_of_gradients_does_not_matter(implementation, dtype, options):
    """Without an eps, not in one bit for powers of two, unless squares underflow."""

    def path(exponent):
        params = [start.clone().requires_grad_() for start in starts]
        optimizer = GENIEAdamW(params, lr=0.1, eps=0.0, weight_decay=0.1, seed=SEED, **options, **flags(implementation))
        visited = []
        for grads in zip(*streams, strict=True):
            step_with(optimizer, *(2.0**exponent * grad for grad in grads))
            visited += [param.detach().clone() for param in params]
        return visited

    starts = [torch.randn(shape, dtype=dtype) for shape in SHAPES]
    streams = [
        [torch.tensor(np.where(np.abs(grad) < 1e-10, 0, grad), dtype=dtype) for grad in gradients(shape, 30, index)]
        for index, shape in enumerate(SHAPES)
    ]
    plain = path(0)
    assert all(not torch.equal(start, end) for start, end in zip(starts, plain[-len(starts) :], strict=True))
    for exponent in (-14, -3, 5, 14):
        for one, other in zip(plain, path(exponent), strict=True):
            assert torch.equal(one, other)


# ---------------------------------------------------------------------------------------------- edge cases


@every_case
@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_without_gradient_nothing_but_decay(implementation, dtype, eps, dropout):
    values = np.linspace(-2, 2, 39)
    options = {"lr": 0.1, "eps": eps, "weight_decay": 0.1, "dropout": dropout}
    param, optimizer = one_parameter(values, implementation, dtype, **options)
    start = as_array(param)
    for _ in range(20):
        step_with(optimizer, torch.zeros(39, dtype=dtype))
    assert_within(as_array(param), start * 0.99**20, 20 * 3 * unit_of(dtype) * np.abs(start))
    still, optimizer = one_parameter(values, implementation, dtype, **{**options, "weight_decay": 0.0})
    for _ in range(20):
        step_with(optimizer, torch.zeros(39, dtype=dtype))
    assert np.array_equal(as_array(still), start)


@every_case
@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("first", [0.0, 1.0])
def test_gradients_that_are_not_finite_are_not_hidden(implementation, dtype, eps, bad, first):
    """The same weights as AdamW's are not finite, from this step on; the others step as if nothing was."""
    size, where = 37, [0, 3, 8, 18, 31, 36]
    ours, theirs, clean = (torch.ones(size, dtype=dtype).requires_grad_() for _ in range(3))
    optimizers = [
        GENIEAdamW([ours], eps=eps, **flags(implementation)),
        AdamW([theirs], eps=eps, foreach=False),
        GENIEAdamW([clean], eps=eps, **flags(implementation)),
    ]
    usual = torch.linspace(0.5, 1.5, size, dtype=dtype)
    spoiled = usual.clone()
    spoiled[where] = bad
    expected = torch.ones(size, dtype=torch.bool)
    expected[where] = False
    for index, grads in enumerate([(first * usual,) * 3, (spoiled, spoiled, usual), (usual,) * 3]):
        for optimizer, grad in zip(optimizers, grads, strict=True):
            step_with(optimizer, grad)
        if index == 0:
            continue  # AdamW's own step on zeros is NaN at eps 0
        assert torch.equal(ours.isfinite(), expected)
        assert torch.equal(ours.isnan(), expected.logical_not() & theirs.isnan())
        assert torch.equal(ours[expected], clean[expected])


@every_implementation
def test_a_nan_is_not_hidden_by_dropout_for_long(implementation):
    param, optimizer = one_parameter([1.0] * 40, implementation, dropout=0.4)
    grad = torch.ones(40)
    grad[::3] = float("nan")
    for _ in range(30):  # 0.4^30 = 1e-12
        step_with(optimizer, grad)
    assert torch.equal(param.isnan(), grad.isnan())


@every_implementation
@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("b1", [0.0, 0.9])
def test_underflow_makes_no_nan(implementation, eps, b1):
    """Squares of 1e-30 are 0 in float32; those of 1e-20 have few bits left."""
    magnitudes = [10.0**exponent for exponent in range(-45, -14)]
    grad = torch.tensor(magnitudes + [-magnitude for magnitude in magnitudes])
    options = {"lr": 0.1, "betas": (b1, 0.999), "eps": eps, "weight_decay": 0.0}
    param, optimizer = one_parameter([1.0] * len(grad), implementation, **options)
    for _ in range(5):
        before = param.detach().clone()
        step_with(optimizer, grad)
        assert param.isfinite().all()
        assert ((param - before).abs() <= 0.1 * 7.3).all()
    tiny = grad.abs() < 1e-25
    assert torch.equal(param[tiny], torch.ones(int(tiny.sum())))
    if eps == 0:
        usual = grad.abs() > 1e-17
        torch.testing.assert_close(param[usual], 1 - 0.5 * grad[usual].sign(), rtol=0, atol=1e-5)


@every_case
@pytest.mark.parametrize("shape", [(0,), (3, 0), (1,), ()])
def test_empty_and_single_parameters(implementation, dtype, shape):
    param = torch.ones(shape, dtype=dtype).requires_grad_()
    optimizer = GENIEAdamW([param], lr=0.5, weight_decay=0.0, **flags(implementation))
    step_with(optimizer, torch.full(shape, 2.0, dtype=dtype))
    assert_within(as_array(param), np.full(shape, 0.5), 1e-7)


# ------------------------------------------------------------------------------------------------- dropout


@every_case
@pytest.mark.parametrize("dropout", [0.25, 0.4])
def test_the_mask_is_the_streams(implementation, dtype, dropout):
    """An element moves where the stream keeps it, and there by its update / (1 - p)."""
    p = round(65536 * dropout) / 65536
    shapes = [[(17, 5), (9,)], [(64, 3, 3, 3)]]
    params = [[torch.zeros(shape, dtype=dtype).requires_grad_() for shape in group] for group in shapes]
    options = {"lr": 0.1, "eps": 0.0, "weight_decay": 0.0, "dropout": dropout}
    optimizer = GENIEAdamW([{"params": group} for group in params], **options, seed=SEED, **flags(implementation))
    flat = [param for group in params for param in group]
    for t in range(1, 6):
        before = [param.detach().clone() for param in flat]
        step_with(optimizer, *(torch.ones_like(param) for param in flat))
        for position, (param, old) in enumerate(zip(flat, before, strict=True)):
            kept = torch.from_numpy(mask_of(param.shape, position, t, dropout))
            assert torch.equal(param != old, kept)
            assert kept.any()
            moved = as_array(old - param)[kept.numpy()]
            # Of constant gradients: u = 1, and weights are below 1.
            assert_within(moved, np.full(moved.shape, 0.1 / (1 - p)), drift(unit_of(dtype), 1, 0.1, dropout, t))


@every_implementation
@pytest.mark.parametrize("dropout", [0.1, 0.4, 0.9])
def test_kept_fraction_and_expected_step(implementation, dropout):
    size = LARGE[0]
    options = {"lr": 1.0, "weight_decay": 0.0, "dropout": dropout}
    param, optimizer = one_parameter(np.zeros(size), implementation, **options)
    for t in range(1, 4):
        before = param.detach().clone()
        step_with(optimizer, torch.ones(size))
        moved = (before - param).detach()
        five_deviations = 5 * math.sqrt(dropout * (1 - dropout) / size)
        assert (moved != 0).double().mean().item() == pytest.approx(1 - dropout, abs=five_deviations), t
        assert moved.double().mean().item() == pytest.approx(1.0, abs=five_deviations / (1 - dropout)), t


@every_case
def test_decay_is_not_masked(implementation, dtype):
    """Weights that are dropped shrink by as much as without dropout."""
    options = {"lr": 0.5, "eps": 0.0, "weight_decay": 0.25, "dropout": 0.4}
    param, optimizer = one_parameter(np.linspace(1, 2, 301), implementation, dtype, **options)
    plain, other = one_parameter(np.linspace(1, 2, 301), implementation, dtype, **{**options, "dropout": 0.0})
    start = as_array(param)
    step_with(optimizer, torch.ones(301, dtype=dtype))
    step_with(other, torch.ones(301, dtype=dtype))
    kept = mask_of((301,), 0, 1, 0.4)
    decayed = start * 0.875
    expected = np.where(kept, decayed - 0.5 / (1 - 26214 / 65536), decayed)
    assert_within(as_array(param), expected, unit_of(dtype) * 40)
    assert_within(as_array(plain), decayed - 0.5, unit_of(dtype) * 40)


@every_case
def test_without_dropout_the_seed_does_not_matter(implementation, dtype):
    """Nor does a dropout that rounds to none of 65536."""
    paths = []
    for dropout, seed in ((0.0, 0), (0.0, 1), (2.0**-18, 2)):
        twin = Twin(SHAPES, implementation, dtype, dropout=dropout)
        for group in twin.optimizer.param_groups:
            group["seed"] = seed
        for _ in range(10):
            twin.step()
        paths.append(twin.params)
    for one, other, third in zip(*paths, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, third)


@every_implementation
def test_the_seed_selects_the_mask(implementation):
    kept = []
    for seed in (SEED, SEED + 1, SEED + 2**32):
        param, optimizer = one_parameter(np.zeros(500), implementation, dropout=0.4, seed=seed, weight_decay=0.0)
        step_with(optimizer, torch.ones(500))
        kept.append((param != 0).numpy())
        assert np.array_equal(kept[-1], mask_of((500,), 0, 1, 0.4, seed))
    assert not any(np.array_equal(one, other) for one, other in itertools.combinations(kept, 2))


# -------------------------------------------------------------------------------------- words and complaints


def test_arguments_are_adamws_and_three_more():
    """In the same order, of the same kind and with the same defaults, but for amsgrad."""
    ours, theirs = (dict(inspect.signature(cls).parameters) for cls in (GENIEAdamW, AdamW))
    del theirs["amsgrad"]
    own = {name: ours.pop(name) for name in ("dropout", "seed", "moment_dtype")}
    assert {name: parameter.default for name, parameter in own.items()} == {
        "dropout": 0.0,
        "seed": None,
        "moment_dtype": None,
    }
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in own.values())
    assert set(ours) == set(theirs)
    for name, parameter in theirs.items():
        assert (ours[name].kind, ours[name].default) == (parameter.kind, parameter.default), name
    assert list(ours)[:5] == ["params", "lr", "betas", "eps", "weight_decay"]


BAD = [
    {"lr": -1},
    {"lr": -1.0},
    {"lr": float("nan")},
    {"lr": torch.tensor([0.1, 0.1])},
    {"lr": torch.tensor(-1.0)},
    {"lr": torch.tensor(0.1), "foreach": True},
    {"lr": torch.tensor([0.1, 0.1]), "foreach": True},
    {"eps": -1},
    {"eps": float("nan")},
    {"betas": (-0.1, 0.999)},
    {"betas": (1.0, 0.999)},
    {"betas": (float("nan"), 0.999)},
    {"betas": (0.9, -0.1)},
    {"betas": (0.9, 1.0)},
    {"betas": (0.9, float("nan"))},
    {"betas": (1.5, 1.5)},
    {"weight_decay": -1},
    {"weight_decay": float("nan")},
    {"foreach": True, "fused": True},
    {"fused": True, "differentiable": True},
    {"fused": True, "differentiable": True, "foreach": True},
    {"lr": -1, "eps": -1, "betas": (1.0, 1.0), "weight_decay": -1, "fused": True, "foreach": True},
]


def complaint(cls, params, **options):
    with pytest.raises((ValueError, RuntimeError, TypeError)) as caught:
        cls(params, **options)
    return type(caught.value), str(caught.value).replace("GENIEAdamW", "AdamW")


@pytest.mark.parametrize("options", BAD, ids=str)
def test_complaints_are_adamws(options):
    def params():
        return [torch.ones(2).requires_grad_()]

    assert complaint(GENIEAdamW, params(), **options) == complaint(AdamW, params(), **options)


@pytest.mark.parametrize(
    "params",
    [[], torch.ones(1), [1.0], [{"params": [torch.ones(1) * torch.ones(1, requires_grad=True)]}]],
    ids=["none", "a tensor", "a number", "no leaf"],
)
def test_complaints_about_parameters_are_adamws(params):
    assert complaint(GENIEAdamW, params) == complaint(AdamW, params)


@pytest.mark.parametrize("dropout", [1.0, -0.1, float("nan"), 1.5])
def test_dropout_out_of_range_is_refused(dropout):
    with pytest.raises(ValueError, match="dropout"):
        GENIEAdamW([torch.ones(2).requires_grad_()], dropout=dropout)


@every_implementation
def test_sparse_gradients_are_refused(implementation):
    param = torch.ones(4).requires_grad_()
    optimizers = GENIEAdamW([param], **flags(implementation)), AdamW([param], foreach=False)
    for optimizer in optimizers:
        with pytest.raises(RuntimeError, match="does not support sparse gradients"):
            step_with(optimizer, torch.ones(4).to_sparse())
    assert torch.equal(param, torch.ones(4))


# ------------------------------------------------------------------------------------------------- complex


@pytest.mark.parametrize(
    ("implementation", "dtype"),
    [
        ("forloop", torch.complex128),
        ("foreach", torch.complex128),
        ("forloop", torch.complex64),
        ("foreach", torch.complex64),
        ("fused", torch.complex64),
        ("default", torch.complex64),
    ],
)
@pytest.mark.parametrize("options", [OPTIONS["defaults"], OPTIONS["all"]], ids=["defaults", "all"])
def test_complex_parameters_step_as_their_real_views(implementation, dtype, options):
    starts = [torch.randn(shape, dtype=dtype) for shape in SHAPES]
    params = [start.clone().requires_grad_() for start in starts]
    reals = [torch.view_as_real(start.clone()).clone().requires_grad_() for start in starts]
    optimizers = [GENIEAdamW(each, lr=0.1, **options, seed=SEED, **flags(implementation)) for each in (params, reals)]
    for _ in range(10):
        grads = [torch.randn(shape, dtype=dtype) for shape in SHAPES]
        step_with(optimizers[0], *grads)
        step_with(optimizers[1], *(torch.view_as_real(grad).clone() for grad in grads))
        for param, real, start in zip(params, reals, starts, strict=True):
            assert torch.equal(torch.view_as_real(param.detach()), real.detach())
            assert not torch.equal(param, start)


# -------------------------------------------------------------------------- the implementations with each other

LAYOUTS = ("contiguous", "channels_last", "transposed", "gaps")


def laid_out(values, layout):
    """The same values in another order of memory."""
    if layout == "channels_last" and values.dim() == 4:
        return values.to(memory_format=torch.channels_last)
    if layout == "transposed" and values.dim() >= 2:
        return values.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "gaps":
        return torch.stack([values, torch.zeros_like(values)], dim=-1)[..., 0]
    return values.clone()


sizes = st.one_of(
    st.lists(st.integers(0, 9), max_size=4),
    st.sampled_from([[16, 7], [64], [65], [129, 130], [3, 70, 5, 5], [20_000], []]),
)
cases = st.fixed_dictionaries(
    {
        "params": st.lists(
            st.fixed_dictionaries(
                {
                    "shape": sizes,
                    "dtype": st.sampled_from(["float32", "float32", "float32", "bfloat16", "float64", "float16"]),
                    "layout": st.sampled_from(LAYOUTS),
                    "gradient": st.sampled_from(LAYOUTS),
                }
            ),
            min_size=1,
            max_size=4,
        ),
        "options": st.fixed_dictionaries(
            {
                "lr": st.sampled_from([1e-3, 0.1, 1.0]),
                "betas": st.tuples(st.sampled_from([0.0, 0.5, 0.9, 0.99]), st.sampled_from([0.0, 0.9, 0.999])),
                "eps": st.sampled_from([0.0, 1e-8, 1e-3, 1.0]),
                "weight_decay": st.sampled_from([0.0, 0.01, 0.3]),
                "dropout": st.sampled_from([0.0, 0.1, 0.4, 0.9]),
                "maximize": st.booleans(),
                "seed": st.integers(0, 2**64 - 1),
            }
        ),
        "steps": st.integers(1, 6),
        "exponent": st.integers(-9, 9),
    }
)


@settings(max_examples=80, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cases)
def test_implementations_agree(case):
    """And all of them with the transcription, whatever the options, the types and the order of memory."""
    rng = np.random.default_rng(case["steps"])
    dtypes = [getattr(torch, each["dtype"]) for each in case["params"]]
    starts = [
        torch.tensor(rng.normal(size=each["shape"]), dtype=d) for each, d in zip(case["params"], dtypes, strict=True)
    ]
    steps = []
    for _ in range(case["steps"]):
        grads = []
        for start, dtype in zip(starts, dtypes, strict=True):
            exponent = np.clip(case["exponent"], -2, 2) if dtype == torch.float16 else case["exponent"]
            values = 10.0**exponent * rng.normal(0.5, 1.0, size=start.shape)
            grads.append(torch.tensor(values * (rng.uniform(size=start.shape) < 0.8), dtype=dtype))
        steps.append(grads)
    weights, largest = transcribed(starts, steps, case["options"])
    for implementation, own in FLAGS.items():
        takes_all = set(dtypes) <= {torch.float32, torch.bfloat16} and not GENIE_FUSED.obstacle()
        if implementation == "fused" and not takes_all:
            continue
        params = [laid_out(s, each["layout"]).requires_grad_() for s, each in zip(starts, case["params"], strict=True)]
        optimizer = GENIEAdamW(params, **case["options"], **own)
        try:
            for grads in steps:
                step_with(
                    optimizer, *(laid_out(g, each["gradient"]) for g, each in zip(grads, case["params"], strict=True))
                )
        except RuntimeError as error:
            # The kernel refuses orders of memory that it has no loop for, if it was asked for.
            others = {each["layout"] for each in case["params"]} & {"gaps", "transposed"}
            if not (implementation == "fused" and others and "fused" in str(error)):
                raise
            continue
        for param, weight, bound, dtype in zip(params, weights, largest, dtypes, strict=True):
            unit = unit_of(torch.promote_types(dtype, torch.float32))
            # u is below 8 here, and each step rounds weights of low precision to their type.
            each = drift(unit, bound, 8 * case["options"]["lr"], case["options"]["dropout"], case["steps"])
            each += torch.finfo(dtype).eps / 2 * bound if dtype.itemsize == 2 else 0.0
            assert_within(as_array(param), weight, case["steps"] * each)


def transcribed(starts, steps, options):
    """Return the weights after all steps, and the largest that each one was on its way."""
    rule = {name: value for name, value in options.items() if name != "seed"}
    weights = [as_array(start) for start in starts]
    largest, states = [np.abs(weight) for weight in weights], [{} for _ in starts]
    for t, grads in enumerate(steps, 1):
        for index, grad in enumerate(grads):
            mask = mask_of(grad.shape, index, t, options["dropout"], options["seed"])
            weights[index] = transcription.step(weights[index], as_array(grad), states[index], mask, **rule)
            largest[index] = np.maximum(largest[index], np.abs(weights[index]))
    return weights, largest
