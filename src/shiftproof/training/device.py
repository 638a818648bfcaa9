"""Checks of device names and of the devices themselves."""

from __future__ import annotations

import torch


def check_device_name(device: str) -> None:
    """Raise ValueError unless torch knows this kind of device; this machine need not have one."""
    try:
        torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device '{device}': {_first_line(error)}") from error


def check_device(device: str) -> torch.device:
    """Return the named device; raise ValueError unless torch can use it on this machine."""
    check_device_name(device)
    try:
        float(torch.zeros(1, device=device))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {device} is not available here: {_first_line(error)}") from error
    return torch.device(device)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
