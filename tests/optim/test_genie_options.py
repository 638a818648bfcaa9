"""GENIE's options beyond the update rule: how a step is taken, recorded, compiled and kept."""

import copy
import io
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import lr_scheduler
from torch.utils._python_dispatch import TorchDispatchMode

from shiftproof.optim import GENIE, genie
from shiftproof.optim.genie import fused_cpu, fused_triton
from shiftproof.optim.genie import step as genie_step

from .test_genie import (
    FOREACH,
    FORMS,
    FUSED,
    IMPLEMENTATIONS,
    SHAPES,
    Twin,
    assert_same_bits,
    bits,
    one_parameter,
    saved_and_loaded,
    step_with,
)


def trained(steps=6, dtype=torch.float32, make_step=lambda optimizer: optimizer.step, **options):
    """Parameters and optimizer after some steps on gradients at which noise acts."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in SHAPES]
    optimizer = GENIE(params, **{"seed": 0, **options})
    step = make_step(optimizer)
    for _ in range(steps):
        for param in params:
            param.grad = 2 * torch.randn(param.shape, generator=generator, dtype=dtype)
        step()
    return params, optimizer


def assert_close(left, right, dtype):
    # Some roundings of each of a few updates, which are no larger than the weights' unit.
    tolerance = 64 * torch.finfo(dtype).eps
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


class Recorded(TorchDispatchMode):
    """Notes the names of the operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


# ------------------------------------------------------------------------------------------ differentiable


def through_steps(lr, weights, gradients, moments, options):
    """What two steps make of given weights and state, whose own gradients are to be checked."""
    params = [weight.clone() for weight in weights]
    optimizer = GENIE(params, lr=lr, differentiable=True, **options)
    for param, (m, v) in zip(params, moments, strict=True):
        optimizer.state[param].update({"step": torch.tensor(9.0), "exp_avg": m.clone(), "exp_avg_sq": v.clone()})
    for index in range(2):
        for param, gradient in zip(params, gradients, strict=True):
            # The second is the gradient of a loss of the weights that the first step left.
            weight = param.clone()
            param.grad = gradient if index == 0 else gradient * weight + weight.square()
        optimizer.step()
    states = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    return *params, *states


