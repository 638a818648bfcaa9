"""The wide residual network of 16 layers and twice the width, for images of 32 x 32 pixels."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from shiftproof.models.model import Featurizer
from shiftproof.models.normalisation import pixels_as_they_are

DEPTH, WIDTH = 16, 2
_STEM = 16
_STRIDES = (1, 2, 2)
"""Stride of each group; the channels double from group to group."""
_LAST_MOMENTUM = 0.9


class _Block(nn.Module):
    """Two normalised, rectified 3 x 3 convolutions, the second with a stride, added to the block's input.

    The input goes through a 1 x 1 convolution if the block changes its shape.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, stride, padding=1),
        )
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (n, outputs, height / stride, width / stride) of maps (n, inputs, height, width)."""
        added: Tensor = self.residual(maps) + self.shortcut(maps)
        return added


def wide_resnet_16_2(image_shape: tuple[int, int, int]) -> Featurizer:
    """Build WRN-16-2: three groups of two residual blocks with 32, 64 and 128 channels, and a mean to 128 features.

    Of images of 32 x 32 pixels, the groups give maps of 32, 16 and 8 pixels. Batch norms come before the convolutions;
    a last one, whose running statistics move by 0.9 of the way to each batch's, comes before the mean. Pixels stay in
    [0, 1]. Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016 (arXiv 1605.07146), in the form that Gulrajani
    and Lopez-Paz, ICLR 2021 (arXiv 2007.01434), train on images of this size: its convolutions have biases, and it
    starts from PyTorch's own initialisation. Its stages are the first convolution and the groups, the last of them
    normalised and rectified.

    Args:
        image_shape: shape (channels, height, width) of an image, 32 x 32 pixels in the papers.
    """
    channels, inputs = image_shape[0], _STEM
    parts: OrderedDict[str, nn.Module] = OrderedDict(stem=nn.Conv2d(channels, _STEM, 3, padding=1))
    blocks_of_a_group = (DEPTH - 4) // 6  # of two convolutions each; 4 are the stem and the groups' shortcuts
    for group, stride in enumerate(_STRIDES):
        outputs = _STEM * WIDTH * 2**group
        blocks = [_Block(inputs, outputs, stride)]
        blocks += [_Block(outputs, outputs, 1) for _ in range(blocks_of_a_group - 1)]
        parts[f"group{group + 1}"] = nn.Sequential(*blocks)
        inputs = outputs
    parts |= {
        "norm": nn.BatchNorm2d(inputs, momentum=_LAST_MOMENTUM),
        "relu": nn.ReLU(),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
    }
    return Featurizer(nn.Sequential(parts), pixels_as_they_are(channels), stages=("stem", "group1", "group2", "relu"))
