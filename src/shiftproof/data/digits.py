"""Data sets made of the 1,797 handwritten digits in scikit-learn: no download, minutes of training on a laptop.

The assignment of digits to domains is fixed, so that all runs of all methods see the same data.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shiftproof.base.field_error import FieldError
from shiftproof.base.randomness import generator
from shiftproof.data.dataset import DATASETS, DatasetEntry, DomainDataset, refuse_folder
from shiftproof.data.digit_domains import colored, rotated

SIDE = 16


def _digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the digits as (1797, 8, 8) in [0, 1] with their labels, in a fixed shuffled order."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = generator("digits").permutation(len(digits.target))
    return digits.images[order] / 16.0, digits.target[order].astype(np.int64)


def _resized(images: NDArray[np.float64], angle: float) -> NDArray[np.uint8]:
    """Enlarge (n, 8, 8) images to 16 x 16 pixels and rotate them counter-clockwise; return uint8 (n, 16, 16)."""
    import torch
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize, rotate

    enlarged = resize(torch.from_numpy(images)[:, None], [SIDE, SIDE], antialias=True)
    turned = rotate(enlarged, angle, interpolation=InterpolationMode.BILINEAR)[:, 0]
    pixels: NDArray[np.uint8] = (turned.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return pixels


def _refuse_options(name: str, data_dir: Path | None, image_size: int | None) -> None:
    refuse_folder(name, data_dir)
    if image_size not in (None, SIDE):
        raise FieldError(
            "image_size", f"{name} has images of {SIDE} x {SIDE} pixels; image size {image_size} is not available"
        )


def rotated_digits(data_dir: Path | None = None, image_size: int | None = None) -> DomainDataset:
    """Digits rotated by 0, 15, 30, 45, 60 and 75 degrees; grey, 16 x 16, ten classes, about 300 per domain."""
    _refuse_options("rotated_digits", data_dir, image_size)
    return rotated("rotated_digits", *_digits(), _resized)


def colored_digits(data_dir: Path | None = None, image_size: int | None = None) -> DomainDataset:
    """Red and green digits whose colour is correlated with the label: +90 %, +80 % and, reversed, -90 %.

    The label is whether the digit is below 5, flipped with probability 0.25; the colour is the label, flipped
    with probability 0.1, 0.2 and 0.9. RGB images of 16 x 16 pixels whose blue channel is empty.
    """
    _refuse_options("colored_digits", data_dir, image_size)
    images, digits = _digits()
    return colored("colored_digits", _resized(images, 0), digits, channels=3)


DATASETS.register(
    "rotated_digits", DatasetEntry(rotated_digits, kind="small_images", embedded=True, model="small_conv")
)
DATASETS.register(
    "colored_digits", DatasetEntry(colored_digits, kind="small_images", embedded=True, model="small_conv")
)