@FORMS
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dropout": 0.0, "noise": 0.0},
        {"precondition": False, "weight_decay": 0.1, "maximize": True},
        {"capturable": True},
    ],
    ids=["defaults", "update alone", "mean gradient, weight decay, maximize", "capturable"],
)
def test_differentiable(form, options):
    """As torch's TestDifferentiableOptimizer checks its own: by numbers, w.r.t. lr, weights, gradients and state."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(3,), (2, 1)]

    def normal(shape, least=None):
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (values if least is None else least + values.abs()).requires_grad_()

    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    weights, gradients, means = ([normal(shape) for shape in shapes] for _ in range(3))
    squares = [
        normal(shape, least=mean.detach().square().max() + 0.1) for shape, mean in zip(shapes, means, strict=True)
    ]
    inputs = (lr, *weights, *gradients, *means, *squares)

    def function(lr, *tensors):
        weights, gradients, means, squares = zip(tensors[::2], tensors[1::2], strict=True)
        moments = zip(means, squares, strict=True)
        return through_steps(lr, weights, gradients, moments, {"form": form, "seed": 1, **options})

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.autograd.gradcheck(function, inputs)
    # The check above would pass on a constant.
    changes = torch.autograd.grad(sum(output.sum() for output in function(*inputs)), inputs)
    assert all(change.any() for change in changes)


@FORMS
def test_differentiable_steps_are_the_usual_ones(form):
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in SHAPES]
    recorded, plain = [leaf.clone() for leaf in leaves], [leaf.detach().clone() for leaf in leaves]
    optimizers = GENIE(recorded, form=form, seed=0, differentiable=True), GENIE(plain, form=form, seed=0)
    for _ in range(6):
        gradients = [2 * torch.randn(leaf.shape, generator=generator, dtype=torch.float64) for leaf in leaves]
        for optimizer in optimizers:
            step_with(optimizer, *gradients)
    assert_same_bits(recorded, plain)
    assert all(param.requires_grad and not param.is_leaf for param in recorded)


# ---------------------------------------------------------------------------------------------- capturable


@FORMS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_capturable_is_the_forloop(form, dtype):
    plain, usual = trained(dtype=dtype, form=form, foreach=False, fused=False)
    params, optimizer = trained(dtype=dtype, form=form, capturable=True)
    assert_close(params, plain, dtype)
    for one, other in zip(params, plain, strict=True):
        assert optimizer.state[one]["step"] == usual.state[other]["step"] == 6
        assert optimizer.state[one]["step"].device == one.device
    for name in ("noisy_fraction", "kept_fraction", "factor_mean"):
        mine, theirs = (getattr(each.statistics()[0], name) for each in (optimizer, usual))
        assert mine == pytest.approx(theirs, rel=1e-5)


@FORMS
def test_a_capturable_step_reads_no_value(form):
    """Anything that does would break the capture of a CUDA graph."""
    lr = torch.tensor(0.1)
    params, optimizer = trained(steps=2, form=form, lr=lr, capturable=True, weight_decay=0.1)
    with Recorded() as capturable:
        optimizer.step()
    _, usual = trained(steps=2, form=form, lr=lr, foreach=False)
    with Recorded() as forloop:
        usual.step()
    reading = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero"}
    assert not reading & set(capturable.names)
    assert reading & set(forloop.names)
    assert [optimizer.state[param]["step"].item() for param in params] == [3, 3, 3]


def test_capturable_reads_a_step_count_from_the_device():
    """A replayed graph increases the count in place; steps have to follow it."""
    ends = []
    for capturable in (True, False):
        params, optimizer = trained(steps=2, form="released", capturable=capturable, foreach=False)
        for param in params:
            optimizer.state[param]["step"] += 5
        optimizer.step()
        ends.append(params)
    assert_close(*ends, torch.float32)


# ------------------------------------------------------------------------------------------- without the class

FUNCTIONAL = {
    "lr": 0.05,
    "beta": 0.9,
    "dropout": 0.3,
    "noise": 0.5,
    "precondition": True,
    "weight_decay": 0.1,
    "seed": 4,
}


def on_lists(params, optimizer):
    """The lists that the functional takes: parameters, gradients, moments, step counts and positions."""
    states = [optimizer.state[param] for param in params]
    names = ("exp_avg", "exp_avg_sq")
    moments = [[state[name] for state in states] for name in names]
    steps = [state["step"] for state in states]
    return params, [param.grad for param in params], *moments, steps, list(range(len(params)))


@FORMS
@IMPLEMENTATIONS
def test_functional_is_the_class(form, implementation):
    options = {"form": form, **FUNCTIONAL, **implementation.options()}
    (params, optimizer), (twins, other) = (trained(3, implementation.dtype, **options) for _ in range(2))
    optimizer.step()
    with torch.no_grad():
        assert genie(*on_lists(twins, other), **options) is None
    assert_same_bits(params, twins)
    for param, twin in zip(params, twins, strict=True):
        left, right = optimizer.state[param], other.state[twin]
        assert left["step"] == 4
        assert_same_bits([left[name] for name in sorted(left)], [right[name] for name in sorted(right)])


@IMPLEMENTATIONS
@pytest.mark.parametrize("name", ["grad_scale", "found_inf"])
def test_who_cannot_unscale_gradients_says_so(implementation, name):
    """Rather than take a step on gradients that are 1024 times too large, or not finite."""
    options = {"form": "paper", **FUNCTIONAL, **implementation.options()}
    params, optimizer = trained(3, implementation.dtype, **options)
    before = bits(params)
    with pytest.raises(RuntimeError, match=name), torch.no_grad():
        genie(*on_lists(params, optimizer), **options, **{name: torch.tensor(1024.0)})
    assert_same_bits(params, before)


# ------------------------------------------------------------------------------------- learning rates as tensors


def plateau(optimizer):
    return lr_scheduler.ReduceLROnPlateau(optimizer, patience=1, threshold=0.0, factor=0.5)


@FORMS
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize(
    "schedule",
    [
        lambda each: lr_scheduler.CosineAnnealingLR(each, T_max=8),
        lambda each: lr_scheduler.OneCycleLR(each, max_lr=0.2, total_steps=12, cycle_momentum=False),
        lambda each: lr_scheduler.SequentialLR(
            each, [lr_scheduler.LinearLR(each), lr_scheduler.ExponentialLR(each, 0.9)], milestones=[4]
        ),
        plateau,
    ],
    ids=["cosine", "one cycle", "sequential", "plateau"],
)
def test_schedulers_change_a_tensor_in_place(form, capturable, schedule):
    ends = []
    for tensor in (False, True):
        lr = torch.tensor(0.1, dtype=torch.float64) if tensor else 0.1
        param = torch.linspace(-1, 1, 40, dtype=torch.float64, requires_grad=True)
        optimizer = GENIE([param], lr=lr, form=form, capturable=capturable, seed=0)
        scheduler, rates = schedule(optimizer), []
        for index in range(10):
            step_with(optimizer, (param.detach() * (index + 1)).sin())
            scheduler.step(*([1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
            rates.append(float(optimizer.param_groups[0]["lr"]))
        if tensor:
            assert optimizer.param_groups[0]["lr"] is lr
        ends.append((param.detach(), rates))
    assert len(set(ends[0][1])) > 3
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-12)
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-12, atol=1e-14)


# ------------------------------------------------------------------------------------------------- compiling


class Counter:
    """A backend for torch.compile that runs graphs as they are, and counts them."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("paper", {"foreach": False}),
        pytest.param("released", {"capturable": True}, marks=pytest.mark.slow),
        pytest.param("released", {"foreach": True}, marks=pytest.mark.slow),
        ("released", {}),
    ],
    ids=["paper-forloop", "released-capturable", "released-foreach", "released-default"],
)
def test_compiled_step(form, options):
    """Equals the step that is not, and is not compiled anew as steps are counted."""
    torch._dynamo.reset()
    counter = Counter()
    options = {"form": form, **options}
    compiled, optimizer = trained(4, make_step=lambda each: torch.compile(each.step, backend=counter), **options)
    assert_close(compiled, trained(4, **options)[0], torch.float32)
    graphs = counter.graphs
    step = torch.compile(optimizer.step, backend=counter)
    for _ in range(4):
        step()
    assert counter.graphs == graphs
    assert optimizer.state[compiled[0]]["step"] == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "options"),
    [("paper", {"capturable": True}), ("released", {"foreach": True})],
    ids=["paper-capturable", "released-foreach"],
)
def test_step_compiled_by_inductor(form, options):
    torch._dynamo.reset()
    options = {"form": form, **options}
    compiled, _ = trained(4, make_step=lambda optimizer: torch.compile(optimizer.step), **options)
    assert_close(compiled, trained(4, **options)[0], torch.float32)


