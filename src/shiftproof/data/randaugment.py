"""RandAugment: two operations a picture, drawn from fourteen, at one strength.

The operations and their strengths are torchvision's, of `torchvision.transforms.v2.RandAugment` with its defaults; the
numbers are drawn by ours, so that a run can be killed anywhere. Crop and flip are those of `augment`.

Source: Cubuk, Zoph, Shlens and Le, "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space",
NeurIPS 2020 (arXiv 1909.13719).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shiftproof.base.randomness import generator
from shiftproof.data.augmentation import Augmentations, augment, draw_augmentations
from shiftproof.data.transfer import on_device

OPERATIONS_PER_PICTURE = 2
STRENGTH = 9 / 30
"""Share of an operation's greatest strength."""
GREATEST_TRANSLATION = 150 / 331
"""Of the side of a picture."""


@dataclass(frozen=True)
class RandAugmentations:
    """The random numbers drawn for n pictures.

    Attributes:
        crops: boxes and flips, without changes of colour.
        operations: int64, shape (n, 2): indices into `OPERATIONS`.
        signs: int64, shape (n, 2): -1 or 1, the direction of those that have one.
    """

    crops: Augmentations
    operations: NDArray[np.int64]
    signs: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.operations)

    def __getitem__(self, positions: slice | NDArray[np.int64]) -> RandAugmentations:
        """Return the numbers of the pictures at some positions."""
        return RandAugmentations(self.crops[positions], self.operations[positions], self.signs[positions])


def draw_randaugmentations(count: int, size: int, seed: int, step: int, domain: int) -> RandAugmentations:
    """Draw the numbers for one domain's pictures in one step; the arguments are those of `draw_augmentations`."""
    crops = draw_augmentations(count, size, seed, step, domain)
    still = np.tile(np.array([1.0, 1.0, 1.0, 0.0]), (count, 1))
    crops = replace(crops, factors=still, greys=np.zeros(count, dtype=bool))
    rows = generator(seed, "randaugment", step, domain).random((count, 2 * OPERATIONS_PER_PICTURE))
    operations = (rows[:, :OPERATIONS_PER_PICTURE] * len(OPERATIONS)).astype(np.int64)
    signs = np.where(rows[:, OPERATIONS_PER_PICTURE:] < 0.5, -1, 1)
    return RandAugmentations(crops, operations, signs)


def randaugment(images: Tensor, draws: RandAugmentations) -> Tensor:
    """Crop, mirror and change a batch of pictures, each with its own numbers.

    Args:
        images: uint8 in [0, 255], shape (n, 3, size, size), on any device.
        draws: the numbers of these n pictures.

    Returns:
        float32 in [0, 1], shape (n, 3, size, size), on the pictures' device.

    Raises:
        ValueError: the pictures' shape does not match the numbers.
    """
    changed = (augment(images, draws.crops) * 255).round_().to(torch.uint8)
    for turn in range(OPERATIONS_PER_PICTURE):
        # Pictures with one operation in one direction are changed together.
        keys = 2 * draws.operations[:, turn] + (draws.signs[:, turn] > 0)
        for key in np.unique(keys).tolist():
            rows = on_device(np.flatnonzero(keys == key), images.device)
            changed[rows] = _changed(changed[rows], OPERATIONS[key // 2], STRENGTH if key % 2 else -STRENGTH)
    return changed.float() / 255


OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "saturation",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
"""Names of the operations."""


def _changed(images: Tensor, operation: str, strength: float) -> Tensor:
    """Change uint8 pictures (n, 3, h, w); the sign of a strength in [-1, 1] is the direction of what has one."""
    from torchvision.transforms.v2 import functional

    height, width = images.shape[-2:]
    shear = math.degrees(math.atan(0.3 * strength))
    result: Tensor = images
    match operation:
        case "shear_x":
            result = functional.affine(images, 0.0, [0, 0], 1.0, [shear, 0.0], center=[0, 0])
        case "shear_y":
            result = functional.affine(images, 0.0, [0, 0], 1.0, [0.0, shear], center=[0, 0])
        case "translate_x":
            result = functional.affine(images, 0.0, [int(GREATEST_TRANSLATION * width * strength), 0], 1.0, [0.0, 0.0])
        case "translate_y":
            result = functional.affine(images, 0.0, [0, int(GREATEST_TRANSLATION * height * strength)], 1.0, [0.0, 0.0])
        case "rotate":
            result = functional.rotate(images, 30 * strength)
        case "brightness":
            result = functional.adjust_brightness(images, 1 + 0.9 * strength)
        case "saturation":
            result = functional.adjust_saturation(images, 1 + 0.9 * strength)
        case "contrast":
            result = functional.adjust_contrast(images, 1 + 0.9 * strength)
        case "sharpness":
            result = functional.adjust_sharpness(images, 1 + 0.9 * strength)
        case "posterize":
            result = functional.posterize(images, 8 - round(4 * abs(strength)))
        case "solarize":
            result = functional.solarize(images, 255 * (1 - abs(strength)))
        case "autocontrast":
            result = functional.autocontrast(images)
        case "equalize":
            result = functional.equalize(images)
    return result
