"""Data sets from the 1,797 handwritten digits that scikit-learn ships: no download, minutes on a laptop.

They are made the way RotatedMNIST and ColoredMNIST are (Ghifary et al. 2015; Arjovsky et al. 2019; DomainBed):
every image is in one domain only. The assignment is fixed, so all runs of all methods see the same data.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shiftproof.data.dataset import DATASETS, DatasetEntry, Domain, DomainDataset
from shiftproof.randomness import generator

SIDE = 16
ANGLES = (0, 15, 30, 45, 60, 75)
COLOUR_FLIPS = {"plus90": 0.1, "plus80": 0.2, "minus90": 0.9}
LABEL_FLIP = 0.25


def _digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the digits as (1797, 8, 8) in [0, 1] with their labels, in a fixed shuffled order."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = generator("digits").permutation(len(digits.target))
    return digits.images[order] / 16.0, digits.target[order].astype(np.int64)


def _resized(images: NDArray[np.float64], angle: float) -> NDArray[np.uint8]:
    """Enlarge (n, 8, 8) images to 16 pixels a side and turn them counter-clockwise, to uint8 (n, 16, 16)."""
    import torch
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize, rotate

    enlarged = resize(torch.from_numpy(images)[:, None], [SIDE, SIDE], antialias=True)
    turned = rotate(enlarged, angle, interpolation=InterpolationMode.BILINEAR)[:, 0]
    pixels: NDArray[np.uint8] = (turned.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return pixels


def _fingerprint(domains: tuple[Domain, ...]) -> str:
    digest = hashlib.sha256()
    for domain in domains:
        digest.update(domain.images.tobytes())
        digest.update(domain.labels.tobytes())
    return digest.hexdigest()[:16]


def _refuse_folder(name: str, data_dir: Path | None, image_size: int | None) -> None:
    if data_dir is not None:
        raise ValueError(f"{name} is embedded: it takes no data folder (got {data_dir})")
    if image_size not in (None, SIDE):
        raise ValueError(f"{name} has images of {SIDE} x {SIDE} pixels; image size {image_size} is not offered")


def rotated_digits(data_dir: Path | None = None, image_size: int | None = None) -> DomainDataset:
    """Digits turned by 0, 15, 30, 45, 60 and 75 degrees; grey, 16 x 16, ten classes, about 300 a domain."""
    _refuse_folder("rotated_digits", data_dir, image_size)
    images, labels = _digits()
    domains = tuple(
        Domain(str(angle), _resized(images[i :: len(ANGLES)], angle)[:, None], labels[i :: len(ANGLES)])
        for i, angle in enumerate(ANGLES)
    )
    classes = tuple(str(digit) for digit in range(10))
    return DomainDataset("rotated_digits", domains, classes, False, _fingerprint(domains))


def colored_digits(data_dir: Path | None = None, image_size: int | None = None) -> DomainDataset:
    """Red and green digits whose colour is correlated with the label: +90 %, +80 % and, reversed, -90 %.

    The label is whether the digit is below 5, flipped with probability 0.25; the colour is the label, flipped
    with probability 0.1, 0.2 and 0.9. RGB images of 16 x 16 pixels whose blue channel is empty.
    """
    _refuse_folder("colored_digits", data_dir, image_size)
    images, digits = _digits()
    random = generator("colored_digits")
    labels = (digits < 5) ^ (random.random(len(digits)) < LABEL_FLIP)
    grey = _resized(images, 0)
    domains = []
    for i, (name, flip) in enumerate(COLOUR_FLIPS.items()):
        mine = slice(i, None, len(COLOUR_FLIPS))
        colour = labels[mine] ^ (random.random(len(labels[mine])) < flip)
        rgb = np.zeros((len(colour), 3, SIDE, SIDE), dtype=np.uint8)
        rgb[np.arange(len(colour)), colour.astype(np.int64)] = grey[mine]
        domains.append(Domain(name, rgb, labels[mine].astype(np.int64)))
    classes = ("at least 5", "below 5")
    return DomainDataset("colored_digits", tuple(domains), classes, False, _fingerprint(tuple(domains)))


DATASETS.register("rotated_digits", DatasetEntry(rotated_digits, photographs=False))
DATASETS.register("colored_digits", DatasetEntry(colored_digits, photographs=False))