# -------------------------------------------------------------------------------------------- mixed precision


class Scaled:
    """A small model that trains with or without a GradScaler; the gradients of one step are not finite."""

    def __init__(self, scaled, infinite=None, **options):
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(3, 5, generator=generator).requires_grad_()
        self.inputs = torch.randn(6, 8, 5, generator=generator)
        self.optimizer = GENIE([self.weight], seed=0, **options)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2, enabled=scaled)
        self.infinite = infinite
        self.scales, self.kept = [], []

    def train(self):
        for index, x in enumerate(self.inputs):
            self.optimizer.zero_grad()
            self.scaler.scale((x @ self.weight.T).square().mean()).backward()
            if index == self.infinite:
                if not self.scaler.is_enabled():
                    continue
                self.weight.grad[0, 0] = math.inf
            before = bits([self.weight, *self.optimizer.state[self.weight].values()])
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if index == self.infinite:
                assert_same_bits(before, [self.weight, *self.optimizer.state[self.weight].values()])
            self.scales.append(self.scaler.get_scale())
        return self


@FORMS
@IMPLEMENTATIONS
def test_grad_scaler(form, implementation):
    """A power of two leaves no trace; a step whose gradients are not finite is not taken and not counted."""
    options = {"form": form, **implementation.options(torch.zeros(1))}
    plain, scaled = (Scaled(scaled, infinite=3, **options).train() for scaled in (False, True))
    assert scaled.scales == [1024, 2048, 2048, 1024, 1024, 2048]
    assert_same_bits([plain.weight], [scaled.weight])
    left, right = (each.optimizer.state[each.weight] for each in (plain, scaled))
    assert left["step"] == 5
    assert_same_bits([left[name] for name in sorted(left)], [right[name] for name in sorted(right)])


