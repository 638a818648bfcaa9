"""A small convolutional featurizer for images of digits."""

from __future__ import annotations

from torch import nn

FEATURES = 64


def small_conv(channels: int) -> nn.Sequential:
    """Three 3 x 3 convolutions with group normalisation, the first two of stride 2; 64 features by global mean."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((channels, 16, 2), (16, 32, 2), (32, FEATURES, 1)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.GroupNorm(4, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
