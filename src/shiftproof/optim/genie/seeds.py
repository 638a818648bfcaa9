"""The seeds of GENIEs that are given none, and a warning where no seed keeps their random numbers apart."""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Iterable
from itertools import count
from threading import Lock
from weakref import WeakSet

import torch
from torch import Tensor
from torch.optim import Optimizer

_living: WeakSet[Optimizer] = WeakSet()
_lock = Lock()
_stepped = False  # since the last collection
_warned = False


def free_seed() -> int:
    """Return the lowest number that is the seed of no living optimizer: two in one model draw apart.

    A dropped optimizer that is part of a cycle, such as of a trainer and its model, lives until it is collected. Which
    seed comes out must not depend on when that is, for all replicas have to take the same: what may have been dropped
    is collected here first. As that takes some tenths of a second, one process alone does it only if an optimizer has
    stepped since the last time; one that was built and dropped without a step may then still count.
    """
    global _stepped
    if len(_living) and (_stepped or _processes() > 1):
        gc.collect()
        _stepped = False
    with _lock:
        optimizers = list(_living)
    taken = {group["seed"] for optimizer in optimizers for group in optimizer.param_groups}
    return next(seed for seed in count() if seed not in taken)


def count_as_living(optimizer: Optimizer) -> None:
    """Keep an optimizer's seeds from others for as long as it lives."""
    with _lock:
        _living.add(optimizer)


def note_step() -> None:
    """Tell that an optimizer has stepped."""
    global _stepped
    _stepped = True


def warn_of_repeated_draws(params: Iterable[Tensor]) -> None:
    """Warn, once, where processes hold different parts of the parameters and no DTensors say which.

    These are FSDP1, which flattens them, and ZeroRedundancyOptimizer, which gives every process some of them: each
    counts its parameters and elements from 0, so the parts draw the same numbers.
    """
    global _warned
    if _warned or _processes() == 1:
        return
    wrapper = "FSDP1" if any(getattr(p, "_fsdp_flattened", False) for p in params) else None
    if wrapper is None and _is_built_by_zero():
        wrapper = "ZeroRedundancyOptimizer"
    if wrapper is not None:
        _warned = True
        warnings.warn(
            f"under {wrapper} every process draws the same mask and noise for its own part of the parameters, so they "
            "repeat, and differ from those of one process; FSDP2 (torch.distributed.fsdp.fully_shard) keeps them",
            stacklevel=4,
        )


def _processes() -> int:
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _is_built_by_zero() -> bool:
    module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    frame = sys._getframe()
    while module is not None and frame.f_back is not None:
        frame = frame.f_back
        if isinstance(frame.f_locals.get("self"), module.ZeroRedundancyOptimizer):
            return True
    return False
