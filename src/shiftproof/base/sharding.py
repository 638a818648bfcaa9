"""Places of the local parts of sharded tensors, and sums over the whole tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


PLAIN = (Tensor, torch.nn.Parameter)
"""The types of ordinary tensors; any other type, such as DTensor, is a subclass with behaviour of its own."""


class Shard(NamedTuple):
    """The place of a local tensor, which is a rectangular box of the whole tensor.

    Attributes:
        shape: shape of the whole tensor.
        offset: index of the box's first element, by dimension.
        groups: the process groups whose members hold the other boxes, one per mesh dimension that shards the tensor.
    """

    shape: tuple[int, ...]
    offset: tuple[int, ...]
    groups: tuple[ProcessGroup, ...]


def local_part(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """Return the part of a tensor that this process holds: all of it unless it is a DTensor; as a real view if complex.

    Args:
        tensor: any tensor.
        like: a DTensor, such as the parameter of a gradient; ``tensor`` is first redistributed to its placements.
    """
    if is_dtensor(tensor):
        dtensor = cast(Any, tensor)
        if like is not None and dtensor.placements != cast(Any, like).placements:
            dtensor = dtensor.redistribute(placements=cast(Any, like).placements)
        tensor = dtensor.to_local()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def shard_of(tensor: Tensor) -> Shard | None:
    """Return the place of a tensor's local part (see `local_part`); None if this process holds all of the tensor.

    Raises:
        RuntimeError: the tensor is a DTensor of partial sums, or its local part is not a box.
    """
    if not is_dtensor(tensor):
        return None
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    dtensor = cast(Any, tensor)
    mesh, placements = dtensor.device_mesh, dtensor.placements
    if any(placement.is_partial() for placement in placements):
        raise RuntimeError(f"a parameter must be sharded or replicated, not {placements}")
    sharding = [i for i, placement in enumerate(placements) if not placement.is_replicate() and mesh.size(i) > 1]
    if not sharding:
        return None
    for i in sharding:
        # When torch shards from right to left, as with FSDP over tensor parallelism, split_factor counts the parts to
        # the right.
        inner = math.prod(mesh.size(j) for j in sharding if j > i and placements[j].dim == placements[i].dim)
        if getattr(placements[i], "split_factor", inner) != inner:
            raise RuntimeError(f"parameters in interleaved parts are not supported: {placements}")
    shape, offset = compute_local_shape_and_global_offset(dtensor.shape, mesh, placements)
    if tuple(shape) != tuple(dtensor.to_local().shape):  # torch's own bookkeeping fails for some uneven shards
        raise RuntimeError(f"{tuple(dtensor.shape)} cannot be sharded unevenly by {placements}")
    groups = tuple(mesh.get_group(i) for i in sharding)
    if dtensor.is_complex():  # the real view has a dimension more
        return Shard((*dtensor.shape, 2), (*offset, 0), groups)
    return Shard(tuple(dtensor.shape), tuple(offset), groups)


def element_indices(shape: Sequence[int], shard: Shard | None, device: torch.device) -> Tensor:
    """Return the index of each local element in the whole tensor: int64, flat, both in logical order."""
    index = torch.zeros(1, dtype=torch.int64, device=device)
    whole, offset = (shape, (0,) * len(shape)) if shard is None else (shard.shape, shard.offset)
    for size, total, first in zip(shape, whole, offset, strict=True):
        index = (index[:, None] * total + torch.arange(first, first + size, device=device)).flatten()
    return index


def sum_over_shards(sums: Tensor, shards: Sequence[Shard | None]) -> Tensor:
    """Add up the rows that belong to sharded tensors over all processes that hold a part.

    This takes one all-reduce per process group. Every process must have the same tensors in the same order.

    Args:
        sums: local sums of shape (tensors, n), one row per tensor; not modified.
        shards: places of the tensors, None for those that are not sharded.
    """
    rows_by_group: dict[ProcessGroup, list[int]] = {}
    for row, shard in enumerate(shards):
        for group in () if shard is None else shard.groups:
            rows_by_group.setdefault(group, []).append(row)
    if not rows_by_group:
        return sums
    sums = sums.clone()
    for group, rows in rows_by_group.items():
        packed = sums[rows]
        torch.distributed.all_reduce(packed, group=group)
        sums[rows] = packed
    return sums


def is_dtensor(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor."""
    if type(tensor) in PLAIN:  # a program without DTensors need not import them
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)
