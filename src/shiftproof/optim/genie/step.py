"""A step: rows are checked, each goes to the fastest implementation that supports it, and steps are counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shiftproof.base.sharding import PLAIN, is_dtensor, local_part, shard_of, sum_over_shards
from shiftproof.optim.genie import fused_cpu, fused_triton
from shiftproof.optim.genie.eager import begin_foreach, begin_forloop
from shiftproof.optim.genie.rule import Begun, Options, Row
from shiftproof.optim.state import mismatch

_MOMENT_TYPES = (torch.float32, torch.bfloat16, torch.float64)
_DTYPE, _SHAPE, _DEVICE, _IS_CPU, _LAYOUT = map(attrgetter, ("dtype", "shape", "device", "is_cpu", "layout"))
_Begin = Callable[[Sequence[Row], Options], Begun]


class Flags(NamedTuple):
    """Options that choose the implementation of a step; see `GENIE` for their meaning."""

    foreach: bool | None = None
    fused: bool | None = None
    capturable: bool = False
    differentiable: bool = False

    @property
    def may_fuse(self) -> bool:
        """Whether the fused implementation is requested, or the choice is left open."""
        return bool(self.fused) or (self.fused is None and self.foreach is None and not self.differentiable)


def refuse_sparse(grads: Iterable[Tensor], optimizer: str) -> None:
    """Raise RuntimeError if a gradient is sparse."""
    if not {*map(_LAYOUT, grads)} <= {torch.strided}:
        raise RuntimeError(f"{optimizer} does not support sparse gradients")


def refuse_unfused(params: Sequence[Tensor], flags: Flags) -> None:
    """Raise RuntimeError if the flags request the fused implementation and it does not support a parameter."""
    for p in params:
        _implementation(_stand_in(local_part(p), flags), flags)


def _count_step(steps: Sequence[Tensor], found_inf: Tensor | None, change: int = 1) -> None:
    """Change step counts by one, unless a gradient is not finite."""
    if steps and found_inf is None:
        torch._foreach_add_(list(steps), change)
    elif found_inf is not None:
        for step in steps:
            step += change * (found_inf == 0).reshape(()).to(step)


def make_rows(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    positions: Sequence[int],
    names: Sequence[str | None],
    *,
    capturable: bool,
    begins: bool,
) -> list[Row]:
    """Return the rows of a step, one per parameter that has elements; see `functional.genie`.

    This checks every tensor against its parameter, because kernels trust shapes.

    Args:
        params: parameters.
        grads: their gradients.
        exp_avgs: moving averages of the gradients.
        exp_avg_sqs: moving averages of the squared gradients.
        steps: counts of steps taken.
        positions: positions of the parameters in the random stream.
        names: names of the parameters, for messages; None for the position.
        capturable: whether the host must not read the counts.
        begins: whether a new step begins, which the counts do not include yet; otherwise rows describe the last step.

    Raises:
        RuntimeError: a parameter is a DTensor of partial sums, or a tensor does not fit its parameter.
        ValueError: the sequences differ in length.
    """
    counts: list[Any] = []
    for count in steps:  # no comprehension: from Python 3.12 on, torch.compile loses it where it reads a count
        counts.append(count if capturable else _whole(count.item()) + begins)
    tensors = (params, grads, exp_avgs, exp_avg_sqs)
    same_length = len({*map(len, (*tensors, counts, positions, names))}) == 1
    if same_length and _are_ordinary(*tensors) and (capturable or min(counts, default=1) >= 1):
        return [row for row in map(Row, *tensors, counts, positions, repeat(None)) if row.param.numel()]
    rows = []
    for p, grad, m, v, step, position, name in zip(
        params, grads, exp_avgs, exp_avg_sqs, counts, positions, names, strict=True
    ):
        row = Row(local_part(p), local_part(grad, like=p), local_part(m), local_part(v), step, position, shard_of(p))
        if (reason := _unfit(row)) is not None:
            label = f"parameter {position}" if name is None else f"parameter '{name}'"
            raise RuntimeError(reason.format(label))
        if p.numel():
            rows.append(row)
    return rows


def _are_ordinary(
    params: Sequence[Tensor], grads: Sequence[Tensor], exp_avgs: Sequence[Tensor], exp_avg_sqs: Sequence[Tensor]
) -> bool:
    """Return whether all tensors are plain ones that fit together, which is soon told of lists."""
    moments = (*exp_avgs, *exp_avg_sqs)
    tensors = (*params, *grads, *moments)
    dtypes = {*map(_DTYPE, params), *map(_DTYPE, grads)}
    shapes = list(map(_SHAPE, params))
    return (
        {*map(type, tensors)}.issubset(PLAIN)
        and {*map(_LAYOUT, tensors)} == {torch.strided}
        and all(dtype.is_floating_point for dtype in dtypes)
        and len(moment_types := {*map(_DTYPE, moments)}) == 1
        and moment_types.issubset(_MOMENT_TYPES)
        and (all(map(_IS_CPU, tensors)) or len({*map(_DEVICE, tensors)}) == 1)
        and all(list(map(_SHAPE, others)) == shapes for others in (grads, exp_avgs, exp_avg_sqs))
    )


def _whole(count: float) -> int:
    """Return a step count as an integer; -1 if it is not a valid count."""
    return int(count) if 0 <= count < 2**32 - 1 else -1


def _unfit(row: Row) -> str | None:
    """Return why a row cannot be stepped, with a placeholder for the parameter's name; None if it can."""
    p, grad, m, v, step, _, _ = row
    shape, device = p.shape, p.device
    if not (
        grad.shape == m.shape == v.shape == shape
        and grad.device == m.device == v.device == device
        and grad.layout is m.layout is v.layout is torch.strided
        and (type(grad) in PLAIN and type(m) in PLAIN and type(v) in PLAIN)
    ):
        for name, tensor in (("the gradient", grad), ("exp_avg", m), ("exp_avg_sq", v)):
            if (reason := mismatch(tensor, p)) is not None:
                return f"{name} of {{}} is {reason}"
            if tensor.device != device:
                return (
                    f"{name} of {{}} is on {tensor.device}, and the parameter on {device}; move a model before its "
                    "optimizer is built, or load the optimizer's state again"
                )
            if is_dtensor(tensor):
                return f"{name} of {{}} is a DTensor, and the parameter is none"
    if m.dtype is not v.dtype or m.dtype not in _MOMENT_TYPES:
        types = f"{m.dtype} and {v.dtype}".replace("torch.", "")
        return f"exp_avg and exp_avg_sq of {{}} are {types}; both must be float32, bfloat16 or float64"
    if not (p.dtype.is_floating_point and grad.dtype.is_floating_point):
        return f"{{}} is {p.dtype} and its gradient {grad.dtype}, of which one has no fractions"
    if not isinstance(step, Tensor) and step < 1:
        return "the step count of {} is below 0, or no number below 2^32"
    return None


