"""GENIE's Triton kernels against the for-loop: in Triton's interpreter, which needs no GPU, and on one where there is.

Triton decides when it is imported whether it interprets. So every check that can run in the interpreter does so in a
process of its own, which runs this file; on a GPU the same checks run here.
"""

import importlib.util
import math
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from shiftproof.base.sharding import Shard
from shiftproof.optim import GENIE
from shiftproof.optim.genie import fused_triton
from shiftproof.optim.genie import step as genie_step
from shiftproof.optim.genie.eager import begin_forloop
from shiftproof.optim.genie.rule import Options, Row
from shiftproof.optim.genie.step import Flags, take_step
from shiftproof.optim.stream import draw_masks, draw_normals, mask_threshold

SHAPES = [(1,), (7,), (33,), (129,), (1000,), (3, 4, 5)]
FORMS = ["paper", "released"]
SEED = 0x8123456789ABCDEF  # both words of the key have to matter, and the highest bit
FORM_CHECKS, OTHER_CHECKS = [], []


def of_each_form(check):
    """Register a check that is given a device and a form."""
    FORM_CHECKS.append(check)
    return check


def of_no_form(check):
    """Register a check that is given a device."""
    OTHER_CHECKS.append(check)
    return check


def options_of(form="paper", **options):
    settings = {
        "lr": 0.1,
        "betas": (0.9, 0.9),
        "eps": 0.0,
        "dropout": 0.4,
        "noise": 1.0,
        "precondition": True,
        "weight_decay": 0.0,
        "seed": SEED,
        "maximize": False,
    }
    return Options(form=form, **{**settings, **options})


class Rows:
    """Parameters with their state, to be stepped by one implementation."""

    def __init__(self, params, form, variant, moments=torch.float32, shards=None, memory_format=None):
        self.variant, device = variant, params[0].device
        self.rows = []
        for i, param in enumerate(params):
            p = param.clone(memory_format=memory_format or torch.preserve_format)
            self.rows.append(
                Row(
                    p,
                    torch.zeros_like(p),
                    torch.zeros_like(p, dtype=moments),
                    torch.zeros_like(p, dtype=moments),
                    torch.zeros((), device=device) if variant.capturable else 0,
                    i + 3,
                    shards[i] if shards else None,
                )
            )

    def step(self, grads, options):
        for i, (row, grad) in enumerate(zip(self.rows, grads, strict=True)):
            step = row.step.add_(1) if self.variant.capturable else row.step + 1
            self.rows[i] = row._replace(grad=grad.clone(), step=step)
        take_step([(self.rows, options, self.variant)], [[]])

    def tensors(self):
        for row in self.rows:
            yield from (row.param, row.exp_avg, row.exp_avg_sq)


FUSED, FORLOOP = Flags(fused=True), Flags(foreach=False)


def draws(shapes, device, generator, std=1.0, dtype=torch.float32):
    return [(torch.randn(shape, generator=generator) * std).to(device, dtype) for shape in shapes]


def generator_of(seed):
    return torch.Generator().manual_seed(seed)


def stepped(device, options, shapes=SHAPES, std=1.0, steps=6, dtype=torch.float32, capturable=False, **layout):
    """Rows after some steps on the same gradients: the kernels' and the for-loop's."""
    params = draws(shapes, device, generator_of(0), dtype=dtype)
    runs = []
    for variant in (FUSED, FORLOOP):
        rows = Rows(params, options.form, variant._replace(capturable=capturable), **layout)
        generator = generator_of(1)
        for _ in range(steps):
            rows.step(draws(shapes, device, generator, std, dtype), options)
        runs.append(rows)
    return runs


def assert_near(actual, expected, tolerance):
    """Compare tensors; ``tolerance`` is relative to each one's largest entry."""
    actual, expected = actual.double(), expected.double()
    assert actual.isfinite().all()
    difference, largest = (actual - expected).abs().max().item(), expected.abs().max().item()
    assert difference <= tolerance * largest, (difference, largest)


def assert_agree(runs, tolerance):
    for actual, expected in zip(runs[0].tensors(), runs[1].tensors(), strict=True):
        assert actual.dtype == expected.dtype
        assert_near(actual, expected, tolerance)


# ------------------------------------------------------------------------------------- what all machines check


