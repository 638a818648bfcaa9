"""Evaluate a model without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from shiftproof.frozen_statistics import KeptBuffers


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