@pytest.mark.parametrize("options", [{"fused": False}, {"foreach": False}, {"differentiable": True}], ids=str)
def test_a_scaler_leaves_gradients_to_none_but_the_fused_step(options, monkeypatch):
    """Where a GPU could, but an option says otherwise: the others do not divide gradients by the scale."""
    monkeypatch.setattr(fused_triton, "takes", lambda param: True)
    if options.get("differentiable"):
        assert not getattr(GENIE([torch.ones(2)], capturable=True, **options), "_step_supports_amp_scaling", False)
        return
    plain, scaled = (Scaled(scaled, infinite=3, capturable=True, **options).train() for scaled in (False, True))
    assert_same_bits([plain.weight], [scaled.weight])


# ----------------------------------------------------------------------------------------- moments in bfloat16


@IMPLEMENTATIONS
def test_random_rounding_is_unbiased(implementation):
    """Each moment becomes one of its two neighbours, and its mean over many elements is exact."""
    n = 2**17
    options = implementation.options(torch.zeros(1))
    values = torch.tensor([0.3, 1.7, 5.3])
    gradient = values.repeat_interleave(n)
    param = torch.zeros(3 * n, requires_grad=True)
    optimizer = GENIE([param], moment_dtype=torch.bfloat16, seed=11, **options)
    step_with(optimizer, gradient)
    state = optimizer.state[param]
    ups = []
    for name, exact in (("exp_avg", 0.05 * values), ("exp_avg_sq", 0.05 * values.square())):
        for actual, value in zip(state[name].double().view(3, n), exact.double(), strict=True):
            low, high = actual.min(), actual.max()
            gap = 2.0 ** (math.floor(math.log2(value.item())) - 7)
            assert low < value < high
            assert high - low == gap
            share = ((value - low) / gap).item()
            ups.append(actual == high)
            # The exact value itself is known to a few of float32's roundings, each 2^-16 of a gap.
            error = 4.5 * math.sqrt(share * (1 - share) / n) + 4 * 2.0**-16
            assert abs((actual.mean() - value).item()) < error * gap
    # The two moments of an element, and neighbours, are rounded by other bits.
    pairs = [(ups[0], ups[3]), (ups[1], ups[4]), (ups[0][:-1], ups[0][1:]), (ups[3][:-1], ups[3][1:])]
    for one, other in pairs:
        assert abs(torch.corrcoef(torch.stack([one, other]).double())[0, 1]) < 4.5 / math.sqrt(n)


