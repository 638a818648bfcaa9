"""Sums over many elements, in more than the elements' own precision."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_BLOCK = {"cpu": 2**16}
"""Elements that are converted at once: on a CPU what its caches hold."""
_LARGE_BLOCK = 2**24


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the scalar product of two tensors of one shape, a scalar of float64.

    In their own precision a sum of many elements loses what is compared: bfloat16 has two to three digits, and the
    errors of a float32 sum grow with the elements. The elements are converted block by block. On MPS, which has no
    float64, the sum is in float32.
    """
    dtype = torch.float32 if a.device.type == "mps" else torch.float64
    size = _BLOCK.get(a.device.type, _LARGE_BLOCK)
    total = torch.zeros((), dtype=dtype, device=a.device)
    for x, y in zip(torch.split(a.reshape(-1), size), torch.split(b.reshape(-1), size), strict=True):
        exact = x.to(dtype)
        total += torch.dot(exact, exact if a is b else y.to(dtype))
    return total


def norm(a: Tensor) -> float:
    """Return the Euclidean norm of a tensor."""
    return math.sqrt(float(dot(a, a)))


def at_least_float32(a: Tensor) -> Tensor:
    """Return a tensor in float32 if it is of less, such as bfloat16, else as it is."""
    return a.to(torch.promote_types(a.dtype, torch.float32))
