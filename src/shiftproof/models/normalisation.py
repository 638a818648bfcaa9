"""Normalisation of pixels into a network's input, and its text form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

from shiftproof.base.field_error import FieldError


@dataclass(frozen=True)
class Normalisation:
    """Turns pixels in [0, 1] into a network's input: ``(pixel - mean) / std``, per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalise float images (n, channels, height, width) in [0, 1]."""
        mean, std = (_per_channel(values, pixels.device) for values in (self.mean, self.std))
        return (pixels - mean) / std

    @classmethod
    def parse(cls, text: str, channels: int) -> Self:
        """Parse a normalisation.

        Args:
            text: ``imagenet``; ``half``, which maps [0, 1] to [-1, 1]; or comma-separated numbers for pixels in [0, 1]:
                a mean and a standard deviation for all channels, or one mean per channel and then one standard
                deviation per channel.
            channels: number of channels of the images.

        Raises:
            FieldError: the text is not a normalisation, or is one for another number of channels.
        """
        if text == "imagenet":
            if channels != len(IMAGENET.mean):
                raise FieldError(
                    "normalisation", f"normalisation imagenet is for 3 channels; the images have {channels}"
                )
            return cls(IMAGENET.mean, IMAGENET.std)
        numbers = (0.5, 0.5) if text == "half" else _numbers(text)
        if len(numbers) == 2:
            numbers = (numbers[0],) * channels + (numbers[1],) * channels
        if len(numbers) != 2 * channels:
            more = f" or {2 * channels}, a mean for each and then a standard deviation for each" if channels > 1 else ""
            raise FieldError(
                "normalisation",
                f"normalisation {text} has {len(numbers)} numbers; images of {channels} channel{'s' * (channels > 1)} "
                f"take 2, mean and standard deviation{more}",
            )
        return cls(numbers[:channels], numbers[channels:])

    def __str__(self) -> str:
        """Return the shortest text that `parse` reads as this normalisation; equal normalisations give equal texts."""
        if self == IMAGENET:
            return "imagenet"
        if len({*self.mean}) == len({*self.std}) == 1:
            mean, std = self.mean[0], self.std[0]
            return "half" if mean == std == 0.5 else f"{mean},{std}"
        return ",".join(map(str, self.mean + self.std))


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def default_normalisation(channels: int) -> Normalisation:
    """Return ImageNet's normalisation for three channels, and [0, 1] to [-1, 1] for any other number."""
    return Normalisation.parse("imagenet" if channels == 3 else "half", channels)


def pixels_as_they_are(channels: int) -> Normalisation:
    """Return the normalisation that leaves pixels in [0, 1]."""
    return Normalisation((0.0,) * channels, (1.0,) * channels)


def check_normalisation(text: str) -> None:
    """Check that a text is a normalisation, for any number of channels.

    Raises:
        FieldError: it is not.
    """
    if text not in ("imagenet", "half"):
        _numbers(text)


def _numbers(text: str) -> tuple[float, ...]:
    """Return the numbers that a text lists: the means, then the standard deviations."""
    try:
        numbers = tuple(map(float, text.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or len(numbers) % 2:
        raise FieldError(
            "normalisation",
            f"normalisation must be imagenet, half, or MEAN,STD of pixels in [0, 1] (as many means as standard "
            f"deviations), not {text!r}",
        )
    if not all(map(math.isfinite, numbers)):
        raise FieldError("normalisation", f"the numbers of a normalisation must be finite, not {text!r}")
    if not all(0 <= mean <= 1 for mean in numbers[: len(numbers) // 2]):
        raise FieldError(
            "normalisation",
            f"the means of a normalisation are for pixels in [0, 1], not in [0, 255], and cannot be {text!r}",
        )
    if min(numbers[len(numbers) // 2 :]) <= 0:
        raise FieldError("normalisation", f"the standard deviations of a normalisation must be above 0, not {text!r}")
    return numbers


@lru_cache
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return constants (1, channels, 1, 1), cached because copying them to a GPU would wait for it."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(1, -1, 1, 1)
