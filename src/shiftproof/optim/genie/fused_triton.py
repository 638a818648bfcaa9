"""GENIE's fused step on a GPU: which parameters it supports, and the launches of the kernels in `triton_kernels`.

Rows with equal device, dtypes and step count are launched together. Two launches update them, and one in between adds
up sums for the form that needs them. Triton is imported with the first row.
"""

from __future__ import annotations

import importlib.util
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shiftproof.base.sharding import PLAIN, Shard, local_part, shard_of
from shiftproof.optim.genie.rule import Begun, Options, Row

block = 1024
"""Elements per program: a power of two, at least 8."""

interpreted = False
"""Whether kernels run in Triton's interpreter, even on CPU tensors; for tests, which also set TRITON_INTERPRET."""

_PARAMETER_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOMENT_TYPES = (torch.float32, torch.bfloat16)
_DIMENSIONS = 4
_ALIGNMENT = 8  # elements per block of the mask's stream
_CACHED_TABLES = 16


# ------------------------------------------------------------------------------------------------ what is taken


def obstacle(row: Row) -> str | None:
    """Return why this implementation cannot step a row, to complete "fused=True, but ..."; None if it can."""
    reason = _parameter_obstacle(row.param, row.shard)
    if reason is not None:
        return reason
    if not all(type(tensor) in PLAIN for tensor in (row.grad, row.exp_avg, row.exp_avg_sq)):
        return "a gradient or moving average is of a subclass of Tensor"
    step = row.step if isinstance(row.step, Tensor) else None
    for tensor in (row.grad, row.exp_avg, row.exp_avg_sq, step):
        if tensor is not None and tensor.device != row.param.device:
            return f"the parameter is on {row.param.device} and its gradient or state on {tensor.device}"
    if row.grad.dtype not in _PARAMETER_TYPES:
        return f"the gradient is {_name(row.grad.dtype)}"
    for moment in (row.exp_avg, row.exp_avg_sq):
        if moment.dtype not in _MOMENT_TYPES or moment.dtype != row.exp_avg.dtype:
            return f"a moving average is {_name(moment.dtype)}"
        if not _lie_alike(moment, row.param):
            return "the moving averages lie in memory in another order than the parameter"
    if step is not None and step.dtype != torch.float32:
        return f"the step count is {_name(step.dtype)}"
    return None


def takes(p: Tensor) -> bool:
    """Return whether this implementation supports a parameter, regardless of its gradient."""
    return _parameter_obstacle(local_part(p), shard_of(p)) is None


def description() -> str:
    """Return the implementation's name."""
    return "fused (Triton)"


def _parameter_obstacle(param: Tensor, shard: Shard | None) -> str | None:
    if param.device.type != "cuda" and not interpreted:
        return f"the parameter is on {param.device}"
    if type(param) not in PLAIN:
        return f"the parameter is a {type(param).__name__}"
    if param.dtype not in _PARAMETER_TYPES:
        return f"the parameter is {_name(param.dtype)}"
    if _layout(param, shard) is None:
        return f"the parameter's memory has gaps, or more than {_DIMENSIONS} dimensions in another order"
    return None if interpreted else _device_obstacle(param.device)


