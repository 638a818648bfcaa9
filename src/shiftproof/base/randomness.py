"""Randomness as a function: keyed generators, DomainBed's seeds and the Philox stream of the optimizers.

Nothing here keeps state. A draw is determined by its key alone (seed, step, domain, ...), so a run can stop
anywhere and continue, and evaluating it cannot disturb its training.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)


def seed_hash(*key: object) -> int:
    """Return the seed that DomainBed derives from a key: the md5 of ``str(key)``, modulo 2**31.

    Examples:
        >>> seed_hash("PACS", ("sketch",), 0) == seed_hash("PACS", ("sketch",), 0)
        True
    """
    digest = hashlib.md5(str(key).encode(), usedforsecurity=False).hexdigest()
    return int(digest, 16) % 2**31


def generator(*key: int | str) -> np.random.Generator:
    """Return a NumPy generator that depends on nothing but ``key``.

    Examples:
        >>> float(generator(0, "batches", 7).random()) == float(generator(0, "batches", 7).random())
        True
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def torch_seed(*key: int | str) -> int:
    """Return a seed for torch's generators, in [0, 2**63), that depends on nothing but ``key``."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the torch generators that a network on a device draws from."""
    # torch.manual_seed would format a stack trace per call where CUDA is built in but not initialised
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def philox(seed: int, counter: tuple[Tensor, Tensor, Tensor, int | Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32 with 10 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

    Args:
        seed: the 64-bit key.
        counter: the four 32-bit counter words, lowest first: three int64 tensors of one shape, values in
            [0, 2**32), and the last as an integer or a scalar tensor, shared by all elements.

    Returns:
        Four int64 tensors of that shape with values in [0, 2**32), equal on every device.
    """
    c0, c1, c2 = (word.clone() for word in counter[:3])
    last = counter[3]
    c3 = last.to(c0.dtype).expand_as(c0).clone() if isinstance(last, Tensor) else torch.full_like(c0, last & _WORD)
    product0, product1 = torch.empty_like(c0), torch.empty_like(c2)
    key0, key1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        # int64 products wrap, but keep the low 64 bits of the unsigned product, which the shift and mask read.
        torch.mul(c0, _MULTIPLIERS[0], out=product0)
        torch.mul(c2, _MULTIPLIERS[1], out=product1)
        # Only factors must be 32-bit words: the upper halves of c1 and c3 are masked out with the shift's sign bits.
        torch.bitwise_right_shift(product1, 32, out=c0).bitwise_xor_(c1).bitwise_xor_(key0).bitwise_and_(_WORD)
        torch.bitwise_right_shift(product0, 32, out=c2).bitwise_xor_(c3).bitwise_xor_(key1).bitwise_and_(_WORD)
        c1, product1 = product1, c1
        c3, product0 = product0, c3
        key0, key1 = (key0 + _KEY_INCREMENTS[0]) & _WORD, (key1 + _KEY_INCREMENTS[1]) & _WORD
    return c0, c1.bitwise_and_(_WORD), c2, c3.bitwise_and_(_WORD)
