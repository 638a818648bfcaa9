"""GENIE's step on the CPU as a compiled kernel: one pass over memory, and a second only where noise acts."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import NamedTuple, cast, get_args

import torch
from torch import Tensor

from shiftproof.base.sharding import PLAIN
from shiftproof.optim.genie.build import is_settled, kernel_error
from shiftproof.optim.genie.rule import (
    Begun,
    Options,
    Row,
    Rule,
    begin_in_batches,
    bias_corrections,
    mean_variance_ratio,
)

INSTRUCTION_SETS = ("baseline", "AVX2", "AVX-512")
_RULES = get_args(Rule)  # in the order of `Form` in kernel/genie.h
_PARAM_TYPES = (torch.float32, torch.bfloat16)
_GROUP = 64  # elements that share a flag
_CHUNK = 16384  # elements of a thread's task
_DTYPE, _IS_CPU = attrgetter("dtype"), attrgetter("is_cpu")
_limit: int | None = None


def obstacle(row: Row, *, may_build: bool = True) -> str | None:
    """Return why the kernel cannot step a row; None if it can.

    Args:
        row: the row.
        may_build: compile the kernel if necessary; if False, assume that compiling it would succeed.
    """
    param, grad, exp_avg, exp_avg_sq, step, _, _ = row
    dtype = param.dtype
    if not param.is_cpu:
        return f"the parameter is on {param.device}"
    if dtype not in _PARAM_TYPES or grad.dtype is not dtype:
        return f"the parameter is {dtype} and its gradient {grad.dtype}, neither float32 nor bfloat16"
    if exp_avg.dtype not in _PARAM_TYPES:
        return f"the moving averages are {exp_avg.dtype}"
    if not (type(param) in PLAIN and type(grad) in PLAIN and type(exp_avg) in PLAIN and type(exp_avg_sq) in PLAIN):
        return "a gradient or moving average is of a subclass of Tensor"
    if param.is_neg() or grad.is_neg() or grad._is_zerotensor():
        return "the negation or the zeros of a tensor are not in its memory"
    if isinstance(step, Tensor):
        return "capturable is for GPUs"
    if not _is_in_order(row) and _layout(row) is None:
        return "the parameter or a moving average lies neither in logical order nor channels last, or in another order"
    return kernel_error() if may_build or is_settled() else None


def takes_all(rows: Sequence[Row]) -> bool:
    """Return whether the kernel takes all rows, each a whole tensor in logical order.

    That is the usual case, and asking lists takes a third of the time of asking `obstacle` row by row.
    """
    params, grads, exp_avgs, exp_avg_sqs, steps, _, shards = zip(*rows, strict=True)
    dtypes = {*map(_DTYPE, params), *map(_DTYPE, grads)}
    return (
        len(dtypes) == 1
        and dtypes.issubset(_PARAM_TYPES)
        and {*map(_DTYPE, exp_avgs)}.issubset(_PARAM_TYPES)
        and {*map(type, params)}.issubset(PLAIN)
        and all(map(_IS_CPU, params))
        and all(map(Tensor.is_contiguous, (*params, *exp_avgs, *exp_avg_sqs)))
        and not any(map(Tensor.is_neg, (*params, *grads)))
        and not any(map(Tensor._is_zerotensor, grads))
        and not any(shards)
        and {*map(type, steps)} == {int}  # not tensors that the host does not read
        and kernel_error() is None
    )


def description() -> str:
    """Describe the implementation that runs."""
    if not is_settled() or kernel_error():
        return "fused, compiled at the first step"
    return f"fused ({INSTRUCTION_SETS[instruction_set()]})"


def instruction_set() -> int:
    """Return the index in `INSTRUCTION_SETS` of the set in use: the processor's best, up to the limit if one is set."""
    best = cast(int, torch.ops.shiftproof.genie_best_instruction_set())
    return best if _limit is None else min(best, _limit)


@contextmanager
def limited_instructions(index: int | None) -> Iterator[None]:
    """Limit the instruction set to one of `INSTRUCTION_SETS` by index, for measurements and tests; None: no limit."""
    global _limit
    before, _limit = _limit, index
    try:
        yield
    finally:
        _limit = before


class _Layout(NamedTuple):
    """Where the elements of a row, in memory order, lie in the whole tensor; see `Tensor` in kernel/genie.h."""

    run: int
    stride: int
    start: int
    channels: int = 0
    area: int = 0


def _is_in_order(row: Row) -> bool:
    """Return whether a row is the whole tensor, in logical order."""
    if row.shard is not None:
        return False
    return row.param.is_contiguous() and row.exp_avg.is_contiguous() and row.exp_avg_sq.is_contiguous()


