"""RotatedMNIST and ColoredMNIST from all 70,000 digits of MNIST, as DomainBed makes them.

DomainBed shuffles with the seed of the run, which differs between methods; here the assignment is fixed, so that all
runs of all methods see the same data. RotatedMNIST is rotated with bicubic interpolation, as in DomainBed's published
code and SWAD's; DomainBed at commit b93c22a interpolates bilinearly.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shiftproof.base.field_error import FieldError
from shiftproof.base.randomness import generator
from shiftproof.data.dataset import DATASETS, DataFolderError, DatasetEntry, DatasetNotFoundError, DomainDataset
from shiftproof.data.digit_domains import colored, rotated

SIDE = 28
FOLDER = "MNIST"
IMAGES = {"train": 60_000, "test": 10_000}


class MNISTError(DataFolderError):
    """Files of MNIST cannot be used."""


def read_mnist(raw: Path) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Read the parts "train" and "test" of MNIST.

    Args:
        raw: the folder of the unpacked idx files.

    Returns:
        For each part, images (uint8, shape (n, 28, 28)) and digits (int64, shape (n,)).

    Raises:
        DatasetNotFoundError: files are missing.
        MNISTError: files are damaged.
    """
    from torchvision.datasets.mnist import read_image_file, read_label_file

    parts = {}
    for part, name in (("train", "train"), ("test", "t10k")):
        files = raw / f"{name}-images-idx3-ubyte", raw / f"{name}-labels-idx1-ubyte"
        for file in files:
            if not file.is_file():
                raise DatasetNotFoundError(f"{file}: no such file; `shiftproof data get rotated_mnist` fetches MNIST")
        try:
            images, digits = read_image_file(str(files[0])).numpy(), read_label_file(str(files[1])).numpy()
        except (AssertionError, ValueError, RuntimeError, KeyError) as error:
            raise MNISTError(f"{files[0]} or {files[1].name} is damaged") from error
        if images.shape != (len(digits), SIDE, SIDE) or not np.isin(digits, range(10)).all():
            raise MNISTError(f"{files[0]}: images of shape {images.shape} do not fit {len(digits)} labels")
        parts[part] = images, digits.astype(np.int64)
    return parts


def count_mnist(raw: Path) -> tuple[dict[str, dict[str, int]], tuple[str, ...]]:
    """Return the number of images by part and digit, and the differences from the published numbers, in words.

    Arguments and errors as for `read_mnist`.
    """
    parts = {part: digits for part, (_, digits) in read_mnist(raw).items()}
    counts = {part: {str(digit): int((digits == digit).sum()) for digit in range(10)} for part, digits in parts.items()}
    differences = tuple(
        f"{len(digits)} images in {part} instead of {IMAGES[part]}"
        for part, digits in parts.items()
        if len(digits) != IMAGES[part]
    )
    return counts, differences


def _shuffled(name: str, data_dir: Path | None, image_size: int | None) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if data_dir is None:
        raise DatasetNotFoundError(f"{name} needs a data folder, which holds the folder {FOLDER}")
    if image_size not in (None, SIDE):
        raise FieldError(
            "image_size", f"{name} has images of {SIDE} x {SIDE} pixels; image size {image_size} is not available"
        )
    images, digits = (
        np.concatenate(arrays) for arrays in zip(*read_mnist(data_dir / FOLDER / "raw").values(), strict=True)
    )
    order = generator("mnist").permutation(len(digits))
    return images[order], digits[order]


def _turned(images: NDArray[np.uint8], angle: float) -> NDArray[np.uint8]:
    """Rotate (n, 28, 28) images counter-clockwise about their centres, on black."""
    from PIL import Image

    turn = Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(image).rotate(angle, resample=turn)) for image in images])


def rotated_mnist(data_dir: Path | None, image_size: int | None = None) -> DomainDataset:
    """MNIST rotated by 0, 15, 30, 45, 60 and 75 degrees; grey, 28 x 28, ten classes, about 11,667 per domain.

    Args:
        data_dir: the folder that holds MNIST/raw.
        image_size: 28 or None.

    Raises:
        DatasetNotFoundError: files of MNIST are missing.
        MNISTError: files are damaged.
        FieldError: the image size is not available.
    """
    return rotated("rotated_mnist", *_shuffled("rotated_mnist", data_dir, image_size), _turned)


def colored_mnist(data_dir: Path | None, image_size: int | None = None) -> DomainDataset:
    """MNIST in two colours that are correlated with the label: +90 %, +80 % and, reversed, -90 %.

    The label is whether the digit is below 5, flipped with probability 0.25; the colour is the label, flipped
    with probability 0.1, 0.2 and 0.9. Two channels of 28 x 28 pixels, one of them empty; about 23,333 per domain.
    Arguments and errors as for `rotated_mnist`.
    """
    return colored("colored_mnist", *_shuffled("colored_mnist", data_dir, image_size), channels=2)


MNIST_SETS = ("rotated_mnist", "colored_mnist")
DATASETS.register("rotated_mnist", DatasetEntry(rotated_mnist, kind="small_images", model="small_conv"))
DATASETS.register("colored_mnist", DatasetEntry(colored_mnist, kind="small_images", model="small_conv"))
