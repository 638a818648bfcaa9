"""Reading image files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Suffixes of image files, in lower or upper case: torchvision's, which DomainBed uses."""

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MODES: dict[int, str] = {1: "L", 3: "RGB"}
_CONVERTIBLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")


class ImageError(ValueError):
    """An image file cannot be used.

    Attributes:
        path: the file.
        reason: the reason.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def decode(path: Path, size: int, channels: Literal[1, 3] = 3) -> NDArray[np.uint8]:
    """Read an image and resize it to a square without regard to its aspect ratio, as DomainBed does.

    Transparency is dropped as in DomainBed (by ``convert("RGB")``, which published figures were made with). Unlike in
    DomainBed, pictures are rotated by their EXIF orientation, and 16-bit grey is scaled to 8 bits, which Pillow's own
    conversion would clip.

    Args:
        path: the file.
        size: side of the result, in pixels.
        channels: 3 for RGB, 1 for grey.

    Returns:
        uint8, shape (channels, size, size).

    Raises:
        ImageError: the file is missing, empty, truncated, damaged, not an image or of an unsupported mode.
    """
    try:
        with Image.open(path) as image:
            return to_pixels(image, size, channels)
    except UnidentifiedImageError:
        reason = "not an image" if path.stat().st_size else "the file is empty"
        raise ImageError(path, reason) from None
    except Exception as error:  # decoders raise errors of many types on damaged files
        raise ImageError(path, str(error) or type(error).__name__) from error


def to_pixels(image: Image.Image, size: int | None, channels: Literal[1, 3] = 3) -> NDArray[np.uint8]:
    """Resize a picture to a square, as `decode` does.

    Args:
        image: the picture.
        size: side of the result, in pixels; None to keep the picture's own size.
        channels: 3 for RGB, 1 for grey.

    Returns:
        uint8, shape (channels, size, size), or (channels, height, width) of the picture.

    Raises:
        ValueError: the picture's mode is not supported.
    """
    converted = _eight_bits(upright(image)).convert(_MODES[channels])
    if size is not None:
        converted = converted.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(converted).reshape(converted.height, converted.width, channels)
    return pixels.transpose(2, 0, 1).copy()


def is_image(name: str) -> bool:
    """Return whether the suffix of a file's name is that of an image."""
    return name.lower().endswith(SUFFIXES)


def upright(image: Image.Image) -> Image.Image:
    """Return the image as its EXIF orientation says that it is seen; as it is, if that says nothing.

    Pillow's own ``exif_transpose`` also rewrites the tags, and fails on damaged ones.
    """
    image.load()  # PNG may have its tags after the pixels, and Pillow rotates TIFF here
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged tags raise errors of many types; the pixels may still be good
        return image
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return the image in a mode that converts to RGB and grey without loss of range and without warnings.

    Raises:
        ValueError: the mode is not supported, because its range is unknown (32 bits) or it cannot be converted.
    """
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode not in _CONVERTIBLE:
        raise ValueError(f"images of mode {image.mode} are not supported")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    return image