@pytest.mark.parametrize("implementation", [FOREACH, FUSED], ids=["foreach", "fused"])
def test_bfloat16_averages_lose_no_small_changes(implementation):
    """Rounded to nearest, an average stops where its change is half a unit in the last place: here at 0.8."""
    n, steps = 1024, 400
    options = implementation.options(torch.zeros(1))
    param = torch.zeros(n, requires_grad=True)
    optimizer = GENIE([param], beta=0.99, dropout=0.0, moment_dtype=torch.bfloat16, seed=0, **options)
    nearest = torch.zeros(1, dtype=torch.bfloat16)
    for _ in range(steps):
        step_with(optimizer, torch.ones(n))
        nearest = (0.99 * nearest.float() + 0.01).bfloat16()
    assert nearest < 0.85
    expected = 1 - 0.99**steps
    for name in ("exp_avg", "exp_avg_sq"):
        mean, deviation = (getattr(optimizer.state[param][name].double(), each)().item() for each in ("mean", "std"))
        assert abs(mean - expected) < 4.5 * deviation / math.sqrt(n)
        assert deviation < 0.02


@FORMS
@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bfloat16_moments_are_half_the_state_and_survive_loading(form, implementation, dtype):
    options = {"form": form, "moment_dtype": torch.bfloat16, **implementation.options(torch.zeros(1, dtype=dtype))}
    params, optimizer = trained(4, dtype, **options)
    for param in params:
        state = optimizer.state[param]
        moments = [state["exp_avg"], state["exp_avg_sq"]]
        assert [moment.dtype for moment in moments] == [torch.bfloat16] * 2
        assert sum(moment.untyped_storage().nbytes() for moment in moments) == 4 * param.numel()
    loaded_params = [param.detach().clone().requires_grad_() for param in params]
    loaded = GENIE(loaded_params)
    loaded.load_state_dict(saved_and_loaded(optimizer))
    for name in optimizer.state[params[0]]:
        left, right = (
            [each.state[p][name] for p in own] for each, own in ((optimizer, params), (loaded, loaded_params))
        )
        assert_same_bits(left, right)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        gradients = [torch.randn(param.shape, generator=generator).to(dtype) for param in params]
        step_with(optimizer, *gradients)
        step_with(loaded, *gradients)
    assert_same_bits(params, loaded_params)


@FORMS
def test_moments_keep_their_type_whatever_the_new_optimizer_was_made_with(form):
    """The option belongs to the state that it describes, as all that are loaded."""
    params, optimizer = trained(2, form=form)
    loaded = GENIE([param.detach().clone().requires_grad_() for param in params], moment_dtype=torch.bfloat16)
    loaded.load_state_dict(optimizer.state_dict())
    assert loaded.param_groups[0]["moment_dtype"] is None
    assert all(state["exp_avg"].dtype == torch.float32 for state in loaded.state.values())


@FORMS
def test_moments_of_float64_parameters_may_be_narrower(form):
    params, optimizer = trained(3, torch.float64, form=form, moment_dtype=torch.float32)
    wide, _ = trained(3, torch.float64, form=form)
    assert all(optimizer.state[param]["exp_avg"].dtype == torch.float32 for param in params)
    assert_close(params, wide, torch.float32)


# ---------------------------------------------------------------------------------------- what contradicts


@pytest.mark.parametrize(
    "options",
    [
        {"foreach": True, "fused": True},
        {"foreach": True, "differentiable": True},
        {"fused": True, "differentiable": True},
        {"foreach": True, "capturable": True},
        {"differentiable": True, "moment_dtype": torch.bfloat16},
    ],
    ids=" and ".join,
)
def test_contradictions_name_both(options):
    one, other = options
    both = rf"(?s)(?=.*{one})(?=.*{other})"
    with pytest.raises(ValueError, match=both):
        GENIE([torch.ones(1)], **options)
    # Also where one is a group's own.
    with pytest.raises(ValueError, match=both):
        GENIE([{"params": [torch.ones(1)], one: options[one]}], **{other: options[other]})
    optimizer = GENIE([torch.ones(1)], **{other: options[other]})
    with pytest.raises(ValueError, match=both):
        optimizer.add_param_group({"params": [torch.ones(1)], one: options[one]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int8, "half"])
