"""Check an optimizer's state against its parameters: torch compares neither shapes nor types when it loads one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def labelled(optimizer: Optimizer) -> Iterator[tuple[Tensor, dict[str, Any], str]]:
    """Yield the parameters in order, each with its group and a label for messages: its name, or else its index."""
    index = 0
    for group in optimizer.param_groups:
        for p, name in zip(group["params"], names_of(group), strict=True):
            yield p, group, f"parameter {index}" if name is None else f"parameter '{name}'"
            index += 1


def names_of(group: Mapping[str, Any]) -> list[str | None]:
    """Return the names of a group's parameters; None for unnamed ones, such as those appended to its list later."""
    count = len(group["params"])
    return [*group.get("param_names", []), *[None] * count][:count]


def check_loaded_state(optimizer: Optimizer, state_dict: Mapping[str, Any], moments: Sequence[str]) -> None:
    """Raise ValueError unless a state dict fits an optimizer's parameters.

    Args:
        optimizer: the optimizer that is to load the state.
        state_dict: the state, as `Optimizer.load_state_dict` takes it. torch itself reports wrong numbers of groups or
            parameters.
        moments: names of the entries that are tensors of the parameter's shape.
    """
    saved = [index for group in state_dict["param_groups"] for index in group["params"]]
    for index, (p, _, label) in zip(saved, labelled(optimizer), strict=False):
        entries = state_dict["state"].get(index)
        if not entries:
            continue
        for name in moments:
            moment = entries.get(name)
            reason = mismatch(moment, p) if isinstance(moment, Tensor) else "missing, or not a tensor"
            if reason is None and moment.is_complex() and not p.is_complex():
                reason = "complex, but the parameter is real"
            if reason is not None:
                raise ValueError(
                    f"{name} of {label} is {reason}: the state belongs to other parameters, "
                    "or to the same ones in another order"
                )
        step = entries.get("step")
        count = float(step) if isinstance(step, int | float) or (isinstance(step, Tensor) and step.numel() == 1) else -1
        if not 0 <= count < 2**32 - 1:
            raise ValueError(f"the step count of {label} is {step}; it must be one number, at least 0 and below 2^32")


def mismatch(tensor: Tensor, p: Tensor) -> str | None:
    """Return why a tensor cannot be updated element by element with a parameter; None if it can."""
    if tensor.layout is not torch.strided:
        return f"of layout {tensor.layout}"
    if tensor.shape != p.shape:
        return f"of shape {tuple(tensor.shape)}, but the parameter is of shape {tuple(p.shape)}"
    return None
