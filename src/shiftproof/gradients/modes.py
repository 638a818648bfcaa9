"""Passes through a model that leave no trace in its running statistics, other buffers, or mode."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

_Place = tuple[nn.Module, str]
_ABSENT = object()
"""Stands for a buffer that a module does not have."""


class KeptBuffers:
    """Copies of modules' buffers, from which to restore them.

    Values are restored into the same tensors, even if these belong to others: `torch.func.functional_call` lends
    modules foreign tensors. The tensor that a module has under a name is restored only if the module replaced it during
    its own call.
    """

    def __init__(self) -> None:
        self._values: dict[int, tuple[Tensor, Tensor]] = {}  # by id: the tensor, which this keeps alive, and a copy
        self._exchanged: dict[_Place, tuple[object, object]] = {}  # the buffer at first, and the one now in its place
        self._initialising: set[nn.Module] = set()  # lazy modules, whose first call is meant to have an effect

    def copy(self, module: nn.Module, *, inside: bool) -> dict[_Place, object]:
        """Copy a module's buffers if not yet copied, with ``inside`` also its submodules'; return the buffers."""
        places: dict[_Place, object] = {}
        for part in module.modules() if inside else (module,):
            if isinstance(part, LazyModuleMixin) and part.has_uninitialized_params():
                self._initialising.add(part)
            else:
                places |= {(part, name): buffer for name, buffer in part._buffers.items()}
        new = [b for b in places.values() if isinstance(b, Tensor) and id(b) not in self._values and _may_be_copied(b)]
        if new:
            weights = {_memory(p) for p in module.parameters()} - {None}
            for buffer in new:
                if _memory(buffer) not in weights:  # otherwise it moves with the weights, as in GGA's search
                    self._values[id(buffer)] = buffer, buffer.detach().clone()
        return places

    def note_exchanged(self, module: nn.Module, places: dict[_Place, object]) -> None:
        """Note which buffers of a module and its submodules have been replaced since `copy` returned them."""
        parts = (part for part in module.modules() if part not in self._initialising)
        now = {(part, name): buffer for part in parts for name, buffer in part._buffers.items()}
        for place in places.keys() | now.keys():
            before, after = places.get(place, _ABSENT), now.get(place, _ABSENT)
            if before is not after:
                first, last = self._exchanged.get(place, (before, before))
                self._exchanged[place] = first if last is before else before, after

    def restore(self) -> None:
        """Restore all buffers."""
        for buffer, value in self._values.values():
            if buffer.shape == value.shape:
                buffer.data.copy_(value)  # through .data, so that graphs that saved it do not see a new version
            else:
                buffer.data = value.clone()
        for (module, name), (before, after) in self._exchanged.items():
            if module._buffers.get(name, _ABSENT) is after:
                if before is _ABSENT:
                    delattr(module, name)
                elif after is _ABSENT:
                    module.__dict__.pop(name, None)
                    module._buffers[name] = before  # type: ignore[assignment]
                else:
                    setattr(module, name, before)
        self._exchanged.clear()


def _may_be_copied(buffer: Tensor) -> bool:
    """Return whether a buffer can be restored, which torch.func's wrappers and self-overlapping tensors cannot."""
    overlaps = any(stride == 0 and size > 1 for stride, size in zip(buffer.stride(), buffer.shape, strict=True))
    return not _is_wrapped(buffer) and not overlaps


def _is_wrapped(tensor: Tensor | None) -> bool:
    return tensor is not None and torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _memory(tensor: Tensor) -> int | None:
    """Return the address of a tensor's memory; None if it has no ordinary memory of its own."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta or is_lazy(tensor) or _is_wrapped(tensor):
        return None
    return tensor.untyped_storage().data_ptr()


@contextmanager
def frozen_statistics() -> Iterator[Callable[[], None]]:
    """Restore the buffers of all modules that this thread calls inside the context.

    The modules compute as usual: batch norms normalise by their batch, and spectral norms take one step of their power
    iteration. On exit every buffer holds what it held before: running means and variances, counts of batches, vectors
    of spectral norms, codebooks, ranges seen by observers. Backward passes therefore belong inside too. The context
    yields a function that restores the buffers at once, for use between passes that must be equal.

    It watches the calls of all modules, so it needs no reference to the model. It does not see anything outside such
    calls: a compiled function around the model (a compiled model is fine), a replayed CUDA graph, or state that is not
    a buffer. Under `torch.vmap` or `torch.func.grad` it restores buffers of batch norms only. It leaves alone buffers
    that share memory with weights or overlap themselves. A lazy module first called inside initialises itself for good.
    """
    kept = KeptBuffers()
    with _calls_watched(kept):
        try:
            yield kept.restore
        finally:
            kept.restore()


class _Watching(threading.local):
    """The state of one thread, because other threads may be training models of their own."""

    def __init__(self) -> None:
        self.kept: list[KeptBuffers] = []
        self.depth = 0  # how deeply calls of modules are nested


_watching = _Watching()
_lock = threading.Lock()
_installed: list[Callable[[], None]] = []  # the function that removes the watched call; at most one for all threads
_users = 0


def _install() -> Callable[[], None]:
    """Start to watch the calls of modules; return a function that stops it.

    torch's global hooks will not do: a compiled module runs them inside its compiled code, so every registration
    triggers recompilation, until torch gives up on compiling at all.
    """
    plain_call = nn.Module.__call__

    def watched_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # A call during tracing lies inside a call that was already watched.
        if torch.compiler.is_compiling() or not _watching.kept:
            return plain_call(module, *args, **kwargs)
        outermost = _watching.depth == 0
        places = [(kept, kept.copy(module, inside=outermost)) for kept in _watching.kept]
        paused = isinstance(module, _BatchNorm) and module.track_running_stats and _is_wrapped(module.running_mean)
        _watching.depth += 1
        try:
            if paused:
                module.track_running_stats = False  # type: ignore[assignment]
            return plain_call(module, *args, **kwargs)
        finally:
            _watching.depth -= 1
            if paused:
                module.track_running_stats = True  # type: ignore[assignment]
            if outermost:
                for kept, had in places:
                    kept.note_exchanged(module, had)

    def uninstall() -> None:
        if nn.Module.__call__ is watched_call:  # otherwise another library has wrapped it, and may still call it
            nn.Module.__call__ = plain_call  # type: ignore[method-assign]

    nn.Module.__call__ = watched_call  # type: ignore[method-assign]
    return uninstall


@contextmanager
def _calls_watched(kept: KeptBuffers) -> Iterator[None]:
    """Copy the buffers of every module before this thread calls it."""
    global _users
    with _lock:
        if not _users:
            _installed.append(_install())
        _users += 1
    _watching.kept.append(kept)
    try:
        yield
    finally:
        _watching.kept.remove(kept)
        with _lock:
            _users -= 1
            if not _users:
                _installed.pop()()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and restore the mode of every module on exit.

    Buffers are restored too, because some modules change theirs even in evaluation mode.
    """
    training = [(module, module.training) for module in model.modules()]
    kept = KeptBuffers()
    places = kept.copy(model, inside=True)
    try:
        for module, _ in training:  # not eval(), which a module may override to do more
            module.training = False
        yield
    finally:
        for module, mode in training:
            module.training = mode
        kept.note_exchanged(model, places)
        kept.restore()
