"""The CPU kernel's operators, called with what no caller of ours gives them: they raise, and touch nothing."""

import pytest
import torch

from shiftproof.optim import GENIE
from shiftproof.optim.genie.build import kernel_error
from shiftproof.optim.genie.fused_cpu import instruction_set

pytestmark = pytest.mark.skipif(kernel_error() is not None, reason=f"no CPU kernel: {kernel_error()}")

SHAPE = (3, 4, 5, 6)
NUMEL = 360
SETTINGS = {
    "low_params": False,
    "low_moments": False,
    "form": 1,
    "lr": 0.1,
    "beta1": 0.9,
    "beta2": 0.9,
    "eps": 1e-8,
    "penalty": 0.0,
    "shrinkage": 0.0,
    "maximize": False,
    "noise": 1.0,
    "threshold": 26214,
    "precondition": True,
    "seed": 3,
}


def guarded(fill=0.5):
    """A tensor within a larger one, and the larger one."""
    whole = torch.full((NUMEL + 128,), fill)
    return whole[64:-64].view(SHAPE), whole


def arguments(second, **changes):
    tensors = {name: [guarded()[0]] for name in ("params", "grads", "exp_avgs", "exp_avg_sqs")}
    values = {
        **tensors,
        "numbers": torch.tensor([[NUMEL, 0, 0, 0, 0, 0, 2]]),
        "scalars": torch.tensor([[5.0, 5.0, 0.5, 2.0]], dtype=torch.float64),
        "values": torch.zeros(1 if second else (1, 2), dtype=torch.float64),
        "flags": torch.zeros(8, dtype=torch.int16),
        **SETTINGS,
        "instruction_set": instruction_set(),
    } | changes
    if second:
        del values["grads"]
    return list(values.values())


def call(second, *args):
    name = "genie_second_pass" if second else "genie_first_pass"
    return getattr(torch.ops.shiftproof, name)(*args)


both_passes = pytest.mark.parametrize("second", [False, True], ids=["first", "second"])


@both_passes
def test_valid_arguments_are_taken(second):
    call(second, *arguments(second))


def shrunk(bytes_left):
    tensor = torch.ones(SHAPE)
    tensor.untyped_storage().resize_(bytes_left)
    return tensor


BAD_TENSORS = {
    "shorter": (torch.ones(3, 4, 5, 5), "has not the parameter's shape"),
    "longer": (torch.ones(3, 4, 5, 7), "has not the parameter's shape"),
    "flat": (torch.ones(NUMEL), "has not the parameter's shape"),
    "bfloat16": (torch.ones(SHAPE, dtype=torch.bfloat16), "is of another type"),
    "float64": (torch.ones(SHAPE, dtype=torch.float64), "is of another type"),
    "transposed": (torch.ones(3, 4, 6, 5).mT, "lies in memory in another order"),
    "channels last": (torch.ones(SHAPE).to(memory_format=torch.channels_last), "lies in memory in another order"),
    "expanded": (torch.ones(()).expand(SHAPE), "lies in memory in another order"),
    "freed": (shrunk(0), "has lost its memory"),
    "half freed": (shrunk(4 * NUMEL - 4), "has lost its memory"),
}


@pytest.mark.parametrize("kind", list(BAD_TENSORS))
@pytest.mark.parametrize("name", ["params", "grads", "exp_avgs", "exp_avg_sqs"])
@both_passes
def test_a_tensor_that_does_not_fit_is_refused(second, name, kind):
    if second and name == "grads":
        pytest.skip("the second pass reads no gradients")
    bad, message = BAD_TENSORS[kind]
    if name == "params" and "shape" in message:
        message = "has not the parameter's shape"  # the gradient's or the average's, then
    args = arguments(second, **{name: [bad]})
    others = [t for arg in args if isinstance(arg, list) for t in arg if t is not bad]
    before = [t.clone() for t in others]
    with pytest.raises(RuntimeError, match=f"GENIE's CPU kernel: .*{message}"):
        call(second, *args)
    assert all(map(torch.equal, others, before))


