"""DomainBed's augmentation of photographs: random numbers drawn on the CPU, applied to a batch on its own device.

The operations are torchvision's in floating point, and the tests compare the two. They work on batches here, so that
data do not hold up a step: on one CPU thread, 24 images of 112 x 112 take a third to a quarter of the time that
torchvision's functional transforms need image by image (kornia's hue alone takes as long as torchvision's). Most of
the gain is in the crop and the hue.

DomainBed crops the original file; here the crop is taken from the cached image, at the training size.

Source: Gulrajani and Lopez-Paz, "In Search of Lost Domain Generalization", ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shiftproof.base.randomness import generator
from shiftproof.data.transfer import on_device

CROP_SCALE = (0.7, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
CROP_TRIES = 10
FLIP_PROBABILITY = 0.5
JITTER = 0.3
GREY_PROBABILITY = 0.1


@dataclass(frozen=True)
class Augmentations:
    """The random numbers drawn for n images.

    Attributes:
        size: side of the images, in pixels.
        boxes: int64, shape (n, 4): top, left, height and width of the crop, in pixels.
        flips: bool, shape (n,): whether the crop is mirrored.
        factors: float64, shape (n, 4): torchvision's factors of brightness, contrast, saturation and hue.
        orders: int64, shape (n, 4): the columns of `factors` in the order of their use.
        greys: bool, shape (n,): whether the image is turned grey in the end.
    """

    size: int
    boxes: NDArray[np.int64]
    flips: NDArray[np.bool_]
    factors: NDArray[np.float64]
    orders: NDArray[np.int64]
    greys: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.flips)

    def __getitem__(self, positions: slice | NDArray[np.int64]) -> Augmentations:
        """Return the numbers of the images at some positions, such as a rank's part or another order."""
        return Augmentations(
            self.size,
            self.boxes[positions],
            self.flips[positions],
            self.factors[positions],
            self.orders[positions],
            self.greys[positions],
        )


def draw_augmentations(count: int, size: int, seed: int, step: int, domain: int) -> Augmentations:
    """Draw the numbers for one domain's images in one step.

    The numbers for a position depend neither on `count` nor on other positions.

    Args:
        count: number of images.
        size: side of the images, in pixels.
        seed: the run's seed.
        step: number of the step, from 1.
        domain: position of the domain in the data set.
    """
    # One row of uniform numbers per position, each number used once.
    rows = generator(seed, "augmentation", step, domain).random((count, 2 * CROP_TRIES + 12))
    areas, ratios, rest = np.split(rows, [CROP_TRIES, 2 * CROP_TRIES], axis=1)
    corners, flips, jitters, orders, greys = np.split(rest, [2, 3, 7, 11], axis=1)
    return Augmentations(
        size=size,
        boxes=_crop_boxes(areas, ratios, corners, size),
        flips=flips[:, 0] < FLIP_PROBABILITY,
        factors=(1, 1, 1, 0) + JITTER * (2 * jitters - 1),
        orders=np.argsort(orders, axis=1, kind="stable"),
        greys=greys[:, 0] < GREY_PROBABILITY,
    )


def _crop_boxes(
    areas: NDArray[np.float64], ratios: NDArray[np.float64], corners: NDArray[np.float64], size: int
) -> NDArray[np.int64]:
    """Turn uniform numbers into (n, 4) boxes, by the rule of torchvision's RandomResizedCrop.

    The first try whose box fits is taken, or the whole image if none fits.
    """
    areas = size**2 * (CROP_SCALE[0] + (CROP_SCALE[1] - CROP_SCALE[0]) * areas)
    low, high = np.log(CROP_RATIO)
    ratios = np.exp(low + (high - low) * ratios)
    extents = np.rint(np.sqrt(np.stack([areas / ratios, areas * ratios], axis=-1)))
    fits = np.all((extents > 0) & (extents <= size), axis=-1)
    first = extents[np.arange(len(extents)), np.argmax(fits, axis=1)]
    first[~np.any(fits, axis=1)] = size
    return np.concatenate([np.floor(corners * (size - first + 1)), first], axis=1).astype(np.int64)


def augment(images: Tensor, draws: Augmentations) -> Tensor:
    """Crop, mirror, jitter and grey a batch of images, each with its own numbers.

    Args:
        images: uint8 in [0, 255] or floating point in [0, 1], shape (n, 3, size, size), on any device.
        draws: the numbers of these n images.

    Returns:
        float32 in [0, 1], shape (n, 3, size, size), on the images' device. Up to rounding, this equals applying
        torchvision's `resized_crop` (bilinear, antialiased), `horizontal_flip`, `adjust_brightness`,
        `adjust_contrast`, `adjust_saturation`, `adjust_hue` and `rgb_to_grayscale` to each image as float.

    Raises:
        ValueError: the images' shape does not match the numbers.
    """
    if images.shape != (len(draws), 3, draws.size, draws.size):
        raise ValueError(
            f"augmentations drawn for {len(draws)} images of shape (3, {draws.size}, {draws.size}) "
            f"do not fit images of shape {tuple(images.shape)}"
        )
    # Sorting makes neighbours of images that are jittered in the same order, so that they are processed together.
    sequence = np.lexsort(draws.orders.T[::-1])
    draws = draws[sequence]
    result = _resized_crop(images, sequence, draws)
    factors = on_device(draws.factors.astype(np.float32), images.device)[:, :, None, None, None]
    for run in _runs(draws.orders):
        for column in draws.orders[run.start].tolist():
            _ADJUSTMENTS[column](result[run], factors[run, column])
    for position in np.flatnonzero(draws.greys).tolist():
        grey = result[position : position + 1]
        grey.copy_(_grey(grey).expand_as(grey))
    return result.index_select(0, on_device(np.argsort(sequence), images.device))


