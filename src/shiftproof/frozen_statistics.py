"""Keep passes out of what modules remember of them: running statistics, and whatever else buffers hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


class KeptBuffers:
    """Copies of the buffers of modules, to put back what they hold now."""

    def __init__(self) -> None:
        self._modules: set[nn.Module] = set()
        self._kept: list[tuple[nn.Module, str, Tensor, Tensor]] = []

    def keep(self, module: nn.Module) -> None:
        """Copy the buffers of a module and of all inside it, but for those that were copied before."""
        if module in self._modules:
            return
        for part in module.modules():
            if part not in self._modules:
                self._modules.add(part)
                held = [(name, b) for name, b in part._buffers.items() if b is not None and not is_lazy(b)]
                self._kept += [(part, name, buffer, buffer.detach().clone()) for name, buffer in held]

    def restore(self) -> None:
        """Put the copies back, into the tensors that were there."""
        for module, name, buffer, value in self._kept:
            if buffer.shape == value.shape:
                buffer.data.copy_(value)  # not a new version of it: graphs from before see what they saw
            else:
                buffer.data = value.clone()
            if getattr(module, name, None) is not buffer:
                setattr(module, name, buffer)


@contextmanager
def frozen_statistics() -> Iterator[Callable[[], None]]:
    """Leave the buffers of all modules that are called inside as they are.

    The modules compute what they always do: batch norms normalise by their batch, and the power iteration of spectral
    norms goes one step on. On leaving, every buffer holds what it held before, be it a running mean and variance, a
    count of batches, the vectors of a spectral norm, a codebook or what an observer of ranges has seen. So backward
    passes belong inside. Gives a function that puts the buffers back at once, between passes that are to be equal.

    It watches the calls of all modules of the process, so its caller needs no handle on the model. What is outside of
    them it does not see: a compiled function around the model (unlike a compiled model), a replayed CUDA graph, state
    that is no buffer. A lazy module that is first called inside initialises itself, and counts.
    """
    kept = KeptBuffers()
    with _calls_watched(kept):
        try:
            yield kept.restore
        finally:
            kept.restore()


_watching: list[KeptBuffers] = []
_lock = Lock()
_plain_call: Callable[..., Any] = nn.Module.__call__


def _watched_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    if not torch.compiler.is_compiling():  # what is traced is inside of a call that was seen
        for kept in _watching:
            kept.keep(module)
    return _plain_call(module, *args, **kwargs)


@contextmanager
def _calls_watched(kept: KeptBuffers) -> Iterator[None]:
    """Keep the buffers of every module before it is called.

    Not by torch's global hooks: a compiled module runs these inside of what is compiled, which they have compiled anew
    every time they are registered, until it is no longer compiled at all.
    """
    global _plain_call
    with _lock:
        if not _watching:
            _plain_call = nn.Module.__call__
            nn.Module.__call__ = _watched_call  # type: ignore[method-assign]
        _watching.append(kept)
    try:
        yield
    finally:
        with _lock:
            _watching.remove(kept)
            if not _watching:
                nn.Module.__call__ = _plain_call  # type: ignore[method-assign]
