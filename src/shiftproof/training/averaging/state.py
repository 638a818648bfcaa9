"""Weights and buffers by name, and how an average moves towards them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

State = dict[str, Tensor]
"""Weights and buffers by name, as in a module's ``state_dict()``."""


def copy_state(state: Mapping[str, Tensor]) -> State:
    """Return a detached copy of a state."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def blend(average: State, state: Mapping[str, Tensor], weight: float) -> None:
    """Move an average towards a state, in place, by the fraction ``weight`` of the way."""
    for name, tensor in average.items():
        if tensor.is_floating_point():
            tensor.lerp_(state[name].detach(), weight)
        else:
            tensor.copy_(state[name])


def to_device_of(like: Mapping[str, Tensor], state: State) -> State:
    """Return a state with every tensor on the device of its namesake."""
    return {name: tensor.to(like[name].device) for name, tensor in state.items()}