def _runs(orders: NDArray[np.int64]) -> Iterator[slice]:
    """Yield slices of neighbouring equal rows."""
    changes = np.flatnonzero((orders[1:] != orders[:-1]).any(axis=1)) + 1
    bounds = [0, *changes.tolist(), len(orders)]
    return (slice(start, stop) for start, stop in pairwise(bounds))


def _resized_crop(images: Tensor, sequence: NDArray[np.int64], draws: Augmentations) -> Tensor:
    """Crop `images[sequence]`, enlarge the crops to the images' size and mirror them, as floats in [0, 1].

    Crops are never shrunk, so antialiasing has no effect and each pixel is a mean of two neighbours per axis. Rows
    are gathered, but columns go through a matrix product, because gathering them is slower.
    """
    count, channels, size, _ = images.shape
    device = images.device
    top, left, height, width = draws.boxes.T

    row, weight = _neighbours(top, height, size)
    planes = sequence[:, None] * channels + np.arange(channels)
    above = on_device((planes[:, :, None] * size + row[:, None]).reshape(-1), device)
    lines = images.reshape(-1, size)
    shape = (count, channels, size, size)
    rows = lines.index_select(0, above).float().view(shape)
    rows.lerp_(
        lines.index_select(0, above + 1).float().view(shape),
        on_device(weight, device)[:, None, :, None],
    )

    column, weight = _neighbours(left, width, size)
    column[draws.flips], weight[draws.flips] = column[draws.flips, ::-1], weight[draws.flips, ::-1]
    columns = np.zeros((count, size, size), dtype=np.float32)
    np.put_along_axis(columns, column[:, None], 1 - weight[:, None], axis=1)
    np.put_along_axis(columns, column[:, None] + 1, weight[:, None], axis=1)
    if not images.is_floating_point():
        columns /= 255
    with torch.autocast(device.type, enabled=False):
        return torch.bmm(rows.view(count, -1, size), on_device(columns, device)).view(shape)


def _neighbours(
    start: NDArray[np.int64], length: NDArray[np.int64], size: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the source positions and weights of the `size` pixels along one axis of every enlarged crop.

    Returns:
        Two arrays of shape (n, size): the index i of the first neighbour (the second is i + 1), and the second's
        weight.
    """
    centres = (np.arange(size) + 0.5) * (length / size)[:, None] - 0.5
    positions = start[:, None] + np.clip(centres, 0, length[:, None] - 1)
    first = np.minimum(np.floor(positions).astype(np.int64), size - 2)
    return first, (positions - first).astype(np.float32)


# The adjustments work in place on (m, 3, h, w) images, with factors of shape (m, 1, 1, 1), because most of their time
# is memory traffic. Some constants are tensors, because torch would convert the number at every call.

_RED_WEIGHT = torch.tensor(0.2989, device="cpu")
_SIXTH = torch.tensor(1 / 6, device="cpu")


def _grey(images: Tensor) -> Tensor:
    """Return the luma (ITU-R BT.601) of (m, 3, h, w) images, shape (m, 1, h, w)."""
    red, green, blue = images.chunk(3, dim=1)
    return (red * _RED_WEIGHT).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _adjust_brightness(images: Tensor, factor: Tensor) -> None:
    images.mul_(factor).clamp_(0, 1)


def _adjust_contrast(images: Tensor, factor: Tensor) -> None:
    mean = _grey(images).mean(dim=(1, 2, 3), keepdim=True)
    images.mul_(factor).add_(mean.mul_(1 - factor)).clamp_(0, 1)


def _adjust_saturation(images: Tensor, factor: Tensor) -> None:
    grey = _grey(images)
    images.mul_(factor).add_(grey.mul_(1 - factor)).clamp_(0, 1)


def _adjust_hue(images: Tensor, factor: Tensor) -> None:
    """Rotate the hue; a factor of 1 is a full turn.

    The largest and smallest channel (value and chroma) do not change. The hue k, in sixths of a turn, rises from red
    (0) over green (2) to blue (4), and a channel is the smallest plus the chroma times a trapezoid wave of k.
    """
    red, green, blue = images.chunk(3, dim=1)
    chroma = torch.maximum(red, green)
    torch.maximum(chroma, blue, out=chroma)
    smallest = torch.minimum(red, green)
    torch.minimum(smallest, blue, out=smallest)
    chroma.sub_(smallest)
    # From red to cyan, |k| = 1 - r + g + b with channels scaled to [0, 1]; its sign is that of g - b.
    hue = (chroma + green).add_(blue).sub_(red).sub_(smallest).div_(chroma.clamp_min(1e-12))
    hue.copysign_(green.sub_(blue)).add_(6 * factor)
    hue.sub_((hue * _SIXTH).floor_(), alpha=6)
    torch.sub(hue, 3, out=red).abs_().sub_(1)
    torch.sub(hue, 2, out=green).abs_().neg_().add_(2)
    torch.sub(hue, 4, out=blue).abs_().neg_().add_(2)
    images.clamp_(0, 1).mul_(chroma).add_(smallest)


_ADJUSTMENTS = (_adjust_brightness, _adjust_contrast, _adjust_saturation, _adjust_hue)
