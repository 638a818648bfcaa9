"""The optimizers' random numbers: each element's draw depends on (seed, step, position, element) and nothing else.

Philox4x32-10 with key = (seed low word, seed high word) and counter = (block low 32 bits, block bits 32 to 59 |
stream << 28, position, step). Elements are counted in the logical order of the whole tensor, so replicas, shards,
memory formats and implementations draw the same numbers, and torch's generators are neither read nor moved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from shiftproof.base.randomness import philox
from shiftproof.base.sharding import Shard, element_indices

MASK_STREAM = 0
NOISE_STREAM = 1
ROUNDING_STREAM = 2
SIGN_STREAM = 3
MASK_LEVELS = 65536
_MASK_PER_BLOCK = 8
_NOISE_PER_BLOCK = 4
_SIGNS_PER_BLOCK = 128
_CACHED_BLOCKS = 2**16  # blocks per pass and thread on a CPU, so that the rounds' temporaries stay in its cache


class Place(NamedTuple):
    """A tensor's place in the random stream, which selects its draws.

    Attributes:
        shape: shape of the local tensor.
        position: index of the parameter, counted over all groups.
        shard: where the local tensor lies in the whole; None if it is the whole.
    """

    shape: Sequence[int]
    position: int
    shard: Shard | None = None


def mask_threshold(dropout: float) -> int:
    """Return the smallest halfword that keeps an element: ``dropout`` in units of 1 / 65536."""
    return round(dropout * MASK_LEVELS)


def draw_masks(
    places: Sequence[Place], seed: int, step: int | Tensor, threshold: int, device: torch.device
) -> list[Tensor]:
    """Draw which elements are kept: boolean tensors, each True with probability 1 - threshold / 65536."""

    def kept(words: Sequence[Tensor]) -> Tensor:
        halfwords = torch.stack([word.to(torch.int32) for word in words], dim=1).view(torch.int16)  # low before high
        halfwords.bitwise_xor_(-(2**15))  # less 2^15, so that signed numbers have the order of the unsigned
        # In place, because a comparison is not vectorised where it fills a tensor of truth values.
        return torch.ge(halfwords, threshold - 2**15, out=halfwords).to(torch.bool)

    return _draw(MASK_STREAM, _MASK_PER_BLOCK, kept, places, seed, step, device)


def draw_normals(
    places: Sequence[Place], seed: int, step: int | Tensor, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Draw standard normal numbers by the Box-Muller transformation, computed in ``dtype``."""

    def box_muller(words: Sequence[Tensor]) -> Tensor:
        uniform = [((word >> 9).to(dtype) + 0.5) * 2.0**-23 for word in words]
        normals = []
        for first, second in ((uniform[0], uniform[1]), (uniform[2], uniform[3])):
            radius, angle = torch.sqrt(-2 * torch.log(first)), 2 * math.pi * second
            normals += [radius * torch.cos(angle), radius * torch.sin(angle)]
        return torch.stack(normals, dim=1)

    return _draw(NOISE_STREAM, _NOISE_PER_BLOCK, box_muller, places, seed, step, device)


def draw_rounding_words(places: Sequence[Place], seed: int, step: int | Tensor, device: torch.device) -> list[Tensor]:
    """Draw 32 random bits per element, as int64: the low 16 round the first moment, the high 16 the second."""

    def stacked(words: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(words), dim=1)

    return _draw(ROUNDING_STREAM, _NOISE_PER_BLOCK, stacked, places, seed, step, device)


def draw_signs(
    places: Sequence[Place], seed: int, step: int | Tensor, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Draw 1 or -1 with equal probability, from one random bit per element."""

    def signs(words: Sequence[Tensor]) -> Tensor:
        bits = torch.stack(list(words), dim=1)[:, :, None] >> torch.arange(32, device=device)
        return ((bits & 1) * 2 - 1).flatten(1).to(dtype)

    return _draw(SIGN_STREAM, _SIGNS_PER_BLOCK, signs, places, seed, step, device)


def _draw(
    stream: int,
    per_block: int,
    values_of: Callable[[Sequence[Tensor]], Tensor],
    places: Sequence[Place],
    seed: int,
    step: int | Tensor,
    device: torch.device,
) -> list[Tensor]:
    """Draw one value per element; ``values_of`` maps the four words of each block to values (blocks, per_block)."""
    starts = [_run_start(place) for place in places]
    indices = [
        element_indices(place.shape, place.shard, device) if start is None else None
        for place, start in zip(places, starts, strict=True)
    ]
    sizes = [math.prod(place.shape) for place in places]
    # Of elements that are consecutive in the whole, a block serves several; else each has one of its own.
    counts = [
        size if start is None else -(-(start % per_block + size) // per_block)
        for size, start in zip(sizes, starts, strict=True)
    ]
    block, position = torch.empty(2, sum(counts), dtype=torch.int64, device=device)
    parts = zip(places, starts, indices, torch.split(block, counts), torch.split(position, counts), strict=True)
    for place, start, index, own_block, own_position in parts:
        if start is None:
            torch.div(cast(Tensor, index), per_block, rounding_mode="floor", out=own_block)
        else:
            first = start // per_block
            torch.arange(first, first + len(own_block), out=own_block, device=device)
        own_position.fill_(place.position)
    chunk = _CACHED_BLOCKS * torch.get_num_threads() if device.type == "cpu" else max(len(block), 1)
    chunks = zip(torch.split(block, chunk), torch.split(position, chunk), strict=True)
    values = torch.cat([values_of(_words(stream, *one, seed, step)) for one in chunks])
    drawn = []
    for part, start, index, size, place in zip(
        torch.split(values, counts), starts, indices, sizes, places, strict=True
    ):
        if start is None:
            own = part.gather(1, (cast(Tensor, index) % per_block)[:, None])
        else:
            own = part.flatten()[start % per_block :][:size]
        drawn.append(own.view(tuple(place.shape)))
    return drawn


def _run_start(place: Place) -> int | None:
    """Return the index in the whole of a tensor's first element; None if its elements are not consecutive there."""
    if place.shard is None:
        return 0
    shape, whole = place.shape, place.shard.shape
    cut = max((i for i, (size, total) in enumerate(zip(shape, whole, strict=True)) if size != total), default=0)
    if any(size != 1 for size in shape[:cut]):
        return None
    return sum(first * math.prod(whole[i + 1 :]) for i, first in enumerate(place.shard.offset))


def _words(stream: int, block: Tensor, position: Tensor, seed: int, step: int | Tensor) -> tuple[Tensor, ...]:
    """Draw the four words of each block."""
    high = ((block >> 32) & 0x0FFFFFFF) | (stream << 28)
    return philox(seed, (block & 0xFFFFFFFF, high, position, step))