def test_other_types_of_moments_are_refused(dtype):
    with pytest.raises(ValueError, match="moment_dtype"):
        GENIE([torch.ones(1)], moment_dtype=dtype)


def test_fused_says_what_it_does_not_take():
    param, optimizer = one_parameter([1.0], torch.float64, fused=True)
    param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match=r"fused=True, but .*float64"):
        optimizer.step()
    assert param.item() == 1


# ------------------------------------------------------------------------------------- which one takes a step


class Subclass(torch.Tensor):
    """A tensor that is not quite a Tensor."""


def ones(dtype=torch.float32, kind=torch.Tensor):
    return torch.ones(5, dtype=dtype).as_subclass(kind).requires_grad_()


@pytest.mark.parametrize(
    ("make_param", "options"),
    [
        (ones, {}),
        (ones, {"foreach": False}),
        (ones, {"foreach": True}),
        (ones, {"fused": False}),
        (ones, {"fused": True}),
        (ones, {"capturable": True}),
        (ones, {"differentiable": True}),
        (lambda: ones(torch.float64), {}),
        (lambda: ones(torch.float16), {}),
        (lambda: ones(torch.bfloat16), {}),
        (lambda: ones(torch.complex64), {}),
        (lambda: ones(kind=Subclass), {"fused": False}),
        (lambda: ones(kind=Subclass), {}),
        (lambda: torch.ones(5, 6).t().requires_grad_(), {}),
        (lambda: torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_(), {}),
    ],
)
def test_repr_names_what_takes_the_step(make_param, options, monkeypatch):
    took = []

    def watched(name, begin):
        def begin_and_tell(rows, options):
            took.append(name)
            return begin(rows, options)

        return begin_and_tell

    monkeypatch.setattr(genie_step, "begin_forloop", watched("for-loop", genie_step.begin_forloop))
    monkeypatch.setattr(genie_step, "begin_foreach", watched("foreach", genie_step.begin_foreach))
    monkeypatch.setattr(fused_cpu, "begin", watched("fused", fused_cpu.begin))
    param = make_param()
    if options.get("fused"):
        FUSED.options()
    param = param.clone() if options.get("differentiable") else param
    optimizer = GENIE([param], **options)
    param.grad = torch.ones_like(param).detach()
    optimizer.step()
    (line,) = (line for line in repr(optimizer).splitlines() if "implementation of group 0" in line)
    named = line.partition(": ")[2]
    assert named.split()[0].rstrip(":") == took[0]
    assert len(took) == 1
    # Where the default is not the fastest, the reason is given.
    if not options and took != ["fused"]:
        assert len(named) > len(took[0]) + 10


def test_repr_tells_groups_apart():
    groups = [{"params": [ones(torch.float64)], "foreach": False}, {"params": [ones(torch.float64)], "foreach": True}]
    lines = [line.strip() for line in repr(GENIE(groups)).splitlines() if "implementation" in line]
    assert lines == ["implementation of group 0: for-loop", "implementation of group 1: foreach"]


# -------------------------------------------------------------------------- state before the first step, and loaded


