"""The kind of a folder's pictures, by a look at some of its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from shiftproof.base.choices import Kind

SMALL_SIDE = 64
"""The larger side of a small image at most, in pixels; larger ones that are called small are taken at this size."""
SMALL_GREY_SIDE = 128
"""The same where all are grey: at this size those are characters and spectrograms rather than photographs."""
LOOKED_AT = 256
_GREY = ("1", "L", "LA", "I;16", "I;16B", "I;16L")


class Look(NamedTuple):
    """What the files of a folder look like.

    Attributes:
        kind: of their images.
        side: of the largest, in pixels.
        text: what was seen, in words.
    """

    kind: Kind
    side: int
    text: str

    @property
    def small_size(self) -> int:
        """Side at which they are taken as small images: their own, up to `SMALL_SIDE`."""
        return min(self.side, SMALL_SIDE)


def look_at(files: Sequence[Path]) -> Look:
    """Guess the kind of images from the headers of at most `LOOKED_AT` of the files, evenly spread over the list.

    They are small images if the larger side of all is `SMALL_SIDE` pixels at most, or `SMALL_GREY_SIDE` where all
    are grey; else photographs. Files that cannot be read are passed over: whoever decodes them names them.
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
    grey = modes.issubset(_GREY)
    side = max(sides, default=SMALL_SIDE + 1)
    small = side <= (SMALL_GREY_SIDE if grey and sides else SMALL_SIDE)
    [(width, height), *others] = sorted(sizes, key=max, reverse=True) or [(0, 0)]
    text = (
        f"{len(sides):,} of {len(files):,} files looked at, {'up to ' if others else ''}{width} x {height} pixels, "
        f"{'grey' if grey else 'in colour'}"
    )
    return Look("small_images" if small else "photographs", side, text)
