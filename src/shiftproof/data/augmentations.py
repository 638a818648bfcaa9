"""The ways of changing photographs at random in training, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shiftproof.base.registry import Registry, check_callable
from shiftproof.data.augmentation import augment, draw_augmentations
from shiftproof.data.randaugment import draw_randaugmentations, randaugment


@dataclass(frozen=True)
class Augmentation:
    """A way of changing photographs at random, in two halves, so that what is drawn depends on nothing but its key.

    Attributes:
        draw: called with a number of photographs, their side in pixels, a seed, the number of the step and the position
            of the domain. It returns numbers that can be indexed by a slice or an array of positions.
        apply: called with photographs, uint8, shape (n, 3, side, side), and their numbers. It returns float32 in
            [0, 1] of that shape.

    Raises:
        ValueError: a field is no such function.
    """

    draw: Callable[[int, int, int, int, int], Any]
    apply: Callable[[Tensor, Any], Tensor]

    def __post_init__(self) -> None:
        check_callable("draw of Augmentation", self.draw, 5)
        check_callable("apply of Augmentation", self.apply, 2)

    @property
    def documented(self) -> object:
        """What its docstring describes, for `Registry.summary`."""
        return self.apply


AUGMENTATIONS: Registry[Augmentation] = Registry("augmentation", instances_of=Augmentation)
"""All augmentations by name: `AUGMENTATIONS.register(name, augmentation)` adds one."""


def _nothing(count: int, size: int, seed: int, step: int, domain: int) -> NDArray[np.int64]:
    return np.arange(count)


def _unchanged(images: Tensor, draws: NDArray[np.int64]) -> Tensor:
    return images.float() / 255


AUGMENTATIONS.register(
    "standard",
    Augmentation(draw_augmentations, augment),
    summary="DomainBed's: crop, flip, brightness, contrast, saturation, hue, now and then grey.",
)
AUGMENTATIONS.register("none", Augmentation(_nothing, _unchanged), summary="The photographs as they are.")
AUGMENTATIONS.register(
    "randaugment",
    Augmentation(draw_randaugmentations, randaugment),
    summary="Crop, flip and two of RandAugment's fourteen operations (Cubuk et al., 2020).",
)
