"""Sums over many elements, in higher precision than the elements have."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_BLOCK = {"cpu": 2**16}
"""Number of elements to convert at once, by device type; on a CPU they must fit its caches."""
_LARGE_BLOCK = 2**24


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the scalar product of two tensors of equal shape as a float64 scalar.

    Sums in the elements' own precision are too coarse to compare: bfloat16 has two to three digits, and the error of a
    float32 sum grows with the number of elements. The elements are converted block by block. On MPS, which has no
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
    """Convert a tensor of lower precision, such as bfloat16, to float32; return others unchanged."""
    return a.to(torch.promote_types(a.dtype, torch.float32))