@FORMS
@pytest.mark.parametrize("moment_dtype", [None, torch.bfloat16])
def test_init_state_is_what_the_first_step_would_create(form, moment_dtype):
    options = {"form": form, "moment_dtype": moment_dtype, "seed": 0}

    def make():
        layers = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Linear(3, 3)).to(memory_format=torch.channels_last)
        layers[1].bias.requires_grad_(False)
        return layers, GENIE(layers.parameters(), **options)

    torch.manual_seed(0)
    layers, optimizer = make()
    torch.manual_seed(0)
    other_layers, other = make()
    optimizer.init_state()
    optimizer.init_state()
    assert optimizer.statistics() == [None]
    assert [param in optimizer.state for param in layers.parameters()] == [True, True, True, False]
    created = {param: dict(optimizer.state[param]) for param in layers.parameters() if param.requires_grad}
    for state in created.values():
        assert not any(tensor.any() for tensor in state.values())
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for pair in zip(layers.parameters(), other_layers.parameters(), strict=True):
            gradient = torch.randn(pair[0].shape, generator=generator)
            for param in pair:
                param.grad = gradient.clone() if param.requires_grad else None
        optimizer.step()
        other.step()
    assert_same_bits(layers.parameters(), other_layers.parameters())
    for param, twin in zip(layers.parameters(), other_layers.parameters(), strict=True):
        if param.requires_grad:
            mine, theirs = optimizer.state[param], other.state[twin]
            assert all(mine[name] is tensor for name, tensor in created[param].items())
            assert {name: (t.shape, t.dtype, t.stride()) for name, t in mine.items()} == {
                name: (t.shape, t.dtype, t.stride()) for name, t in theirs.items()
            }


@FORMS
def test_distributed_state_dict_of_a_fresh_optimizer(form):
    """torch takes a step to see the state, unless there is one: neither may move the weights."""
    for prepared in (False, True):
        model = nn.Linear(5, 3)
        before = bits(model.parameters())
        optimizer = GENIE(model.parameters(), form=form)
        lr = optimizer.param_groups[0]["lr"]
        if prepared:
            optimizer.init_state()
        names = {"step", "exp_avg", "exp_avg_sq"}
        state = get_optimizer_state_dict(model, optimizer)["state"]
        assert {name: set(entries) for name, entries in state.items()} == {"weight": names, "bias": names}
        assert_same_bits(model.parameters(), before)
        assert optimizer.param_groups[0]["lr"] == lr
        assert not any(entries[name].any() for entries in state.values() for name in names - {"step"})
        if prepared:
            assert not any(entries["step"] for entries in state.values())


