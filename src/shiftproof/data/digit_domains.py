"""Domains made of handwritten digits: rotated by an angle, or with misleading colours.

They are made as DomainBed makes RotatedMNIST and ColoredMNIST (Ghifary et al. 2015; Arjovsky et al. 2019): domain i
of k takes every k-th digit starting from the i-th, so that every digit is in one domain only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from shiftproof.base.randomness import generator
from shiftproof.data.dataset import DomainDataset
from shiftproof.data.domain import Domain

Pixel = TypeVar("Pixel", np.float64, np.uint8)

ANGLES = (0, 15, 30, 45, 60, 75)
COLOUR_FLIPS = {"plus90": 0.1, "plus80": 0.2, "minus90": 0.9}
LABEL_FLIP = 0.25


def rotated(
    name: str,
    images: NDArray[Pixel],
    digits: NDArray[np.int64],
    turned: Callable[[NDArray[Pixel], float], NDArray[np.uint8]],
) -> DomainDataset:
    """Make a data set of grey digits with ten classes and one domain per angle.

    Args:
        name: name of the data set.
        images: shape (n, height, width), in the order in which they are dealt to domains.
        digits: int64, shape (n,), 0 to 9.
        turned: rotates images counter-clockwise by an angle in degrees and returns uint8.
    """
    domains = tuple(
        Domain(str(angle), turned(images[i :: len(ANGLES)], angle)[:, None], digits[i :: len(ANGLES)])
        for i, angle in enumerate(ANGLES)
    )
    return DomainDataset(name, domains, tuple(str(digit) for digit in range(10)), "small_images", _fingerprint(domains))


def colored(name: str, images: NDArray[np.uint8], digits: NDArray[np.int64], channels: int) -> DomainDataset:
    """Make domains in which the colour agrees with the label in 90 %, 80 % and 10 % of the images.

    The label is whether the digit is below 5, flipped with probability 0.25; the colour (the one channel that is not
    empty: 0 or 1) is the label, flipped with probability 0.1, 0.2 and 0.9.

    Args:
        name: name of the data set, which alone determines the random numbers.
        images: uint8, shape (n, height, width), in the order in which they are dealt to domains.
        digits: int64, shape (n,), 0 to 9.
        channels: number of channels of the result, 2 or more.
    """
    random = generator(name)
    labels = (digits < 5) ^ (random.random(len(digits)) < LABEL_FLIP)
    domains = []
    for i, (domain, flip) in enumerate(COLOUR_FLIPS.items()):
        mine = slice(i, None, len(COLOUR_FLIPS))
        colour = labels[mine] ^ (random.random(len(labels[mine])) < flip)
        pixels = np.zeros((len(colour), channels, *images.shape[1:]), dtype=np.uint8)
        pixels[np.arange(len(colour)), colour.astype(np.int64)] = images[mine]
        domains.append(Domain(domain, pixels, labels[mine].astype(np.int64)))
    return DomainDataset(name, tuple(domains), ("at least 5", "below 5"), "small_images", _fingerprint(tuple(domains)))


def _fingerprint(domains: tuple[Domain, ...]) -> str:
    digest = hashlib.sha256()
    for domain in domains:
        digest.update(domain.inputs.tobytes())
        digest.update(domain.targets.tobytes())
    return digest.hexdigest()[:16]