@of_each_form
def forloop(device, form):
    """Six steps of each form with gradients that noise acts on, and not."""
    for std in (0.01, 2.0):
        runs = stepped(device, options_of(form), std=std)
        # Weights that keep moving: a few roundings of each step, relative to the largest weight.
        assert_agree(runs, 2e-6)
        assert not torch.equal(runs[0].rows[4].param, draws(SHAPES, device, generator_of(0))[4])


@of_each_form
def every_option(device, form):
    shapes = [(33,), (3, 4, 5)]
    for option in (
        {"weight_decay": 0.1, "maximize": True},
        {"precondition": False, "dropout": 0.0},
        {"noise": 0.0, "beta": 0.0},
        {"noise": 3.0, "dropout": 0.9, "lr": torch.tensor(0.05, device=device)},
    ):
        assert_agree(stepped(device, options_of(form, **option), shapes, std=2.0), 2e-6)


@of_each_form
def steps_on_the_device(device, form):
    """Counted on the device, steps give the same masks, and the same corrections to rounding."""
    shapes = [(33,), (129,)]
    options = options_of(form, lr=torch.tensor(0.1, device=device))
    runs = stepped(device, options, shapes, std=2.0, capturable=True)
    assert [row.step.item() for row in runs[0].rows] == [6, 6]
    assert_agree(runs, 2e-6)
    on_host, _ = stepped(device, options_of(form), shapes, std=2.0)
    assert_agree((runs[0], on_host), 2e-6)


@of_no_form
def rows_of_several_steps(device):
    """A tensor that begins later has its own step, in bias correction, mask and noise."""
    shapes, options = [(9,), (17,)], options_of("released")
    runs = [Rows(draws(shapes, device, generator_of(0)), "released", variant) for variant in (FUSED, FORLOOP)]
    for rows in runs:
        generator = generator_of(1)
        rows.rows[0] = rows.rows[0]._replace(step=4)
        for _ in range(3):
            rows.step(draws(shapes, device, generator, 2.0), options)
    assert [row.step for row in runs[0].rows] == [7, 3]
    assert_agree(runs, 2e-6)


@of_each_form
def mask_bit_for_bit(device, form):
    """What moves is what `draw_masks` keeps, in tensors of any size, layout and place in the whole."""
    boxes = [
        ((300,), None),
        ((2, 3, 5, 4), None),
        ((11, 13), Shard((40, 13), (7, 0), ())),  # a run that begins within a block
        ((5, 6), Shard((9, 17), (2, 8), ())),
        ((3, 2, 4, 2), Shard((6, 5, 4, 7), (1, 2, 0, 3), ())),
        ((2, 32), Shard((2**30, 64), (2**29 + 5, 32), ())),  # the block's high word is not 0
        ((0, 4), Shard((3, 4), (3, 0), ())),
    ]
    shards = [shard for _, shard in boxes]
    for memory_format in (torch.contiguous_format, torch.channels_last):
        params = [
            torch.zeros(shape, device=device).contiguous(
                memory_format=memory_format if len(shape) == 4 else torch.contiguous_format
            )
            for shape, _ in boxes
        ]
        rows = Rows(params, form, FUSED, shards=shards)
        grads = [torch.ones_like(param) for param in params]
        for _ in range(2):
            before = [row.param.clone() for row in rows.rows]
            rows.step(grads, options_of(form))
            for row, previous in zip(rows.rows, before, strict=True):
                [kept] = draw_masks([row.place], SEED, row.step, mask_threshold(0.4), device)
                assert torch.equal(row.param != previous, kept)
        assert 0.5 < (rows.rows[0].param != 0).double().mean() < 0.95


@of_no_form
def noise_to_a_millionth(device):
    """Under large gradients the paper's step is its noise: the draws, in runs and out of order."""
    options = options_of(dropout=0.0, lr=1.0)
    for shape, shard in (((301,), None), ((5, 6), Shard((9, 17), (2, 8), ()))):
        rows = Rows([torch.zeros(shape, device=device)], "paper", FUSED, shards=[shard])
        for sign in (1, -1):
            rows.rows[0].param.zero_()
            rows.step([torch.full(shape, sign * 100.0, device=device)], options)
        [row] = rows.rows
        m, v = row.exp_avg.double(), row.exp_avg_sq.double()
        variance = v - m.square()
        certainty = torch.tanh(1 / variance)
        noise = -row.param.double() - m / (1 - options.beta**2) * certainty * m.square() / v
        [normal] = draw_normals([row.place], SEED, 2, torch.float64, device)
        assert_near(noise / (variance.sqrt() * (1 - certainty)), normal, 1e-6)


