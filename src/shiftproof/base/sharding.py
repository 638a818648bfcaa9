"""Where the local part of a sharded tensor lies in the whole, and sums over the whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


PLAIN = (Tensor, torch.nn.Parameter)
"""The types of tensors that are no subclass's."""


class Shard(NamedTuple):
    """The place of a local tensor in the whole, of which it is a box.

    Attributes:
        shape: of the whole.
        offset: of the box's first element, by dimension.
        groups: the process groups, one per mesh dimension that cuts, whose members hold the other boxes.
    """

    shape: tuple[int, ...]
    offset: tuple[int, ...]
    groups: tuple[ProcessGroup, ...]


def local_part(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """Return what this process holds of a tensor: itself, unless it is a DTensor; of a complex one, the real view.

    Args:
        tensor: any tensor.
        like: a DTensor whose placements ``tensor`` is brought to first, as a gradient to its parameter's.
    """
    if is_dtensor(tensor):
        dtensor = cast(Any, tensor)
        if like is not None and dtensor.placements != cast(Any, like).placements:
            dtensor = dtensor.redistribute(placements=cast(Any, like).placements)
        tensor = dtensor.to_local()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def shard_of(tensor: Tensor) -> Shard | None:
    """Return the place of a tensor's local part, as `local_part` gives it; None where this process holds all of it.

    Raises:
        RuntimeError: the tensor is a DTensor of partial sums, or its local part is no box.
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
        # What torch shards from right to left, such as FSDP over tensor parallelism, names the parts to the right.
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
    """Return each local element's index in the whole, int64, flat, both counted in logical order."""
    index = torch.zeros(1, dtype=torch.int64, device=device)
    whole, offset = (shape, (0,) * len(shape)) if shard is None else (shard.shape, shard.offset)
    for size, total, first in zip(shape, whole, offset, strict=True):
        index = (index[:, None] * total + torch.arange(first, first + size, device=device)).flatten()
    return index


def sum_over_shards(sums: Tensor, shards: Sequence[Shard | None]) -> Tensor:
    """Add up the rows of sums that belong to sharded tensors over all processes that hold a part.

    One all-reduce per process group. Every process must have the same tensors in the same order.

    Args:
        sums: shape (tensors, n); left as it is.
        shards: one per tensor.
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
    if type(tensor) in PLAIN:  # spares a program without DTensors their import
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)
