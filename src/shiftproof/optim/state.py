"""What an optimizer keeps of a parameter, held against the parameter: torch compares neither shapes nor types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def labelled(optimizer: Optimizer) -> Iterator[tuple[Tensor, dict[str, Any], str]]:
    """Yield the parameters in order, each with its group and what messages call it: its name if it has one."""
    index = 0
    for group in optimizer.param_groups:
        for p, name in zip(group["params"], names_of(group), strict=True):
            yield p, group, f"parameter {index}" if name is None else f"parameter '{name}'"
            index += 1


def names_of(group: Mapping[str, Any]) -> list[str | None]:
    """Return the names of a group's parameters; None for those that have none, as what was appended to its list."""
    count = len(group["params"])
    return [*group.get("param_names", []), *[None] * count][:count]


def check_loaded_state(optimizer: Optimizer, state_dict: Mapping[str, Any], moments: Sequence[str]) -> None:
    """Raise ValueError unless a state dict could be that of an optimizer's own parameters.

    Args:
        optimizer: whose state is to be loaded.
        state_dict: the state, as `Optimizer.load_state_dict` takes it. Where it has other numbers of groups or
            parameters, torch says so.
        moments: names of the entries that are tensors of the parameter's shape.
    """
    saved = [index for group in state_dict["param_groups"] for index in group["params"]]
    for index, (p, _, label) in zip(saved, labelled(optimizer), strict=False):
        entries = state_dict["state"].get(index)
        if not entries:
            continue
        for name in moments:
            moment = entries.get(name)
            reason = mismatch(moment, p) if isinstance(moment, Tensor) else "missing, or no tensor"
            if reason is None and moment.is_complex() and not p.is_complex():
                reason = "complex, and the parameter is real"
            if reason is not None:
                raise ValueError(
                    f"{name} of {label} is {reason}: the state to load is of other parameters, "
                    "or of the same in another order"
                )
        step = entries.get("step")
        count = float(step) if isinstance(step, int | float) or (isinstance(step, Tensor) and step.numel() == 1) else -1
        if not 0 <= count < 2**32 - 1:
            raise ValueError(f"the step count of {label} is {step}, not one number of at least 0, below 2^32")


def mismatch(tensor: Tensor, p: Tensor) -> str | None:
    """Say why a tensor cannot be updated beside a parameter element by element; None if it can."""
    if tensor.layout is not torch.strided:
        return f"of layout {tensor.layout}"
    if tensor.shape != p.shape:
        return f"of shape {tuple(tensor.shape)}, and the parameter of shape {tuple(p.shape)}"
    return None
