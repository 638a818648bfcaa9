"""Default seeds for GENIE optimizers, and a warning for wrappers under which processes repeat one another's draws."""

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
    """Return the lowest seed that no living optimizer uses, so that two optimizers of one model draw different numbers.

    A dropped optimizer that is part of a reference cycle, such as a trainer and its model, lives until it is collected.
    The seed must not depend on when that happens, because all replicas have to choose the same one, so this collects
    garbage first. That takes some tenths of a second; a single process therefore skips it unless an optimizer has
    stepped since the last time, and an optimizer that was built and dropped without a step may still count.
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
    """Reserve an optimizer's seeds for as long as it lives."""
    with _lock:
        _living.add(optimizer)


def note_step() -> None:
    """Record that an optimizer has stepped."""
    global _stepped
    _stepped = True


def warn_of_repeated_draws(params: Iterable[Tensor]) -> None:
    """Warn, once, if processes hold different parts of the parameters without DTensors that say which.

    FSDP1 flattens the parameters, and ZeroRedundancyOptimizer gives every process some of them. Under either, each
    process counts its parameters and elements from 0, so the parts draw the same numbers.
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
            f"under {wrapper} every process draws the same mask and noise for its own part of the parameters: they "
            "repeat across parts and differ from a single process's. FSDP2 (torch.distributed.fsdp.fully_shard) draws "
            "the same as a single process",
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
