"""Passes through a model that leave no trace in it: in running statistics, other buffers, or its mode."""

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
"""In the place of a buffer that a module does not have."""


class KeptBuffers:
    """Copies of the buffers of modules, to put back what they hold now.

    What a tensor holds is put back into that tensor, whoever's it is: `torch.func.functional_call` lends modules the
    tensors of others. Which tensor a module has is put back only if a module exchanged it in its own call.
    """

    def __init__(self) -> None:
        self._values: dict[int, tuple[Tensor, Tensor]] = {}  # by id: tensors, which are so kept alive, and copies
        self._exchanged: dict[_Place, tuple[object, object]] = {}  # what was there first, and what is there now
        self._initialising: set[nn.Module] = set()  # lazy modules, whose first call counts

    def copy(self, module: nn.Module, *, inside: bool) -> dict[_Place, object]:
        """Copy a module's buffers that are not copied yet, and those of all modules ``inside``; return which it has."""
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
                if _memory(buffer) not in weights:  # else it is moved with the weights, as by GGA's search
                    self._values[id(buffer)] = buffer, buffer.detach().clone()
        return places

    def note_exchanged(self, module: nn.Module, places: dict[_Place, object]) -> None:
        """Note which buffers of a module, and of all inside it, are others than those that `copy` returned."""
        parts = (part for part in module.modules() if part not in self._initialising)
        now = {(part, name): buffer for part in parts for name, buffer in part._buffers.items()}
        for place in places.keys() | now.keys():
            before, after = places.get(place, _ABSENT), now.get(place, _ABSENT)
            if before is not after:
                first, last = self._exchanged.get(place, (before, before))
                self._exchanged[place] = first if last is before else before, after

    def restore(self) -> None:
        """Put everything back."""
        for buffer, value in self._values.values():
            if buffer.shape == value.shape:
                buffer.data.copy_(value)  # not a new version of it: graphs from before see what they saw
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
    """Return whether a buffer can be put back: not one of a transform of torch.func, nor one expanded over itself."""
    overlaps = any(stride == 0 and size > 1 for stride, size in zip(buffer.stride(), buffer.shape, strict=True))
    return not _is_wrapped(buffer) and not overlaps


def _is_wrapped(tensor: Tensor | None) -> bool:
    return tensor is not None and torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _memory(tensor: Tensor) -> int | None:
    """Return the address of the memory that a tensor lies in; None if it has none of its own."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta or is_lazy(tensor) or _is_wrapped(tensor):
        return None
    return tensor.untyped_storage().data_ptr()


@contextmanager
def frozen_statistics() -> Iterator[Callable[[], None]]:
    """Leave the buffers of all modules that this thread calls inside as they are.

    The modules compute what they always do: batch norms normalise by their batch, and the power iteration of spectral
    norms goes one step on. On leaving, every buffer holds what it held before, be it a running mean and variance, a
    count of batches, the vectors of a spectral norm, a codebook or what an observer of ranges has seen. So backward
    passes belong inside. Gives a function that puts the buffers back at once, between passes that are to be equal.

    It watches the calls of all modules, so its caller needs no handle on the model. What is outside of them it does
    not see: a compiled function around the model (unlike a compiled model), a replayed CUDA graph, state that is no
    buffer. Buffers under `torch.vmap` or `torch.func.grad` are seen in batch norms only. Those that lie in the memory
    of weights, or are expanded over themselves, are left alone. A lazy module that is first called inside initialises
    itself, and counts.
    """
    kept = KeptBuffers()
    with _calls_watched(kept):
        try:
            yield kept.restore
        finally:
            kept.restore()


class _Watching(threading.local):
    """What a thread watches: others may train models of their own meanwhile."""

    def __init__(self) -> None:
        self.kept: list[KeptBuffers] = []
        self.depth = 0  # of calls of modules within calls of modules


_watching = _Watching()
_lock = threading.Lock()
_installed: list[Callable[[], None]] = []  # what takes the watched call away; one for all threads
_users = 0


def _install() -> Callable[[], None]:
    """Watch the calls of modules; return what ends that.

    Not by torch's global hooks: a compiled module runs these inside of what is compiled, which they have compiled anew
    every time they are registered, until it is no longer compiled at all.
    """
    plain_call = nn.Module.__call__

    def watched_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # What is traced is inside of a call that was seen.
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
        if nn.Module.__call__ is watched_call:  # else another library has put its own over it, which may call ours
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
    """Put a model into evaluation mode; afterwards every module is in the mode that it was in.

    Buffers hold afterwards what they held, for there are modules that count in this mode too.
    """
    training = [(module, module.training) for module in model.modules()]
    kept = KeptBuffers()
    places = kept.copy(model, inside=True)
    try:
        for module, _ in training:  # not by eval(), which a module may override to do more
            module.training = False
        yield
    finally:
        for module, mode in training:
            module.training = mode
        kept.note_exchanged(model, places)
        kept.restore()
