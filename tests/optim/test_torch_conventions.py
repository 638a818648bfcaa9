"""The checks that torch puts its own optimizers through, for ours; names as in torch's TestOptimRenewed."""

import copy
import io
import re

import pytest
import torch
from torch.nn import Parameter
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from shiftproof.optim import GENIE, GENIEAdamW

from .test_genie import FUSED

# Private modules of torch, which a later version may move.
_common = pytest.importorskip("torch.testing._internal.common_optimizers")
_device = pytest.importorskip("torch.testing._internal.common_device_type")
_utils = pytest.importorskip("torch.testing._internal.common_utils")

OPTIONS = {
    "default": {},
    "non-default lr": {"lr": 0.05},
    "mean gradient alone": {"dropout": 0.0, "noise": 0.0, "precondition": False},
    "nonzero weight_decay": {"weight_decay": 0.1},
    "maximize": {"weight_decay": 0.1, "maximize": True},
}
# For what differs little from what is tested with all options.
BRIEFLY = ("default", "maximize")
INVALID = [
    {"lr": -0.1},
    {"lr": float("nan")},
    {"lr": torch.tensor(-0.1)},
    {"beta": -0.1},
    {"beta": 1.0},
    {"beta": float("nan")},
    {"dropout": -0.1},
    {"dropout": 1.0},
    {"noise": -1.0},
    {"weight_decay": -1.0},
    {"form": "published"},
    {"seed": -1},
    {"seed": 2**64},
    {"seed": 1.5},
]


ADAMW_OPTIONS = {
    "default": {},
    "non-default lr": {"lr": 0.05},
    "masked": {"dropout": 0.4, "betas": (0.8, 0.9), "eps": 1e-6},
    "nonzero weight_decay": {"weight_decay": 0.1},
    "maximize": {"weight_decay": 0.1, "maximize": True},
}
ADAMW_INVALID = [  # in AdamW's words, where it has the option
    ({"lr": -0.1}, "Invalid learning rate: -0.1"),
    ({"lr": float("nan")}, "Invalid learning rate: nan"),
    ({"lr": torch.tensor([0.1, 0.1])}, "Tensor lr must be 1-element"),
    ({"lr": torch.tensor(0.1), "foreach": True}, "lr as a Tensor is not supported for capturable=False and foreach"),
    ({"betas": (-0.1, 0.9)}, "Invalid beta parameter at index 0: -0.1"),
    ({"betas": (0.9, 1.0)}, "Invalid beta parameter at index 1: 1.0"),
    ({"betas": 0.9}, "Invalid betas value: 0.9"),
    ({"eps": -1e-8}, "Invalid epsilon value: -1e-08"),
    ({"weight_decay": -1.0}, "Invalid weight_decay value: -1.0"),
    ({"dropout": -0.1}, "Invalid dropout value: -0.1"),
    ({"dropout": 1.0}, "Invalid dropout value: 1.0"),
    ({"seed": -1}, "Invalid seed value: -1"),
    ({"moment_dtype": "float16"}, "Invalid moment_dtype value: float16"),
]


def adamw_inputs(device, dtype=None):
    return [
        _common.OptimizerInput(params=None, kwargs={"seed": 0, **options}, desc=desc)
        for desc, options in ADAMW_OPTIONS.items()
    ]


def adamw_error_inputs(device, dtype):
    return _common.get_error_inputs_for_all_optims(device, dtype) + [
        _common.ErrorOptimizerInput(
            _common.OptimizerInput(params=None, kwargs=kwargs, desc=message),
            error_type=ValueError,
            error_regex=re.escape(message),
        )
        for kwargs, message in ADAMW_INVALID
    ]


def optimizer_inputs(device, dtype=None):
    return [
        _common.OptimizerInput(params=None, kwargs={"form": form, "seed": 0, **options}, desc=f"{form}, {desc}")
        for form in ("paper", "released")
        for desc, options in OPTIONS.items()
    ]


def error_inputs(device, dtype):
    return _common.get_error_inputs_for_all_optims(device, dtype) + [
        _common.ErrorOptimizerInput(
            _common.OptimizerInput(params=None, kwargs=kwargs, desc=f"invalid {name}"),
            error_type=ValueError,
            error_regex=name,
        )
        for kwargs in INVALID
        for name in kwargs
    ]


