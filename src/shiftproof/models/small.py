"""Small featurizers for images without pretrained models: digits, characters, spectrograms."""

from __future__ import annotations

from torch import nn

FEATURES = 64
LENET_FEATURES = 128
_GRID = 4


def small_conv(channels: int) -> nn.Sequential:
    """Build three 3 x 3 convolutions with group normalisation, the first two of stride 2, and a mean to 64 features."""
    layers = _convolutions(channels, (16, 32, FEATURES))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def small_lenet(channels: int) -> nn.Sequential:
    """Build a network in the form of LeNet: convolutions as in `small_conv`, then a fully connected layer.

    Averaging the convolutions' output to a 4 x 4 grid keeps positions and makes the layer independent of the image
    size; it gives 128 normalised features. LeCun et al., "Gradient-Based Learning Applied to Document Recognition",
    Proceedings of the IEEE 1998.
    """
    widths = (16, 32, 32)
    return nn.Sequential(
        *_convolutions(channels, widths),
        nn.AdaptiveAvgPool2d(_GRID),
        nn.Flatten(),
        nn.Linear(widths[-1] * _GRID**2, LENET_FEATURES),
        nn.LayerNorm(LENET_FEATURES),
        nn.ReLU(),
    )


def _convolutions(channels: int, widths: tuple[int, int, int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs, stride in zip((channels, *widths), widths, (2, 2, 1), strict=False):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.GroupNorm(4, outputs), nn.ReLU()]
    return layers