@FORMS
@pytest.mark.parametrize("moment_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_distributed_state_dict_is_set_on_a_fresh_optimizer(form, moment_dtype, dtype):
    torch.manual_seed(0)
    model = nn.Linear(5, 3, dtype=dtype)
    optimizer = GENIE(model.parameters(), form=form, moment_dtype=moment_dtype)

    def train(model, optimizer, seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(3):
            step_with(optimizer, *(torch.randn(p.shape, generator=generator).to(dtype) for p in model.parameters()))

    train(model, optimizer, 0)
    other = copy.deepcopy(model)
    fresh = GENIE(other.parameters(), form=form, moment_dtype=moment_dtype)
    buffer = io.BytesIO()
    torch.save(get_optimizer_state_dict(model, optimizer), buffer)
    buffer.seek(0)
    set_optimizer_state_dict(other, fresh, torch.load(buffer, weights_only=True))
    assert_same_bits(model.parameters(), other.parameters())
    for param, twin in zip(model.parameters(), other.parameters(), strict=True):
        mine, theirs = optimizer.state[param], fresh.state[twin]
        assert_same_bits([mine[name] for name in sorted(mine)], [theirs[name] for name in sorted(theirs)])
    train(model, optimizer, 1)
    train(other, fresh, 1)
    assert_same_bits(model.parameters(), other.parameters())


@FORMS
@IMPLEMENTATIONS
def test_state_follows_the_memory_format(form, implementation):
    """And steps do not depend on it."""
    dtype, generator = implementation.dtype, torch.Generator().manual_seed(0)
    values = torch.randn(2, 3, 4, 5, generator=generator, dtype=dtype)
    params = [values.clone(memory_format=each) for each in (torch.channels_last, torch.contiguous_format)]
    options = {"form": form, "seed": 0, **implementation.options(params[0])}
    optimizers = [GENIE([param.requires_grad_()], **options) for param in params]
    for _ in range(4):
        gradient = torch.randn(2, 3, 4, 5, generator=generator, dtype=dtype)
        for param, optimizer in zip(params, optimizers, strict=True):
            step_with(optimizer, gradient)
            assert optimizer.state[param]["exp_avg"].stride() == param.stride()
    assert params[0].is_contiguous(memory_format=torch.channels_last)
    # Sums over the tensor are taken in another order.
    torch.testing.assert_close(*params, rtol=0, atol=64 * torch.finfo(dtype).eps)


@FORMS
@IMPLEMENTATIONS
def test_a_form_may_be_chosen_between_steps(form, implementation):
    """As all options, it is read at every step."""
    twin = Twin((SHAPES, {}), form=form, lr=0.05, implementation=implementation)
    other = {"paper": "released", "released": "paper"}[form]
    for index in range(4):
        if index == 2:
            twin.optimizer.param_groups[0]["form"] = other
            twin.settings[0]["form"] = other  # one dict that all parameters of the group share
        twin.step()
    twin.check()


@FORMS
@IMPLEMENTATIONS
@pytest.mark.parametrize("moment_dtype", [None, torch.bfloat16])
def test_without_memory_there_is_no_variance(form, implementation, moment_dtype):
    """With b = 0 the released estimate is 0 / 0 on every step, as on the first: rounding must not decide."""
    options = {"form": form, "beta": 0.0, "dropout": 0.0, "lr": 1.0, "moment_dtype": moment_dtype}
    options |= implementation.options(torch.zeros(1))
    param, generator = torch.zeros(300, requires_grad=True), torch.Generator().manual_seed(0)
    optimizer = GENIE([param], **options)
    for _ in range(3):
        before, gradient = param.detach().clone(), 1 + torch.rand(300, generator=generator)
        step_with(optimizer, gradient)
        # bfloat16's roundings of both moments show in m^2 / v.
        rtol = 1e-5 if moment_dtype is None else 0.04
        torch.testing.assert_close(before - param.detach(), gradient, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("refused", ["sparse", "fused"])
def test_what_is_refused_changes_no_group(refused):
    first, second = torch.ones(3), torch.ones(3, dtype=torch.float64 if refused == "fused" else torch.float32)
    options = {"fused": True} if refused == "fused" else {}
    optimizer = GENIE([{"params": [first]}, {"params": [second], **options}])
    first.grad = torch.ones(3)
    second.grad = torch.ones_like(second).to_sparse() if refused == "sparse" else torch.ones_like(second)
    with pytest.raises(RuntimeError, match="sparse" if refused == "sparse" else "float64"):
        optimizer.step()
    assert not optimizer.state
    assert torch.equal(first, torch.ones(3))


@pytest.mark.parametrize("foreach", [False, True])
def test_a_dropped_element_stays_though_its_gradient_is_not_finite(foreach):
    p = torch.ones(1000)
    p.grad = torch.full((1000,), math.nan)
    GENIE([p], dropout=0.5, foreach=foreach, seed=0).step()
    assert 400 < int(p.isnan().sum()) < 600
    assert ((p == 1) | p.isnan()).all()


@pytest.mark.parametrize("name", ["lr", "beta", "dropout", "noise", "weight_decay"])
def test_options_that_are_no_numbers_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"Invalid {name} value: 'fast'; it must be a number"):
        GENIE([torch.ones(3)], **{name: "fast"})
    assert GENIE([torch.ones(3)], **{name: np.float32(0.5)}).param_groups[0][name] == 0.5


def test_a_dropout_set_on_a_group_is_checked_at_the_step():
    p = torch.ones(3)
    p.grad = torch.ones(3)
    optimizer = GENIE([p])
    optimizer.param_groups[0]["dropout"] = 1.0
    with pytest.raises(ValueError, match=r"Invalid dropout value: 1\.0"):
        optimizer.step()