def take_step(groups: Iterable[tuple[Sequence[Row], Options, Flags]], steps: Sequence[Sequence[Tensor]]) -> None:
    """Take the step of some groups, and count it.

    Args:
        groups: for each group its rows, its options and the flags that choose the implementation.
        steps: the step counts of each group, which are restored if the step fails.
    """
    groups = list(groups)
    counted = [(counts, options.found_inf) for counts, (_, options, _) in zip(steps, groups, strict=True)]
    for counts, found_inf in counted:  # before the step: a captured one reads them
        _count_step(counts, found_inf)
    try:
        _take_step(groups)
    except BaseException:
        for counts, found_inf in counted:
            _count_step(counts, found_inf, -1)
        raise


def _take_step(groups: Iterable[tuple[Sequence[Row], Options, Flags]]) -> None:
    """Take the step of some groups, with a single all-reduce for the sums over shards."""
    planned: list[tuple[_Begin, list[int], list[Row], Options]] = []
    count = 0
    for rows, options, flags in groups:  # refuse what cannot be done before anything changes
        by_implementation = _by_implementation(rows, flags)
        scaled = options.grad_scale is not None or options.found_inf is not None
        if scaled and any(begin not in (fused_triton.begin, _begin_empty) for begin in by_implementation):
            raise RuntimeError("grad_scale and found_inf are for the fused implementation on a GPU only")
        for begin, indices in by_implementation.items():
            planned.append((begin, [count + i for i in indices], [rows[i] for i in indices], options))
        count += len(rows)
    begun = [(numbers, part, begin(part, options)) for begin, numbers, part, options in planned]
    sums = _summed([(numbers, rows, one.sums) for numbers, rows, one in begun])
    for one, total in zip((one for *_, one in begun), sums, strict=True):
        one.finish(None if total is None else total[:, 0] / total[:, 1])


