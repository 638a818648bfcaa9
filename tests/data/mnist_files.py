"""MNIST's idx files, of made-up digits."""

import struct
from pathlib import Path

import numpy as np

COUNTS = {"train": 60, "t10k": 12}


def idx(array: np.ndarray) -> bytes:
    """An array of uint8 in idx format: two zero bytes, 8 for uint8, the number of dimensions, their lengths."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def made_up_mnist() -> dict[str, bytes]:
    """Files by name; the image of digit d has 2 d + 2 white pixels in its upper left, and a number of its own."""
    files = {}
    first = 0
    for part, count in COUNTS.items():
        digits = np.arange(count, dtype=np.uint8) % 10
        images = np.zeros((count, 28, 28), dtype=np.uint8)
        for i, digit in enumerate(digits):
            images[i, 5, 4 : 6 + 2 * digit] = 255
            images[i, 14, 14] = 100 + first + i  # near the centre, where no rotation takes it far
        files[f"{part}-images-idx3-ubyte"] = idx(images)
        files[f"{part}-labels-idx1-ubyte"] = idx(digits)
        first += count
    return files


def write_mnist(folder: Path) -> Path:
    """Write the files where torchvision looks for them below a folder, and return it."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in made_up_mnist().items():
        (raw / name).write_bytes(content)
    return folder
