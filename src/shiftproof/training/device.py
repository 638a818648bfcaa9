"""Devices."""

from __future__ import annotations

import torch


def check_device(device: str) -> None:
    """Raise ValueError unless torch can use the device here."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device} is not available here: {str(error).splitlines()[0]}") from error
