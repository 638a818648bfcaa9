"""GENIE's random numbers: what an element draws depends on (seed, step, position, element) and nothing else.

Philox4x32-10 with key = (seed low word, seed high word) and counter = (block low 32 bits, block bits 32 to 59 |
stream << 28, position, step). Replicas, shards and implementations therefore draw the same numbers, and torch's
generators are neither read nor moved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from shiftproof.randomness import philox

MASK_STREAM = 0
NOISE_STREAM = 1
MASK_LEVELS = 65536
_MASK_PER_BLOCK = 8
_NOISE_PER_BLOCK = 4
_CACHED_BLOCKS = 2**14  # blocks per pass on a CPU, so that the rounds' temporaries stay in its cache


def mask_threshold(dropout: float) -> int:
    """Return the halfword from which an element is kept: ``dropout`` in units of 1 / 65536."""
    return round(dropout * MASK_LEVELS)


def _words(
    stream: int,
    per_block: int,
    sizes: Sequence[int],
    positions: Sequence[int],
    seed: int,
    step: int,
    device: torch.device,
) -> tuple[list[Tensor], list[int]]:
    """Draw all blocks of several tensors at once; also return the number of blocks of each."""
    counts = [-(-size // per_block) for size in sizes]
    block = torch.cat([torch.arange(count, device=device) for count in counts])
    position = torch.cat(
        [torch.full((count,), position, device=device) for count, position in zip(counts, positions, strict=True)]
    )
    high = ((block >> 32) & 0x0FFFFFFF) | (stream << 28)
    low = block & 0xFFFFFFFF
    chunk = _CACHED_BLOCKS if device.type == "cpu" else len(block)
    chunks = [
        philox(seed, (*counter, step))
        for counter in zip(*(torch.split(word, chunk) for word in (low, high, position)), strict=True)
    ]
    words = [torch.cat(word) for word in zip(*chunks, strict=True)]
    return words, counts


def _unpack(values: Tensor, per_block: int, counts: Sequence[int], shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Cut (blocks, per_block) values into one tensor per shape."""
    return [
        part.flatten()[: shape.numel()].view(shape)
        for part, shape in zip(torch.split(values.view(-1, per_block), list(counts)), shapes, strict=True)
    ]


def draw_masks(
    shapes: Sequence[torch.Size],
    positions: Sequence[int],
    seed: int,
    step: int,
    threshold: int,
    device: torch.device,
) -> list[Tensor]:
    """Draw which elements are kept: boolean tensors, each True with probability 1 - threshold / 65536."""
    sizes = [shape.numel() for shape in shapes]
    words, counts = _words(MASK_STREAM, _MASK_PER_BLOCK, sizes, positions, seed, step, device)
    halfwords = torch.stack([half for word in words for half in (word & 0xFFFF, word >> 16)], dim=1)
    return _unpack(halfwords >= threshold, _MASK_PER_BLOCK, counts, shapes)


def draw_normals(
    shapes: Sequence[torch.Size],
    positions: Sequence[int],
    seed: int,
    step: int,
    dtype: torch.dtype,
    device: torch.device,
) -> list[Tensor]:
    """Draw standard normal numbers by Box and Muller's transformation, computed in ``dtype``."""
    sizes = [shape.numel() for shape in shapes]
    words, counts = _words(NOISE_STREAM, _NOISE_PER_BLOCK, sizes, positions, seed, step, device)
    uniform = [((word >> 9).to(dtype) + 0.5) * 2.0**-23 for word in words]
    normals = []
    for first, second in ((uniform[0], uniform[1]), (uniform[2], uniform[3])):
        radius, angle = torch.sqrt(-2 * torch.log(first)), 2 * math.pi * second
        normals += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return _unpack(torch.stack(normals, dim=1), _NOISE_PER_BLOCK, counts, shapes)