def _by_implementation(rows: Sequence[Row], flags: Flags) -> dict[_Begin, list[int]]:
    """Return the indices of the rows that each implementation steps."""
    if rows and flags.may_fuse and not fused_triton.interpreted and fused_cpu.takes_all(rows):
        return {fused_cpu.begin: list(range(len(rows)))}
    result: dict[_Begin, list[int]] = {}
    for i, row in enumerate(rows):
        begin = _implementation(row, flags) if row.param.numel() else _begin_empty
        result.setdefault(begin, []).append(i)
    return result


def _begin_empty(rows: Sequence[Row], options: Options) -> Begun:
    """Begin the step of rows whose elements are all in other processes."""
    sums = torch.zeros(len(rows), 2, dtype=torch.float64, device=rows[0].param.device)
    return Begun(sums if options.needs_sums else None, lambda spreads: None)


def _implementation(row: Row, flags: Flags, *, may_build: bool = True) -> _Begin:
    """Return the implementation that steps a row; see `fused_cpu.obstacle` for ``may_build``.

    Raises:
        RuntimeError: the fused implementation is requested and does not support the row.
    """
    if flags.may_fuse:
        on_cpu = row.param.is_cpu and not fused_triton.interpreted
        reason = fused_cpu.obstacle(row, may_build=may_build) if on_cpu else fused_triton.obstacle(row)
        if reason is None:
            return fused_cpu.begin if on_cpu else fused_triton.begin
        if flags.fused:
            raise RuntimeError(f"fused=True, but {reason}")
    if any(stride == 0 and size > 1 for stride, size in zip(row.param.stride(), row.param.shape, strict=True)):
        raise RuntimeError("a parameter is expanded over itself: its elements share memory, and cannot move apart")
    plain = type(row.param) in PLAIN
    if flags.differentiable or flags.capturable or not (plain if flags.foreach is None else flags.foreach):
        return begin_forloop
    return begin_foreach


def describe_implementation(params: Sequence[Tensor], flags: Flags) -> str:
    """Describe the implementation that steps a group, and why no faster one does."""
    names = dict.fromkeys(_description(local_part(p), flags) for p in params)
    return " and ".join(names) or "none"


def _stand_in(param: Tensor, flags: Flags) -> Row:
    """Return a stand-in row for a parameter that has no state yet."""
    param = param.detach()
    moment = param.float() if param.dtype == torch.float16 else param
    step = torch.ones((), device=param.device) if flags.capturable else 1
    return Row(param, param, moment, moment, step, 0, None)


def _description(param: Tensor, flags: Flags) -> str:
    row = _stand_in(param, flags)
    try:
        begin = _implementation(row, flags, may_build=False)
    except RuntimeError as error:
        return str(error)
    for fused in (fused_cpu, fused_triton):
        if begin is fused.begin:
            return str(fused.description())
    name = "foreach" if begin is begin_foreach else "for-loop"
    if not flags.may_fuse:
        return name
    on_cpu = row.param.is_cpu
    return f"{name}: {fused_cpu.obstacle(row, may_build=False) if on_cpu else fused_triton.obstacle(row)}"


def _summed(parts: Sequence[tuple[list[int], list[Row], Tensor | None]]) -> list[Tensor | None]:
    """Add up the sums of sharded tensors over all their shards.

    Args:
        parts: for each part the numbers of its rows, the rows and their sums. The reduction follows the order of the
            numbers, which all processes share; the implementation of a row may differ between processes.
    """
    present = [(numbers, rows, sums) for numbers, rows, sums in parts if sums is not None]
    shards = [row.shard for _, rows, _ in present for row in rows]
    if not any(shards):
        return [sums for _, _, sums in parts]
    numbers = [number for numbers, _, _ in present for number in numbers]
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    device = present[0][2].device
    total = torch.cat([sums.to(device) for _, _, sums in present])
    total[order] = sum_over_shards(total[order], [shards[i] for i in order])
    whole = iter(torch.split(total, [len(rows) for _, rows, _ in present]))
    return [None if sums is None else next(whole).to(sums.device) for _, _, sums in parts]
