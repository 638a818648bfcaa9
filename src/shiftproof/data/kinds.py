"""Infers the kind of a folder's pictures from some of its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from shiftproof.base.choices import Kind

SMALL_SIDE = 64
"""Longest side of small images, in pixels; larger images that the user calls small are resized to it."""
SMALL_GREY_SIDE = 128
"""Longest side of small images that are all grey, which up to this size are rather characters and spectrograms."""
LOOKED_AT = 256
GREY_MODES = ("1", "L", "LA", "I;16", "I;16B", "I;16L")
"""Pillow's modes of pictures without colour."""


class Look(NamedTuple):
    """What the headers of a folder's files show.

    Attributes:
        kind: kind of the images.
        side: longest side of the images, in pixels.
        text: the evidence, in words.
    """

    kind: Kind
    side: int
    text: str

    @property
    def small_size(self) -> int:
        """Side in pixels to resize them to as small images: their own, up to `SMALL_SIDE`."""
        return min(self.side, SMALL_SIDE)


def look_at(files: Sequence[Path]) -> Look:
    """Infer the kind of images from the headers of at most `LOOKED_AT` files, evenly spread over the list.

    They are small images if no side is longer than `SMALL_SIDE` pixels, or `SMALL_GREY_SIDE` if all are grey; else
    photographs. Unreadable files are skipped here, because decoding them later raises an error.
    """
    chosen = [files[i * len(files) // LOOKED_AT] for i in range(LOOKED_AT)] if len(files) > LOOKED_AT else files
    sides, modes, sizes = [], set(), set()
    for file in chosen:
        try:
            with Image.open(file) as image:
                sides.append(max(image.size))
                sizes.add(image.size)
                modes.add(image.mode)
        except Exception:  # noqa: S112  (decoders raise errors of many types on damaged files)
            continue
    grey = modes.issubset(GREY_MODES)
    side = max(sides, default=SMALL_SIDE + 1)
    small = side <= (SMALL_GREY_SIDE if grey and sides else SMALL_SIDE)
    [(width, height), *others] = sorted(sizes, key=max, reverse=True) or [(0, 0)]
    text = (
        f"{len(sides):,} of {len(files):,} files looked at, {'up to ' if others else ''}{width} x {height} pixels, "
        f"{'grey' if grey else 'in colour'}"
    )
    return Look("small_images" if small else "photographs", side, text)