def _layout(row: Row) -> _Layout | None:
    if _is_in_order(row):
        return _Layout(row.param.numel() or 1, 0, 0)
    shape, shard = row.param.shape, row.shard
    whole, offset = (shape, (0,) * len(shape)) if shard is None else (shard.shape, shard.offset)
    tensors = (row.param, row.exp_avg, row.exp_avg_sq)
    sharded = [i for i, (size, total) in enumerate(zip(shape, whole, strict=True)) if size != total]
    strides = [torch.Size(whole[i + 1 :]).numel() for i in range(len(whole))]
    start = sum(first * stride for first, stride in zip(offset, strides, strict=True))
    if all(t.is_contiguous() for t in tensors):
        last = sharded[-1] if sharded else 0
        if any(shape[outer] > 1 for cut in sharded[:-1] for outer in range(cut)):
            return None  # the starts of runs are not equally spaced
        run = shape[last] * strides[last]
        return _Layout(max(run, 1), whole[last] * strides[last], start)
    if row.param.ndim == 4 and all(t.is_contiguous(memory_format=torch.channels_last) for t in tensors):
        if any(i > 0 for i in sharded):
            return None
        return _Layout(1, 0, start, shape[1], shape[2] * shape[3])
    return None


def begin(rows: Sequence[Row], options: Options) -> Begun:
    """Begin the step of some rows; see `Begun`."""
    return begin_in_batches(rows, options, lambda row: (row.param.dtype, row.exp_avg.dtype), _begin_batch)


def _begin_batch(rows: list[Row], options: Options) -> Begun:
    """Begin the step of rows with equal dtypes of parameter and moments."""
    params, ms, vs = [row.param for row in rows], [row.exp_avg for row in rows], [row.exp_avg_sq for row in rows]
    if not any(row.shard for row in rows) and all(map(Tensor.is_contiguous, (*params, *ms, *vs))):
        layouts = [_Layout(p.numel() or 1, 0, 0) for p in params]  # as `_layout` says row by row
    else:
        layouts = [cast(_Layout, _layout(row)) for row in rows]
    steps = [cast(int, row.step) for row in rows]
    by_step = {step: _step_scalars(step, options.betas) for step in {*steps}}
    # Arrays, which torch reads at once; lists it reads one number at a time.
    numbers = torch.frombuffer(
        array("q", [n for one, row in zip(layouts, rows, strict=True) for n in (*one, row.position, row.step)]),
        dtype=torch.int64,
    )
    scalars = torch.frombuffer(array("d", [n for step in steps for n in by_step[step]]), dtype=torch.float64)
    flags = torch.empty(sum(map(_most_groups, rows, layouts)), dtype=torch.int16, device="cpu")
    sums = torch.zeros(len(rows), 2, dtype=torch.float64, device="cpu")
    lr = float(options.lr)
    settings = {
        "low_params": rows[0].param.dtype == torch.bfloat16,
        "low_moments": rows[0].exp_avg.dtype == torch.bfloat16,
        "form": _RULES.index(options.form),
        "lr": lr / options.kept_share,
        "beta1": options.betas[0],
        "beta2": options.betas[1],
        "eps": options.eps,
        "penalty": options.penalty,
        "shrinkage": lr * options.decoupled_decay,
        "maximize": options.maximize,
        "noise": options.noise,
        "threshold": options.threshold,
        "precondition": options.precondition,
        "seed": options.seed - 2**64 if options.seed >= 2**63 else options.seed,
        "instruction_set": instruction_set(),
    }
    noisy = torch.ops.shiftproof.genie_first_pass(
        params, [_aligned(row) for row in rows], ms, vs, numbers, scalars, sums, flags, **settings
    )

    def finish(spreads: Tensor | None) -> None:
        if noisy:
            values = (sums[:, 0] if spreads is None else spreads).contiguous()
            torch.ops.shiftproof.genie_second_pass(params, ms, vs, numbers, scalars, values, flags, **settings)
        torch.autograd.graph.increment_version(params)  # as torch's own in-place operations do

    return Begun(sums if options.needs_sums else None, finish)


def _step_scalars(step: int, betas: tuple[float, float]) -> tuple[float, float, float, float]:
    """Return the scalars that depend on the step count; see `Tensor` in kernel/genie.h."""
    first, second = cast(tuple[float, float], bias_corrections(betas, step, torch.float64))
    rho = mean_variance_ratio(betas[0], first)
    return 1 / first, 1 / second, rho, 1 / (1 - rho) if step > 1 and rho < 1 else 0.0


def _most_groups(row: Row, layout: _Layout) -> int:
    """Return an upper bound of the number of groups that a row touches."""
    size = row.param.numel()
    if layout.channels:
        width = layout.channels * layout.area
        return size // max(width, 1) * (width // _GROUP + 1)
    runs = size // layout.run + size // _CHUNK + 1  # a chunk may end within a run
    return size // _GROUP + 2 * runs


def _aligned(row: Row) -> Tensor:
    """Return the gradient in the parameter's memory order."""
    if row.grad.stride() == row.param.stride():
        return row.grad
    return torch.empty_like(row.param).copy_(row.grad)