@both_passes
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exp_avgs": []}, "lists of tensors differ in length"),
        ({"exp_avg_sqs": [torch.ones(SHAPE)] * 2}, "lists of tensors differ in length"),
        ({"numbers": torch.zeros(1, 6, dtype=torch.int64)}, "numbers are not as many"),
        ({"numbers": torch.zeros(1, 7, dtype=torch.int32)}, "numbers are of another type"),
        ({"numbers": torch.zeros(1, 14, dtype=torch.int64)[:, ::2]}, "numbers are not contiguous"),
        ({"scalars": torch.zeros(1, 2, dtype=torch.float64)}, "scalars are not as many"),
        ({"scalars": torch.zeros(1, 4)}, "scalars are of another type"),
        ({"values": torch.zeros(0, dtype=torch.float64)}, "(sums|spreads) are not as many"),
        ({"values": torch.zeros(2)}, "(sums|spreads) are of another type"),
        ({"flags": torch.zeros(5, dtype=torch.int16)}, "flags of the groups do not fit"),
        ({"flags": torch.zeros(8, dtype=torch.int32)}, "flags are of another type"),
        ({"numbers": torch.tensor([[0, 0, 0, 0, 0, 0, 2]])}, "negative"),
        ({"numbers": torch.tensor([[-5, 0, 0, 0, 0, 0, 2]])}, "negative"),
        ({"numbers": torch.tensor([[NUMEL, 0, -1, 0, 0, 0, 2]])}, "negative"),
        ({"numbers": torch.tensor([[4, -1, 0, 0, 0, 0, 2]])}, "negative"),
        ({"numbers": torch.tensor([[1, 2**62, 0, 0, 0, 0, 2]])}, "too large"),
        ({"numbers": torch.tensor([[1, 0, 2**62, 0, 0, 0, 2]])}, "too large"),
        ({"numbers": torch.tensor([[1, 0, 0, 4, 30, 0, 2]])}, "another order"),
        ({"form": 3}, "no such form"),
        ({"form": -1}, "no such form"),
        ({"threshold": 65537}, "threshold"),
        ({"threshold": -1}, "threshold"),
        ({"instruction_set": 3}, "this processor lacks"),
        ({"instruction_set": -1}, "this processor lacks"),
        ({"low_params": True}, "is of another type"),
        ({"low_moments": True}, "is of another type"),
    ],
)
def test_what_is_no_step_is_refused(second, changes, message):
    with pytest.raises(RuntimeError, match=f"GENIE's CPU kernel: .*{message}"):
        call(second, *arguments(second, **changes))


@both_passes
@pytest.mark.parametrize("channels_and_area", [(4, 31), (5, 24), (0, 30), (-4, -30), (120, 1)])
def test_channels_and_area_must_be_the_parameter_s(second, channels_and_area):
    tensors = {
        name: [torch.ones(SHAPE).to(memory_format=torch.channels_last)]
        for name in ("params", "grads", "exp_avgs", "exp_avg_sqs")
    }
    numbers = torch.tensor([[1, 0, 0, *channels_and_area, 0, 2]])
    with pytest.raises(RuntimeError, match=r"channels and area are not the parameter's|another order"):
        call(second, *arguments(second, **tensors, numbers=numbers))
    call(second, *arguments(second, **tensors, numbers=torch.tensor([[1, 0, 0, 4, 30, 0, 2]])))


@both_passes
@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 3, 0, 5), (2, 0, 4, 5), (0, 3, 4, 5)])
@pytest.mark.parametrize("channels_and_area", [(1, 1), (3, 0), (3, 20), (0, 20)])
def test_empty_tensors_are_checked_too(second, shape, channels_and_area):
    """A division by zero ended the process before."""
    tensors = {name: [torch.empty(shape)] for name in ("params", "grads", "exp_avgs", "exp_avg_sqs")}
    args = arguments(second, **tensors, numbers=torch.tensor([[1, 0, 0, *channels_and_area, 0, 2]]))
    if channels_and_area == (0, 20) or (shape, channels_and_area) == ((0, 3, 4, 5), (3, 20)):
        call(second, *args)
    else:
        with pytest.raises(RuntimeError, match="channels and area are not the parameter's"):
            call(second, *args)


def test_nothing_is_written_around_a_tensor():
    tensors, wholes = {}, []
    for name in ("params", "grads", "exp_avgs", "exp_avg_sqs"):
        tensor, whole = guarded(30.0)  # so that noise acts
        tensors[name] = [tensor]
        wholes.append(whole)
    call(False, *arguments(False, **tensors))
    for whole in wholes:
        assert (torch.cat([whole[:64], whole[-64:]]) == 30.0).all()


def test_a_parameter_whose_memory_was_freed_is_an_error():
    """As FSDP1 frees it between uses; the step is not counted."""
    p = torch.nn.Parameter(torch.ones(40))
    optimizer = GENIE([p])
    p.grad = torch.ones(40)
    optimizer.step()
    p.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="the parameter has lost its memory"):
        optimizer.step()
    assert optimizer.state[p]["step"] == 1
