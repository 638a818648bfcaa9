"""Devices."""

from __future__ import annotations

import torch


def check_device(device: str) -> None:
    """Raise ValueError unless torch can use the device here."""
    try:
        float(torch.zeros(1, device=device))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {device} is not available here: {reason}") from error