DATABASE = [
    _common.OptimizerInfo(
        cls,
        optim_inputs_func=inputs,
        optim_error_inputs_func=errors,
        supported_impls=("foreach", "differentiable", "fused"),
        supports_fused_on=("cpu",),
        has_capturable_arg=True,
        not_og_supported_flags=(
            "foreach",
            "maximize",
            "fused",
            "capturable",
            "differentiable",
            "moment_dtype",
        ),
    )
    for cls, inputs, errors in (
        (GENIE, optimizer_inputs, error_inputs),
        (GENIEAdamW, adamw_inputs, adamw_error_inputs),
    )
]


def all_kwargs(optim_info, device, dtype):
    """Inputs by implementations, foreach on a CPU and capturable included, which torch's own helper leaves out.

    Without differentiable, which like torch's own is for parameters that are no leaves: test_genie_options.py.
    """
    fused = FUSED.obstacle(torch.zeros(1, dtype=dtype)) is None
    return [
        {**optim_input.kwargs, **flags}
        for optim_input in optim_info.optim_inputs_func(device=device)
        for flags in ({"foreach": False}, {"foreach": True}, {"fused": True}, {"capturable": True})
        if "foreach" in flags or optim_input.desc.endswith(BRIEFLY)
        if fused or "fused" not in flags
    ]


class Regression:
    """A linear least-squares problem whose gradients are small enough to be followed."""

    def __init__(self, device, dtype=torch.float32, contiguous=True):
        generator = torch.Generator().manual_seed(0)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

        weight, bias = (draw(10, 5), draw(10)) if contiguous else (draw(10, 5, 2)[..., 0], draw(10, 2)[..., 0])
        self.weight, self.bias, self.input = Parameter(weight), Parameter(bias), draw(5)
        self.params = [self.weight, self.bias]
        self.named = [("weight", self.weight), ("bias", self.bias)]

    def loss(self):
        return (self.weight.mv(self.input) + self.bias).square().mean()

    def train(self, optimizer, steps):
        """Take steps; return the losses before each and after the last."""

        def closure():
            optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            return loss

        return [optimizer.step(closure).item() for _ in range(steps)] + [self.loss().item()]


def assert_goes_right_direction(losses, kwargs):
    if kwargs.get("maximize"):
        assert losses[-1] > losses[0]
    else:
        assert losses[-1] < losses[0]


def random_gradients(params, generator):
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator, dtype=param.dtype).to(param.device)


def assert_equal_bits(left, right):
    left, right = list(left), list(right)
    assert len(left) == len(right) > 0
    for one, other in zip(left, right, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one, other)


def state_tensors(optimizer):
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return [optimizer.state[param][key] for param in params for key in sorted(optimizer.state[param])]


class Subclass(torch.Tensor):
    """A tensor that is not quite a Tensor."""


