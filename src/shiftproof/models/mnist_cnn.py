"""DomainBed's network for RotatedMNIST and ColoredMNIST."""

from __future__ import annotations

from torch import nn

from shiftproof.models.model import Featurizer
from shiftproof.models.normalisation import pixels_as_they_are

_LAYERS = ((64, 1), (128, 2), (128, 1), (128, 1))
"""Channels and stride of each convolution."""
_GROUPS = 8


def mnist_cnn(image_shape: tuple[int, int, int]) -> Featurizer:
    """Build four 3 x 3 convolutions, each rectified and then normalised in groups, and a mean to 128 features.

    The second convolution has stride 2: maps of 28 x 28 pixels with 64 channels, then of 14 x 14 with 128. Pixels stay
    in [0, 1]. This is the small network of Gulrajani and Lopez-Paz, "In Search of Lost Domain Generalization", ICLR
    2021 (arXiv 2007.01434, appendix). Its stages are the four layers.

    Args:
        image_shape: shape (channels, height, width) of an image, 28 x 28 pixels in the paper.
    """
    channels = image_shape[0]
    layers: list[nn.Module] = []
    stages = []
    inputs = channels
    for outputs, stride in _LAYERS:
        layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.ReLU(), nn.GroupNorm(_GROUPS, outputs)]
        stages.append(str(len(layers) - 1))
        inputs = outputs
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Featurizer(module, pixels_as_they_are(channels), stages=tuple(stages))