@of_each_form
def low_precision_weights(device, form):
    for dtype in (torch.bfloat16, torch.float16):
        runs = stepped(device, options_of(form), [(33,), (3, 4, 5)], std=2.0, dtype=dtype)
        for fused, plain in zip(runs[0].rows, runs[1].rows, strict=True):
            # A weight is rounded once per step: where updates differ in their last bit, seldom to another neighbour.
            assert (fused.param == plain.param).double().mean() > 0.98
            assert_near(fused.param, plain.param, 2 * torch.finfo(dtype).eps)
            assert_near(fused.exp_avg, plain.exp_avg, 1e-6)


@of_each_form
def bfloat16_moments(device, form):
    """Rounded by the same random bits; seldom otherwise, where the exact values differ in their last bit."""
    runs = stepped(device, options_of(form), [(33,), (2, 3, 4, 5)], std=2.0, moments=torch.bfloat16)
    for fused, plain in zip(runs[0].rows, runs[1].rows, strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            actual, expected = getattr(fused, name), getattr(plain, name)
            assert actual.dtype == torch.bfloat16
            assert (actual == expected).double().mean() > 0.98
            assert_near(actual, expected, 2 * torch.finfo(torch.bfloat16).eps)
        # The step goes on with the rounded averages, so that weights follow them.
        assert (fused.param - plain.param).abs().median() < 1e-6
    channels_last = stepped(
        device,
        options_of(form),
        [(2, 3, 4, 5)],
        std=2.0,
        steps=2,
        moments=torch.bfloat16,
        memory_format=torch.channels_last,
    )
    assert (channels_last[0].rows[0].exp_avg == channels_last[1].rows[0].exp_avg).double().mean() > 0.98


@of_each_form
def channels_last(device, form):
    """Elements are counted in logical order, whatever the order in memory, and gradients may have another one."""
    shapes = [(2, 3, 5, 4), (4, 1, 3, 3)]
    runs = stepped(device, options_of(form), shapes, std=2.0, memory_format=torch.channels_last)
    assert not runs[0].rows[0].param.is_contiguous()
    assert_agree(runs, 2e-6)
    contiguous, _ = stepped(device, options_of(form), shapes, std=2.0)
    assert_agree((runs[0], contiguous), 2e-6)


@of_each_form
def shards(device, form):
    """Boxes of a whole step as the for-loop steps them; their sums are of the box."""
    places = [Shard((40, 13), (7, 0), ()), Shard((9, 17), (2, 8), ()), Shard((6, 5, 4, 7), (1, 2, 0, 3), ())]
    shapes = [(11, 13), (5, 6), (3, 2, 4, 2)]
    assert_agree(stepped(device, options_of(form), shapes, std=2.0, shards=places), 2e-6)


@of_each_form
def sums(device, form):
    """They are those of the for-loop, and come out the same to the bit; the paper's form has none."""
    rows = Rows(draws(SHAPES, device, generator_of(0)), form, FUSED)
    for _ in range(2):
        rows.step(draws(SHAPES, device, generator_of(1), 2.0), options_of(form))

    def begun(begin):
        copies = [row._replace(exp_avg=row.exp_avg.clone(), exp_avg_sq=row.exp_avg_sq.clone()) for row in rows.rows]
        return begin(copies, options_of(form)).sums

    first, again, expected = (begun(begin) for begin in (fused_triton.begin, fused_triton.begin, begin_forloop))
    if form == "paper":
        assert first is None
    else:
        assert torch.equal(first, again)
        torch.testing.assert_close(first, expected, rtol=1e-6, atol=0)


@of_each_form
def halves(device, form):
    """The first half completes chunks without noise and no other; the second leaves those alone."""
    size = fused_triton.block
    grad = torch.cat(draws([(size,)], device, generator_of(1), 0.01) + draws([(size,)], device, generator_of(2), 3.0))
    rows = Rows([torch.zeros(2 * size, device=device)], form, FUSED)
    options = options_of(form, dropout=0.0)
    for sign in (1, -1):
        rows.step([sign * grad], options)
    [row] = rows.rows
    row = row._replace(step=3)
    before = row.param.clone()
    begun = fused_triton.begin([row], options)
    assert (row.param[:size] != before[:size]).all()
    assert torch.equal(row.param[size:], before[size:])
    row.param[:size] = math.nan
    begun.finish(None if begun.sums is None else begun.sums[:, 0] / begun.sums[:, 1])
    assert row.param[:size].isnan().all()
    assert (row.param[size:] != before[size:]).all()


@of_each_form
def scaled_gradients(device, form):
    """Gradients are divided by their scale, and left so; where one is not finite nothing is written."""
    shapes, scale = [(33,), (2, 3, 4, 5)], torch.tensor([64.0], device=device)
    finite, found = torch.zeros(1, device=device), torch.ones(1, device=device)
    runs = []
    for scaled in (True, False):
        variant = (FUSED if scaled else FORLOOP)._replace(capturable=True)
        rows = Rows(draws(shapes, device, generator_of(0)), form, variant, memory_format=torch.preserve_format)
        generator = generator_of(1)
        for _ in range(3):
            grads = draws(shapes, device, generator, 2.0)
            if scaled:
                grads[1] = grads[1].to(memory_format=torch.channels_last)  # unlike its parameter
                rows.step([grad * 64 for grad in grads], options_of(form, grad_scale=scale, found_inf=finite))
                for row, grad in zip(rows.rows, grads, strict=True):
                    assert torch.equal(row.grad, grad)
            else:
                rows.step(grads, options_of(form))
        runs.append(rows)
    assert_agree(runs, 2e-6)

    rows = runs[0]
    before = [t.clone() for t in rows.tensors()]
    grads = draws(shapes, device, generator_of(3))
    grads[0][5] = math.inf
    options = options_of(form, grad_scale=scale, found_inf=found, weight_decay=0.1)
    rows.step(grads, options)
    for after, previous in zip(rows.tensors(), before, strict=True):
        assert torch.equal(after, previous)
    for row, grad in zip(rows.rows, grads, strict=True):
        assert torch.equal(row.grad, grad)


@of_each_form
def edge_cases(device, form):
    """Gradients that are always 0, at some elements or all, and ones whose squares underflow."""
    zero = torch.zeros(20, device=device)
    half, tiny = torch.cat([zero[:10], zero[:10] + 1]), 10.0 ** torch.linspace(-36, -18, 20, device=device)
    rows = Rows([zero + 1, zero, zero], form, FUSED)
    for _ in range(3):
        rows.step([zero, half, tiny], options_of(form, lr=1.0, dropout=0.0))
    still, moved, hardly = (row.param for row in rows.rows)
    assert (still == 1).all()
    assert not moved[:10].any()
    assert (moved[10:] < 0).all()
    assert (hardly.abs() <= 3 * tiny * (1 + 1e-5)).all()
    assert (rows.rows[2].exp_avg_sq == 0).any()


@of_no_form
def optimizer(device):
    """The class uses the kernels, for real and complex parameters, and says so."""
    runs = []
    for kind in ({"fused": True}, {"foreach": False}):
        generator = generator_of(0)
        params = [torch.randn(33, generator=generator), torch.randn(4, 5, generator=generator, dtype=torch.complex64)]
        params = [param.to(device).requires_grad_() for param in params]
        optimizer = GENIE(params, form="released", seed=0, **kind)
        assert ("fused (Triton)" in repr(optimizer)) == ("fused" in kind)
        for _ in range(3):
            for param in params:
                param.grad = torch.randn(param.shape, generator=generator, dtype=param.dtype).to(device)
            optimizer.step()
        runs.append([torch.view_as_real(p) if p.is_complex() else p for p in (param.detach() for param in params)])
    for fused, plain in zip(*runs, strict=True):
        assert_near(fused, plain, 1e-6)


@of_no_form
def obstacles(device):
    [row] = Rows([torch.zeros(4, 6, device=device)], "paper", FUSED).rows
    narrow = torch.zeros(4, 12, device=device)[:, ::2]
    for changed, reason in (
        ({}, None),
        ({"exp_avg": row.exp_avg.bfloat16(), "exp_avg_sq": row.exp_avg.bfloat16()}, None),
        ({"grad": narrow}, None),
        ({"grad": row.grad.double()}, "the gradient is float64"),
        ({"exp_avg_sq": row.exp_avg.bfloat16()}, "a moving average is bfloat16"),
        ({"exp_avg": row.exp_avg.half()}, "a moving average is float16"),
        ({"exp_avg": torch.zeros(6, 4, device=device).t()}, "in another order"),
        ({"param": row.param.double()}, "the parameter is float64"),
        ({"param": narrow}, "gaps"),
        ({"param": torch.zeros((3,) * 6, device=device).permute(0, 2, 4, 1, 3, 5)}, "more than 4 dimensions"),
        ({"param": row.param.to("meta")}, "the parameter is on meta"),
        ({"step": torch.zeros((), dtype=torch.float64, device=device)}, "float64"),
    ):
        found = fused_triton.obstacle(row._replace(**changed))
        assert found is None if reason is None else reason in found
    assert fused_triton.takes(row.param)
    assert fused_triton.takes(torch.zeros(3, dtype=torch.complex64, device=device))
    assert not fused_triton.takes(row.param.double())


# --------------------------------------------------------------------------------------------- without a GPU


needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")


def run_this_file(task, **environment):
    result = subprocess.run([sys.executable, __file__, task], env={**os.environ, **environment}, capture_output=True)
    assert result.returncode == 0, (result.stdout + result.stderr).decode()


def take_cpu_tensors():
    fused_triton.interpreted, fused_triton.block = True, 256
    genie_step.fused_cpu.obstacle = lambda row: "these tests are of another implementation"


def interpret(group):
    """Run the checks of a form, or those of none, in the interpreter."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast = InterpreterBuilder.cast_impl

    def cast_to_nearest(builder, source, target):  # to bfloat16, as GPUs do; the interpreter cuts
        if (str(source.dtype.scalar), str(target.scalar)) == ("fp32", "bf16"):
            source = TensorHandle(torch.from_numpy(source.data).bfloat16().float().numpy(), source.dtype)
        return cast(builder, source, target)

    InterpreterBuilder.cast_impl = cast_to_nearest
    take_cpu_tensors()
    form = [group] if group in FORMS else []
    for check in FORM_CHECKS if form else OTHER_CHECKS:
        print(check.__name__)
        with np.errstate(all="ignore"):  # what is divided by 0 is not chosen
            check(torch.device("cpu"), *form)


def compile_kernels():
    """Compile for a GPU, without one, what the interpreter has no opinion of: types above all."""
    import triton
    from triton.backends.compiler import GPUTarget

    from shiftproof.optim.genie import triton_kernels

    class Driver:
        get_current_target = staticmethod(lambda: GPUTarget("cuda", 80, 32))
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device: 0)

    compiled = []

    class Kernel:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda *args, **kwargs: compiled.append(self.kernel.warmup(*args, grid=grid, **kwargs))

    triton.runtime.driver.set_active(Driver())
    for name in ("begin_kernel", "sum_kernel", "finish_kernel"):
        setattr(triton_kernels, name, Kernel(getattr(triton_kernels, name)))
    take_cpu_tensors()
    one, lr = torch.ones(1), torch.tensor(0.1)
    for form, capturable, dtype, moments, memory_format, options in (
        ("paper", False, torch.float32, torch.float32, None, {}),
        ("released", False, torch.bfloat16, torch.bfloat16, None, {"seed": 1}),
        ("released", True, torch.float32, torch.bfloat16, None, {"grad_scale": one, "found_inf": one, "lr": lr}),
        ("released", False, torch.float16, torch.float32, torch.channels_last, {"maximize": True, "weight_decay": 1}),
    ):
        params = draws([(2, 3, 4, 5)], "cpu", generator_of(0), dtype=dtype)
        variant = FUSED._replace(capturable=capturable)
        rows = Rows(params, form, variant, moments=moments, memory_format=memory_format)
        rows.step(params, options_of(form, **options))
    assert len(compiled) == 11  # the paper's form sums nothing
    assert all(kernel.asm["cubin"] for kernel in compiled)


@needs_triton
@pytest.mark.parametrize("group", [*FORMS, "no form"])
def test_in_the_interpreter(group):
    run_this_file(group, TRITON_INTERPRET="1")


@needs_triton
def test_kernels_compile(tmp_path):
    run_this_file("compile", TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))


def test_triton_is_imported_when_needed():
    code = "import sys, shiftproof.optim; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_cpu_tensors_are_not_taken():
    row = Row(*[torch.zeros(2)] * 4, 1, 0, None)
    assert fused_triton.obstacle(row) == "the parameter is on cpu"
    assert not fused_triton.takes(row.param)


# ------------------------------------------------------------------------------------------------- on a GPU


@pytest.mark.cuda
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("check", FORM_CHECKS, ids=lambda check: check.__name__)
def test_on_the_gpu(check, form):
    check(torch.device("cuda", 0), form)


@pytest.mark.cuda
@pytest.mark.parametrize("check", OTHER_CHECKS, ids=lambda check: check.__name__)
def test_on_the_gpu_of_no_form(check):
    check(torch.device("cuda", 0))


@pytest.mark.cuda
@pytest.mark.parametrize("form", FORMS)
def test_large_tensor(form):
    """Chunks and their sums line up over a tensor of many chunks, and over many tensors."""
    shapes = [(2**20 + 11,), *[(97,)] * 200, (64, 64, 3, 3)]
    assert_agree(stepped("cuda", options_of(form), shapes, std=2.0, steps=3), 2e-6)


def trained(optimizer, params, grads, steps):
    """The weights after each of some steps."""
    weights = []
    for step in range(steps):
        for param, grad in zip(params, grads, strict=True):
            param.grad.copy_(grad * (-1) ** step)
        optimizer()
        weights.append([param.detach().clone() for param in params])
    return weights


def capturable_genie(form, **options):
    params = [p.requires_grad_() for p in draws([(33,), (64, 65), (2, 3, 4, 5)], "cuda", generator_of(0))]
    grads = draws([param.shape for param in params], "cuda", generator_of(1), 2.0)
    for param in params:
        param.grad = torch.zeros_like(param)
    # by itself, each GENIE that lives has a seed of its own
    return GENIE(params, **{"form": form, "capturable": True, "seed": SEED, **options}), params, grads


@pytest.mark.cuda
@pytest.mark.parametrize("form", FORMS)
def test_replays_of_a_graph_are_steps(form):
    optimizer, params, grads = capturable_genie(form, fused=True)
    expected = trained(optimizer.step, params, grads, 8)

    optimizer, params, grads = capturable_genie(form, fused=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        warm = trained(optimizer.step, params, grads, 4)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for i in range(20):  # of other tables, so that none that the graph might use is left
        other, _, _ = capturable_genie(form, fused=True, seed=i)
        other.step()
    replayed = trained(graph.replay, params, grads, 4)
    for actual, wanted in zip(warm + replayed, expected, strict=True):
        for one, other in zip(actual, wanted, strict=True):
            assert torch.equal(one, other)
    assert [optimizer.state[param]["step"].item() for param in params] == [8, 8, 8]
    still = [after[1] == before[1] for before, after in pairwise(replayed)]
    assert not torch.equal(still[0], still[1])  # other masks


@pytest.mark.cuda
@pytest.mark.parametrize("form", FORMS)
def test_a_step_does_not_synchronise(form):
    optimizer, params, _ = capturable_genie(form, fused=True, lr=torch.tensor(0.1, device="cuda"))
    optimizer.step()
    other = [torch.ones_like(param) for param in params]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
        for param, grad in zip(params, other, strict=True):  # so that there is no table of it yet
            param.grad = grad
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [optimizer.state[param]["step"].item() for param in params] == [3, 3, 3]


@pytest.mark.cuda
def test_a_grad_scaler_leaves_scaled_gradients_to_the_kernels():
    weights = []
    for options in ({"capturable": True, "fused": True}, {"foreach": False}):
        optimizer, params, grads = capturable_genie("released", **{"capturable": False, **options})
        scaler = torch.amp.GradScaler("cuda", init_scale=1024.0, growth_interval=2)
        for step in range(6):
            optimizer.zero_grad()
            loss = sum((param * grad * (-1) ** step).sum() for param, grad in zip(params, grads, strict=True))
            scaler.scale(loss * (math.inf if step == 2 else 1)).backward()
            scaler.step(optimizer)
            if step != 2:
                for param, grad in zip(params, grads, strict=True):
                    torch.testing.assert_close(param.grad, grad * (-1) ** step, rtol=1e-6, atol=0)
            scaler.update()
        assert [optimizer.state[param]["step"].item() for param in params] == [5, 5, 5]
        weights.append(params)
    for fused, plain in zip(*weights, strict=True):
        assert_near(fused.detach(), plain.detach(), 2e-6)


if __name__ == "__main__":
    compile_kernels() if sys.argv[1] == "compile" else interpret(sys.argv[1])