class RecordForeach(TorchDispatchMode):
    """Counts updates of parameters by foreach kernels; that of step counts is one wherever they can be."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += func.name().startswith("aten::_foreach_sub_")
        return func(*args, **(kwargs or {}))


class TestOptimRenewed(_utils.TestCase):
    """Instantiated for each device type below."""

    # --------------------------------------------------------------------------------- construction

    @_common.optims(DATABASE)
    def test_errors(self, device, dtype, optim_info):
        for error_input in optim_info.optim_error_inputs_func(device=device, dtype=dtype):
            optim_input = error_input.optimizer_error_input
            params = [Parameter(torch.ones(1, device=device, dtype=dtype))]
            params = params if optim_input.params is None else optim_input.params
            expect = pytest.warns if issubclass(error_input.error_type, Warning) else pytest.raises
            with expect(error_input.error_type, match=error_input.error_regex):
                optim_info.optim_cls(params, **optim_input.kwargs)

    @_common.optims(DATABASE)
    def test_can_be_printed(self, device, dtype, optim_info):
        for kwargs in [*all_kwargs(optim_info, device, dtype), {"differentiable": True}]:
            text = repr(optim_info.optim_cls(Regression(device).params, **kwargs))
            assert text.startswith(f"{optim_info.optim_cls.__name__} (")
            for key, value in kwargs.items():
                assert f"{key}: {value}" in text

    @_common.optims(DATABASE)
    def test_defaults_changed_to_foreach(self, device, dtype, optim_info):
        """Where nothing is fused, but not for subclasses of Tensor, which need not know foreach operators."""
        plain, subclass = torch.ones(3, device=device), torch.ones(3, device=device).as_subclass(Subclass)
        for params, foreach, expected in [
            ([plain], None, True),
            ([subclass], None, False),
            ([plain], False, False),
            ([plain], True, True),
        ]:
            optimizer = optim_info.optim_cls(params, foreach=foreach, fused=False)
            for param in params:
                param.grad = torch.ones(3, device=device)
            with RecordForeach() as record:
                optimizer.step()
            assert (record.calls > 0) == expected

    # ------------------------------------------------------------------------------------ direction

    @_utils.parametrize("contiguous", [True, False])
    @_utils.parametrize("with_lrsched", [True, False])
    @_common.optims(DATABASE)
    def test_forloop_goes_right_direction(self, device, dtype, optim_info, contiguous, with_lrsched):
        for optim_input in optim_info.optim_inputs_func(device=device):
            for constructors in optim_info.scheduler_inputs if with_lrsched else [()]:
                problem = Regression(device, dtype, contiguous)
                optimizer = optim_info.optim_cls(problem.params, **optim_input.kwargs, foreach=False)
                schedulers = [constructor(optimizer) for constructor in constructors]
                losses = []
                for _ in range(20):
                    losses += problem.train(optimizer, 1)
                    for scheduler in schedulers:
                        plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
                        scheduler.step(losses[-1]) if plateau else scheduler.step()
                assert_goes_right_direction(losses, optim_input.kwargs)

    @_common.optims(DATABASE)
    def test_param_group_with_lrscheduler_goes_right_direction(self, device, dtype, optim_info):
        for kwargs in all_kwargs(optim_info, device, dtype):
            problem = Regression(device, dtype)
            groups = [{"params": [problem.weight]}, {"params": [problem.bias], "lr": 0.01}]
            optimizer = optim_info.optim_cls(groups, **kwargs)
            outer = optimizer.param_groups[0]["lr"]
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.5)
            losses = []
            for _ in range(20):
                losses += problem.train(optimizer, 1)
                scheduler.step()
            assert_goes_right_direction(losses, kwargs)
            assert [group["lr"] for group in optimizer.param_groups] == [outer / 16, 0.01 / 16]

    # --------------------------------------------------------------------------------------- options

    @_utils.parametrize("num_dim", [0, 1, 2])
    @_common.optims(DATABASE)
    def test_tensor_lr(self, device, dtype, optim_info, num_dim):
        for kwargs in all_kwargs(optim_info, device, dtype):
            if optim_info.optim_cls is GENIEAdamW and kwargs.get("foreach"):
                continue  # refused, as by AdamW
            lr = torch.full((1,) * num_dim, 2.0**-5, device=device)
            generators = [torch.Generator().manual_seed(0) for _ in range(2)]
            params, reference = (
                [Parameter(torch.ones(shape, device=device, dtype=dtype)) for shape in [(), (7,), (3, 2)]]
                for _ in range(2)
            )
            with_tensor = optim_info.optim_cls(params, **{**kwargs, "lr": lr})
            with_float = optim_info.optim_cls(reference, **{**kwargs, "lr": 2.0**-5})
            optimizers = with_tensor, with_float
            # A factor that keeps the rate exact, in float32 as in a Python float.
            schedulers = [torch.optim.lr_scheduler.StepLR(each, step_size=3, gamma=0.5) for each in optimizers]
            for _ in range(7):
                random_gradients(params, generators[0])
                random_gradients(reference, generators[1])
                for each in (*optimizers, *schedulers):
                    each.step()
            assert_equal_bits(params, reference)
            current = with_tensor.param_groups[0]["lr"]
            assert isinstance(current, torch.Tensor)
            assert current.item() == 2.0**-7

    @_common.optims(DATABASE)
    def test_param_groups_weight_decay(self, device, dtype, optim_info):
        for kwargs in all_kwargs(optim_info, device, dtype):
            ends = {}
            for name, outer, inner in (("none", 0.0, 0.0), ("both", 0.3, 0.3), ("weight only", 0.0, 0.3)):
                problem, generator = Regression(device, dtype), torch.Generator().manual_seed(1)
                groups = [{"params": [problem.weight], "weight_decay": inner}, {"params": [problem.bias]}]
                optimizer = optim_info.optim_cls(groups, **{**kwargs, "weight_decay": outer})
                for _ in range(5):
                    random_gradients(problem.params, generator)
                    optimizer.step()
                ends[name] = problem
            assert_equal_bits([ends["weight only"].weight], [ends["both"].weight])
            assert_equal_bits([ends["weight only"].bias], [ends["none"].bias])
            assert not torch.equal(ends["none"].weight, ends["both"].weight)
            assert not torch.equal(ends["none"].bias, ends["both"].bias)

    @_common.optims(DATABASE)
    def test_param_groups_lr(self, device, dtype, optim_info):
        for kwargs in all_kwargs(optim_info, device, dtype):
            problem = Regression(device, dtype)
            still = Parameter(torch.ones(7, device=device, dtype=dtype))
            still.grad = torch.ones_like(still)
            groups = [{"params": problem.params, "lr": 0.02}, {"params": [still]}]
            optimizer = optim_info.optim_cls(groups, **{**kwargs, "lr": 1e-28})
            losses = []
            for _ in range(20):
                problem.weight.grad = problem.bias.grad = None
                losses.append(problem.loss())
                losses[-1].backward()
                optimizer.step()
            assert_goes_right_direction(losses, kwargs)
            assert (still == 1).all()

    # ------------------------------------------------------------------------------ kinds of parameters

    @_common.optims(DATABASE, dtypes=[torch.complex64, torch.complex128])
    def test_complex(self, device, dtype, optim_info):
        for kwargs in all_kwargs(optim_info, device, dtype):
            generator = torch.Generator().manual_seed(0)
            values = [torch.randn(shape, generator=generator, dtype=dtype) for shape in [(7,), (3, 4), ()]]
            numbers = [Parameter(value.to(device, copy=True)) for value in values]
            pairs = [Parameter(torch.view_as_real(value).to(device, copy=True)) for value in values]
            optimizers = [optim_info.optim_cls(params, **kwargs) for params in (numbers, pairs)]
            for _ in range(4):
                random_gradients(numbers, generator)
                for number, pair in zip(numbers, pairs, strict=True):
                    number.grad *= 2  # a standard deviation at which noise acts
                    pair.grad = torch.view_as_real(number.grad).clone()
                for optimizer in optimizers:
                    optimizer.step()
            assert all(number.dtype == dtype for number in numbers)
            assert_equal_bits([torch.view_as_real(number) for number in numbers], pairs)
            assert not any(
                torch.equal(pair, torch.view_as_real(value)) for pair, value in zip(pairs, values, strict=True)
            )

    def run_both(
        self, optim_info, kwargs, make_params, steps=3, before_step=lambda index, params: None, other="foreach"
    ):
        """Optimizer and parameters of the for-loop and of another implementation after the same steps."""
        runs = []
        for flags in ({"foreach": False, "fused": False}, {other: True}):
            params, generator = make_params(), torch.Generator().manual_seed(1)
            optimizer = optim_info.optim_cls(params, **kwargs, **flags)
            for index in range(steps):
                random_gradients(params, generator)
                before_step(index, params)
                optimizer.step()
            runs.append((optimizer, params))
        return runs

    def assert_foreach_matches_forloop(self, runs):
        (forloop, forloop_params), (foreach, foreach_params) = runs
        assert_equal_bits(forloop_params, foreach_params)
        assert_equal_bits(state_tensors(forloop), state_tensors(foreach))

    def make_layers(self, device, dtype):
        torch.manual_seed(1)
        layers = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Sigmoid(), torch.nn.Linear(3, 1))
        params = list(layers.to(device, dtype).parameters())
        return [*params, Parameter(torch.tensor(1.0, device=device, dtype=dtype))]

    def freeze_and_thaw(self, index, params):
        frozen = 3 <= index < 6
        for param in params[2:4]:
            param.requires_grad_(not frozen)
            if frozen:
                param.grad = None
        if index == 2:
            for param in params:
                param.grad = None

    def step_counts(self, run):
        optimizer, params = run
        return [optimizer.state[param]["step"].item() for param in params]

    @_common.optims(DATABASE, dtypes=[torch.float64])
    def test_foreach_matches_forloop(self, device, dtype, optim_info):
        def make_params():
            return self.make_layers(device, dtype)

        for optim_input in optim_info.optim_inputs_func(device=device):
            runs = self.run_both(optim_info, optim_input.kwargs, make_params, 7, self.freeze_and_thaw)
            self.assert_foreach_matches_forloop(runs)
            assert self.step_counts(runs[1]) == [6, 6, 3, 3, 6]

    @_common.optims(DATABASE, dtypes=[torch.float32, torch.bfloat16])
    def test_fused_matches_forloop(self, device, dtype, optim_info):
        FUSED.options(torch.zeros(1, dtype=dtype))

        def make_params():
            return self.make_layers(device, dtype)

        for optim_input in optim_info.optim_inputs_func(device=device):
            runs = self.run_both(optim_info, optim_input.kwargs, make_params, 7, self.freeze_and_thaw, "fused")
            (forloop, forloop_params), (fused, fused_params) = runs
            for one, other in zip(forloop_params, fused_params, strict=True):
                # To some roundings of float32 moments; a bfloat16 weight may fall on either side of one.
                for name in forloop.state[one]:
                    torch.testing.assert_close(fused.state[other][name], forloop.state[one][name], rtol=1e-5, atol=1e-6)
                atol = 1e-5 if dtype == torch.float32 else 0.02
                torch.testing.assert_close(other, one, rtol=0, atol=atol)
            assert self.step_counts(runs[1]) == [6, 6, 3, 3, 6]

    @_common.optims(DATABASE)
    def test_fused_error_on_params_on_meta(self, device, dtype, optim_info):
        param = Parameter(torch.ones(3, device="meta", dtype=dtype))
        param.grad = torch.ones_like(param)
        with pytest.raises(RuntimeError, match=r"fused=True, but .*meta"):
            optim_info.optim_cls([param], fused=True).step()

    @_common.optims(DATABASE)
    def test_mixed_device_dtype(self, device, dtype, optim_info):
        """Of one device, and every dtype that a model may mix."""
        dtypes = [torch.float16, torch.float32, torch.bfloat16, torch.complex64, torch.float64, torch.float32]

        def make_params():
            return [Parameter(torch.ones(11, device=device, dtype=each)) for each in dtypes]

        for optim_input in optim_info.optim_inputs_func(device=device):
            kwargs = {"lr": 0.05, **optim_input.kwargs}  # enough to change a number in bfloat16
            runs = self.run_both(optim_info, kwargs, make_params)
            self.assert_foreach_matches_forloop(runs)
            for _, params in runs:
                assert not any((param == 1).all() for param in params)
                assert [param.dtype for param in params] == dtypes

    @_common.optims(DATABASE)
    def test_set_default_dtype_works_with_foreach(self, device, dtype, optim_info):
        def make_params():
            return [Parameter(torch.ones(11, device=device, dtype=each)) for each in (torch.float32, torch.float64)]

        old = torch.get_default_dtype()
        for optim_input in optim_info.optim_inputs_func(device=device):
            runs = []
            for default in (torch.float32, torch.float64):
                torch.set_default_dtype(default)
                try:
                    runs.append(self.run_both(optim_info, optim_input.kwargs, make_params))
                finally:
                    torch.set_default_dtype(old)
                self.assert_foreach_matches_forloop(runs[-1])
            self.assert_foreach_matches_forloop([runs[0][1], runs[1][1]])
            steps = [state["step"] for state in runs[1][1][0].state.values()]
            assert all(step.dtype == torch.float32 for step in steps)

    # -------------------------------------------------------------------------------------- no-ops

    @_common.optims(DATABASE)
    def test_step_is_noop_when_params_have_no_grad(self, device, dtype, optim_info):
        for kwargs in all_kwargs(optim_info, device, dtype):
            problem, untouched = Regression(device, dtype), Regression(device, dtype)
            optimizer = optim_info.optim_cls(problem.params, **kwargs)
            optimizer.step()
            assert_equal_bits(problem.params, untouched.params)
            assert not optimizer.state_dict()["state"]

    @_common.optims(DATABASE)
    def test_step_is_noop_for_zero_grads(self, device, dtype, optim_info):
        for kwargs in all_kwargs(optim_info, device, dtype):
            problem, untouched = Regression(device, dtype), Regression(device, dtype)
            # Weight decay is part of the gradient.
            optimizer = optim_info.optim_cls(problem.params, **{**kwargs, "weight_decay": 0.0})
            for _ in range(2):
                for param in problem.params:
                    param.grad = torch.zeros_like(param)
                optimizer.step()
            assert_equal_bits(problem.params, untouched.params)
            assert all(optimizer.state[param]["step"] == 2 for param in problem.params)

    # -------------------------------------------------------------------------------- state and copies

    def resume(self, optim_info, kwargs, device, dtype, transfer, names=(False, False), new_kwargs=None):
        """Train for 4 steps, and for 2 before and 2 after ``transfer(state_dict)`` to a new optimizer."""
        through = Regression(device, dtype)
        through.train(optim_info.optim_cls(through.params, **kwargs), 4)

        first = Regression(device, dtype)
        optimizer = optim_info.optim_cls(first.named if names[0] else first.params, **kwargs)
        first.train(optimizer, 2)
        second = copy.deepcopy(first)
        new_kwargs = kwargs if new_kwargs is None else new_kwargs
        new = optim_info.optim_cls(second.named if names[1] else second.params, **new_kwargs)
        loaded = transfer(optimizer.state_dict())
        kept = copy.deepcopy(loaded)
        new.load_state_dict(loaded)
        assert str(loaded) == str(kept)
        second.train(new, 2)
        assert_equal_bits(second.params, through.params)
        return new

    @_utils.parametrize("is_named_optim", [False, True])
    @_common.optims(DATABASE)
    def test_state_dict_deterministic(self, device, dtype, optim_info, is_named_optim):
        for kwargs in all_kwargs(optim_info, device, dtype):
            new = self.resume(optim_info, kwargs, device, dtype, copy.deepcopy, names=(is_named_optim,) * 2)
            assert ("param_names" in new.param_groups[0]) == is_named_optim

    @_utils.parametrize("from_named", [False, True])
    @_common.optims(DATABASE)
    def test_can_load_from_to_named_state_dict(self, device, dtype, optim_info, from_named):
        for kwargs in all_kwargs(optim_info, device, dtype):
            self.resume(optim_info, kwargs, device, dtype, copy.deepcopy, names=(from_named, not from_named))

    @_common.optims(DATABASE)
    def test_can_load_older_state_dict(self, device, dtype, optim_info):
        """Of a version that lacked some of the flags."""

        def forget(state_dict):
            state_dict = copy.deepcopy(state_dict)
            for group in state_dict["param_groups"]:
                for flag in optim_info.not_og_supported_flags:
                    del group[flag]
            return state_dict

        for optim_input in optim_info.optim_inputs_func(device=device):
            kwargs = {key: value for key, value in optim_input.kwargs.items() if key != "maximize"}
            self.resume(optim_info, kwargs, device, dtype, forget)

    @_common.optims(DATABASE)
    def test_save_load_equality_with_weights_only(self, device, dtype, optim_info):
        def through_a_file(state_dict):
            buffer = io.BytesIO()
            torch.save(state_dict, buffer)
            buffer.seek(0)
            return torch.load(buffer, weights_only=True)

        for kwargs in all_kwargs(optim_info, device, dtype):
            self.resume(optim_info, kwargs, device, dtype, through_a_file, new_kwargs={})

    @_common.optims(DATABASE)
    def test_load_nontensor_step(self, device, dtype, optim_info):
        def plain_step(state_dict):
            state_dict = copy.deepcopy(state_dict)
            for state in state_dict["state"].values():
                state["step"] = state["step"].item()
            return state_dict

        for kwargs in all_kwargs(optim_info, device, dtype):
            new = self.resume(optim_info, kwargs, device, dtype, plain_step)
            steps = [state["step"] for state in new.state.values()]
            assert [(step.dtype, step.shape, step.item()) for step in steps] == [(torch.float32, (), 4)] * 2

    @_common.optims(DATABASE)
    def test_deepcopy_copies_all_public_attrs(self, device, dtype, optim_info):
        def public(optimizer):
            names = [name for name in vars(optimizer) if not name.startswith("_")]
            return {name: getattr(optimizer, name) for name in names}

        for kwargs in all_kwargs(optim_info, device, dtype):
            problem = Regression(device, dtype)
            optimizer = optim_info.optim_cls(problem.params, **kwargs)
            problem.train(optimizer, 2)
            copied = copy.deepcopy(optimizer)
            assert public(copied).keys() == public(optimizer).keys() >= {"defaults", "param_groups", "state"}
            assert copied.defaults.items() >= optimizer.defaults.items()
            assert_equal_bits(copied.param_groups[0]["params"], problem.params)
            assert_equal_bits(state_tensors(copied), state_tensors(optimizer))

    @_common.optims(DATABASE)
    def test_non_empty_state(self, device, dtype, optim_info):
        for kwargs in all_kwargs(optim_info, device, dtype):
            problem = Regression(device, dtype)
            optimizer = optim_info.optim_cls(problem.params, **kwargs)
            problem.train(optimizer, 1)
            for param in problem.params:
                assert set(optimizer.state[param]) == {"exp_avg", "exp_avg_sq", "step"}
                assert optimizer.state[param]["exp_avg"].any()

    # ---------------------------------------------------------------------------------------- hooks

    def trained(self, optim_info, device, **kwargs):
        problem = Regression(device)
        optimizer = optim_info.optim_cls(problem.params, **kwargs)
        problem.train(optimizer, 1)
        return optimizer

    @_common.optims(DATABASE)
    def test_state_dict_pre_hook(self, device, dtype, optim_info):
        optimizer = self.trained(optim_info, device)
        handle = optimizer.register_state_dict_pre_hook(lambda each: each.param_groups[0].update(lr=0.5))
        assert optimizer.state_dict()["param_groups"][0]["lr"] == 0.5
        handle.remove()
        optimizer.param_groups[0]["lr"] = 0.25
        assert optimizer.state_dict()["param_groups"][0]["lr"] == 0.25

    @_common.optims(DATABASE)
    def test_state_dict_post_hook(self, device, dtype, optim_info):
        optimizer = self.trained(optim_info, device)
        handle = optimizer.register_state_dict_post_hook(lambda each, state_dict: {**state_dict, "extra": 1})
        assert optimizer.state_dict()["extra"] == 1
        handle.remove()
        assert "extra" not in optimizer.state_dict()

    @_common.optims(DATABASE)
    def test_state_dict_pre_post_hook(self, device, dtype, optim_info):
        optimizer, calls = self.trained(optim_info, device), []
        optimizer.register_state_dict_pre_hook(lambda each: calls.append("pre"))
        optimizer.register_state_dict_post_hook(lambda each, state_dict: calls.append("post"))
        assert set(optimizer.state_dict()) == {"state", "param_groups"}
        assert calls == ["pre", "post"]

    @_common.optims(DATABASE)
    def test_load_state_dict_pre_hook_and_prepend(self, device, dtype, optim_info):
        state_dict = self.trained(optim_info, device, lr=0.125).state_dict()
        optimizer, calls = self.trained(optim_info, device), []

        def halve(each, loaded):
            calls.append("halve")
            loaded["param_groups"][0]["lr"] /= 2

        optimizer.register_load_state_dict_pre_hook(halve)
        optimizer.register_load_state_dict_pre_hook(lambda each, loaded: calls.append("first"), prepend=True)
        optimizer.load_state_dict(copy.deepcopy(state_dict))
        assert calls == ["first", "halve"]
        assert optimizer.param_groups[0]["lr"] == 0.0625

    @_common.optims(DATABASE, dtypes=[torch.float32, torch.bfloat16])
    def test_load_state_dict_pre_hook_that_returns_another(self, device, dtype, optim_info):
        """What the hook returns is loaded, float32 moments of half-precision parameters included."""
        params = [Parameter(torch.ones(5, device=device, dtype=dtype))]
        optimizer = optim_info.optim_cls(params)
        random_gradients(params, torch.Generator().manual_seed(0))
        optimizer.step()

        def without_momentum(each, loaded):
            loaded = copy.deepcopy(loaded)
            loaded["state"][0]["exp_avg"].zero_()
            return loaded

        state_dict = optimizer.state_dict()
        optimizer.register_load_state_dict_pre_hook(without_momentum)
        optimizer.load_state_dict(state_dict)
        assert not optimizer.state[params[0]]["exp_avg"].any()
        assert state_dict["state"][0]["exp_avg"].any()

    @_common.optims(DATABASE)
    def test_load_state_dict_post_hook(self, device, dtype, optim_info):
        state_dict = self.trained(optim_info, device, lr=0.125).state_dict()
        optimizer = self.trained(optim_info, device)
        optimizer.register_load_state_dict_post_hook(lambda each: each.param_groups[0].update(lr=0.5))
        optimizer.load_state_dict(state_dict)
        assert optimizer.param_groups[0]["lr"] == 0.5

    @_common.optims(DATABASE)
    def test_load_state_dict_pre_post_hook(self, device, dtype, optim_info):
        optimizer, seen = self.trained(optim_info, device), []
        state_dict = self.trained(optim_info, device, lr=0.125).state_dict()
        before = optimizer.param_groups[0]["lr"]
        optimizer.register_load_state_dict_pre_hook(lambda each, loaded: seen.append(each.param_groups[0]["lr"]))
        optimizer.register_load_state_dict_post_hook(lambda each: seen.append(each.param_groups[0]["lr"]))
        optimizer.load_state_dict(state_dict)
        assert seen == [before, 0.125]

    @_common.optims(DATABASE)
    def test_step_pre_hook(self, device, dtype, optim_info):
        problem, quiet = Regression(device), Regression(device)
        optimizer = optim_info.optim_cls(problem.params)

        def drop_gradients(each, args, kwargs):
            each.zero_grad()

        handle = optimizer.register_step_pre_hook(drop_gradients)
        problem.loss().backward()
        optimizer.step()
        assert_equal_bits(problem.params, quiet.params)
        handle.remove()
        problem.loss().backward()
        optimizer.step()
        assert not torch.equal(problem.weight, quiet.weight)

    @_common.optims(DATABASE)
    def test_step_post_hook(self, device, dtype, optim_info):
        problem, seen = Regression(device), []
        optimizer = optim_info.optim_cls(problem.params)

        def note_step(each, args, kwargs):
            seen.append(each.state[problem.weight]["step"].item())

        handle = optimizer.register_step_post_hook(note_step)
        problem.train(optimizer, 2)
        handle.remove()
        problem.train(optimizer, 1)
        assert seen == [1, 2]

    @_common.optims(DATABASE)
    def test_step_all_hooks(self, device, dtype, optim_info):
        problem, calls = Regression(device), []
        optimizer = optim_info.optim_cls(problem.params)

        def record(name):
            return lambda each, args, kwargs: calls.append(name)

        handles = [
            register_optimizer_step_pre_hook(record("global pre")),
            register_optimizer_step_post_hook(record("global post")),
            optimizer.register_step_pre_hook(record("pre")),
            optimizer.register_step_post_hook(record("post")),
        ]
        problem.train(optimizer, 1)
        for handle in handles:
            handle.remove()
        problem.train(optimizer, 1)
        assert calls == ["global pre", "pre", "post", "global post"]


_device.instantiate_device_type_tests(TestOptimRenewed, globals(), only_for=("cpu",))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("complex_2d", "its real and imaginary parts are two parameters: other positions, other draws"),
        ("forloop_goes_right_direction_multigpu", "needs two GPUs"),
        ("fused_does_not_step_if_foundinf", "on a CPU a scaler leaves the step out itself: test_genie_options.py"),
        ("fused_large_tensor", "2**32 elements do not fit the memory of a test machine"),
        ("fused_cpu_matches_cuda", "needs a GPU"),
        ("cpu_load_state_dict", "needs a GPU to load it on"),
        ("peak_memory_foreach", "needs a GPU's memory counters"),
        ("state_dict_with_cuda_params", "needs a GPU"),
        ("foreach_large_tensor", "2**32 elements do not fit the memory of a test machine"),
    ],
)
def test_does_not_apply(name, reason):
    pytest.skip(f"{name}: {reason}")