@cache
def _device_obstacle(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (7, 0):
        return "Triton does not support a GPU of this age"
    from triton.runtime import driver  # type: ignore[import-untyped]

    try:
        driver.active.get_current_device()
    except Exception as error:  # whatever it may lack: a C compiler, the driver's library
        return f"Triton does not work here: {error}"
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# -------------------------------------------------------------------------------------------------- the step


def begin(rows: Sequence[Row], options: Options) -> Begun:
    """Begin the step of some rows without reading any value on the host."""
    own = [row._replace(grad=_laid_out_like(row.grad, row.param)) for row in rows]
    batches = [_Batch(own, indices, options) for indices in _batches(own)]
    sums: dict[torch.device, Tensor] = {}
    for batch in batches:
        if options.needs_sums and batch.device not in sums:
            sums[batch.device] = torch.zeros(len(rows), 2, dtype=torch.float64, device=batch.device)
        batch.begin(sums.get(batch.device))
    if options.grad_scale is not None:  # gradients are left divided by it
        for row, laid_out in zip(rows, own, strict=True):
            if laid_out.grad is not row.grad:
                row.grad.copy_(laid_out.grad)

    def finish(spreads: Tensor | None) -> None:
        for batch in batches:
            batch.finish(spreads)

    parts = [part.to(batches[0].device, non_blocking=True) for part in sums.values()]
    return Begun(reduce(torch.add, parts) if parts else None, finish)


def _batches(rows: Sequence[Row]) -> Iterable[list[int]]:
    """Return the indices of the rows that can be launched together."""
    batches: dict[Hashable, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        types = row.param.dtype, row.grad.dtype, row.exp_avg.dtype
        step = None if isinstance(row.step, Tensor) else row.step
        batches[row.param.device, types, step, _row_layout(row).is_run].append(i)
    return batches.values()


class _Batch:
    """Rows of a step that are launched together.

    Args:
        rows: all rows of the step.
        indices: indices of this batch's rows among them.
        options: options of the step.
    """

    def __init__(self, rows: Sequence[Row], indices: Sequence[int], options: Options) -> None:
        from shiftproof.optim.genie import triton_kernels

        self.kernels, self.options = triton_kernels, options
        first = rows[indices[0]]
        self.device = first.param.device
        self.table = _table([rows[i] for i in indices], indices)
        self.grad_type = triton_kernels.element_type(first.grad.dtype)
        step = None if isinstance(first.step, Tensor) else first.step
        # A learning rate on the host can be read there.
        lr_at = options.lr if isinstance(options.lr, Tensor) and options.lr.device.type == self.device.type else None
        beta1, beta2 = options.betas
        # What both kernels are given.
        self.arguments: dict[str, Any] = {
            "table": self.table.rows,
            "chunks": self.table.chunks,
            "flags": self._empty(self.table.chunk_count, dtype=torch.int32) if options.noise else None,
            "lr_at": _on(self.device, lr_at),
            "lr": float(options.lr) if lr_at is None else 0.0,
            "rescale": 1 / options.kept_share,
            "shrinkage": float(options.decoupled_decay),
            "threshold": options.threshold,
            "seed": options.seed,
            "step": step or 0,
            "correction1": 0.0 if step is None else 1.0 - beta1**step,
            "correction2": 0.0 if step is None else 1.0 - beta2**step,
            "log_beta1": math.log(beta1) if beta1 else -math.inf,
            "log_beta2": math.log(beta2) if beta2 else -math.inf,
            "ratio": (1 - beta1) / (1 + beta1),
            "eps": float(options.eps),
            "param_type": triton_kernels.element_type(first.param.dtype),
            "moment_type": triton_kernels.element_type(first.exp_avg.dtype),
            "form": options.form,
            "precondition": options.precondition,
            "masks": options.threshold > 0,
            "capturable": step is None,
            "run": _row_layout(first).is_run,
            "block": block,
            "enable_fp_fusion": False,  # round as torch's separate operations do, with whatever version of Triton
        }

    def begin(self, sums: Tensor | None) -> None:
        """Take the first half of the step, and write the rows' sums if a tensor for them is given."""
        table, options = self.table, self.options
        if not table.chunk_count:
            return
        partials = None if sums is None else self._empty(2, table.chunk_count, dtype=torch.float64)
        with _current(self.device):
            self.kernels.begin_kernel[table.chunk_count,](
                partials=partials,
                found_inf=_on(self.device, options.found_inf),
                grad_scale=_on(self.device, options.grad_scale),
                beta1=float(options.betas[0]),
                beta2=float(options.betas[1]),
                weight1=1.0 - options.betas[0],
                weight2=1.0 - options.betas[1],
                penalty=float(options.penalty),
                grad_type=self.grad_type,
                maximize=options.maximize,
                penalises=options.penalty != 0,
                noisy=options.noise != 0,
                **self.arguments,
            )
            if sums is not None:
                self.kernels.sum_kernel[table.row_count,](table.rows, partials, sums, table.chunk_count, block=block)

    def finish(self, spreads: Tensor | None) -> None:
        """Take the second half, given the spreads of all rows of the step."""
        if not self.table.chunk_count or not self.options.noise:
            return
        with _current(self.device):
            self.kernels.finish_kernel[self.table.chunk_count,](
                spreads=_on(self.device, spreads), noise=float(self.options.noise), **self.arguments
            )

    def _empty(self, *size: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(size, dtype=dtype, device=self.device)


def _on(device: torch.device, tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(device, non_blocking=True)


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Make a device current, because Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


# ------------------------------------------------------------------------------------------------ the layout


class _Layout(NamedTuple):
    """Where the elements of a tensor, in memory order, lie in the whole tensor.

    Attributes:
        is_run: whether they are consecutive in the whole tensor too.
        columns: columns of the kernels' table: the number of elements, the index of the first in the whole, the sizes
            of all dimensions but the outermost, and the strides of all dimensions in the whole. Dimensions go from the
            innermost in memory outwards.
    """

    is_run: bool
    columns: tuple[int, ...]


def _row_layout(row: Row) -> _Layout:
    layout = _layout(row.param, row.shard)
    assert layout is not None  # noqa: S101  (else `obstacle` has told so)
    return layout


def _layout(tensor: Tensor, shard: Shard | None) -> _Layout | None:
    shape = tuple(tensor.shape)
    if shard is None:
        return _box_layout(shape, tensor.stride(), shape, (0,) * len(shape))
    return _box_layout(shape, tensor.stride(), shard.shape, shard.offset)


@lru_cache(maxsize=4096)
def _box_layout(
    shape: tuple[int, ...], strides: tuple[int, ...], whole: tuple[int, ...], offset: tuple[int, ...]
) -> _Layout | None:
    """Return the layout of a box of the whole tensor; None if it has gaps in memory or too many dimensions."""
    steps = [math.prod(whole[i + 1 :]) for i in range(len(whole))]
    numel, start = math.prod(shape), sum(first * step for first, step in zip(offset, steps, strict=True))
    # Dimensions from the innermost in memory; those that follow each other in the whole too become one.
    dims: list[tuple[int, int]] = []
    covered = 1
    for stride, size, step in sorted(zip(strides, shape, steps, strict=True)):
        if size == 1 or not numel:
            continue
        if stride != covered:
            return None
        covered *= size
        if dims and step == math.prod(dims[-1]):
            dims[-1] = dims[-1][0] * size, dims[-1][1]
        else:
            dims.append((size, step))
    if len(dims) > _DIMENSIONS:
        return None
    is_run = not dims or (len(dims) == 1 and dims[0][1] == 1)
    dims += [(1, 0)] * (_DIMENSIONS - len(dims))
    return _Layout(is_run, (numel, start, *(size for size, _ in dims[:-1]), *(step for _, step in dims)))


def _lie_alike(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors of equal shape, one of them without gaps, have the same order in memory."""
    if one.stride() == other.stride():
        return True
    layout = _layout(one, None)  # strides of dimensions of size 1 mean nothing
    return layout is not None and layout == _layout(other, None)


def _laid_out_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a tensor in the memory order of another without gaps; itself if it already is."""
    if _lie_alike(tensor, other):
        return tensor
    return torch.empty_like(other, dtype=tensor.dtype).copy_(tensor)


# ------------------------------------------------------------------------------------------------- the table


class _Table(NamedTuple):
    """The kernels' description of a batch's rows, on their device; see `triton_kernels`."""

    rows: Tensor
    chunks: Tensor
    row_count: int
    chunk_count: int


_tables: dict[Hashable, _Table] = {}


def _table(rows: Sequence[Row], indices: Sequence[int]) -> _Table:
    """Return the table of a batch's rows, given their indices in the step; from the cache if nothing has changed."""
    entries = tuple(
        (
            *(tensor.data_ptr() for tensor in (row.param, row.grad, row.exp_avg, row.exp_avg_sq)),
            row.step.data_ptr() if isinstance(row.step, Tensor) else 0,
            index,
            row.position,
            *_row_layout(row).columns,
        )
        for row, index in zip(rows, indices, strict=True)
    )
    device, is_run, stream = rows[0].param.device, _row_layout(rows[0]).is_run, None
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            # The graph keeps what is allocated now, on the host too, and copies from there whenever it is replayed. A
            # cached table could be gone by then, and one of the graph's is not filled before.
            return _make_table(entries, is_run, device)
        stream = torch.cuda.current_stream(device).cuda_stream
    key = device, stream, block, is_run, entries
    table = _tables.pop(key, None) or _make_table(entries, is_run, device)
    _tables[key] = table  # as the newest
    if len(_tables) > _CACHED_TABLES:
        del _tables[next(iter(_tables))]
    return table


def _make_table(entries: Sequence[Sequence[int]], is_run: bool, device: torch.device) -> _Table:
    table = torch.tensor(entries, dtype=torch.int64, device="cpu")
    numel, start = table[:, 7], table[:, 8]
    # The first chunk of a run begins where the mask's block of its first element does.
    numel = torch.where(numel > 0, numel + start % _ALIGNMENT * is_run, 0)
    counts = (numel + block - 1) // block
    first = counts.cumsum(0) - counts
    row = torch.repeat_interleave(torch.arange(len(entries), device="cpu"), counts)
    chunks = (row << 32) + torch.arange(len(row), device="cpu") - first[row]
    table = torch.cat([table, first[:, None], counts[:, None]], dim=1)
    packed = torch.cat([table.flatten(), chunks])
    if device.type == "cuda":
        packed = packed.pin_memory()
    on_device = packed.to(device, non_blocking=True)
    return _Table(on_device[: table.numel()], on_device[table.numel() :], len(entries), len(row))
