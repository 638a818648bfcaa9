"""Find the stages of a featurizer, at which methods act on intermediate features, by passing an image through it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shiftproof.gradients import evaluation_mode
from shiftproof.models import Network, parts

_FIRST_LAYER = "layer1"
"""What torchvision and timm call the first layer of a residual network, which comes after its stem."""


class Stage(NamedTuple):
    """A stage of a featurizer, described by its output.

    Attributes:
        name: name of the module in the featurizer that produces the output.
        channels: number of channels.
        channel_dim: 1 for feature maps (n, channels, height, width); -1 for tokens (n, tokens, channels) and for
            maps (n, height, width, channels).
    """

    name: str
    channels: int
    channel_dim: int


class _Output(NamedTuple):
    name: str
    kind: type[nn.Module]
    shape: tuple[int, ...]


def find_stages(network: Network) -> list[Stage]:
    """Return the stages of a network's featurizer, the earliest first.

    A stage ends with the last output of its resolution. In a residual network this is after the stem and after each of
    the four layers. Its max-pool has the resolution of the first layer, but belongs to the stem, as in the code of
    MIRO's authors. If the resolution does not change, as in a vision transformer, the stages are the first output (the
    patch convolution's) and the quarters of the blocks (the longest run of modules of one class). Only outputs of the
    featurizer's children count, with the contents of a `torch.nn.Sequential` or `torch.nn.ModuleList` in its place;
    maps of one pixel do not count.

    A model that names its stages (`Featurizer.stages`) has those, whatever their resolutions.

    Raises:
        ValueError: the network's ``image_shape`` is None, or a module that is named as a stage gives no feature map and
            no tokens, or runs more than once.
    """
    if network.image_shape is None:
        raise ValueError("the network has no image_shape, without which the stages of its featurizer cannot be found")
    _, height, width = network.image_shape
    if network.stages:
        named = {name: network.featurizer.get_submodule(name) for name in network.stages}
        return _named_stages(_outputs(network, named), network.stages, height, width)
    outputs = _outputs(network, dict(parts(network.featurizer)))
    maps = [(o, dim) for o in outputs if (dim := _channel_dim(o.shape, height, width)) is not None]
    ends = [list(run)[-1] for _, run in groupby(maps, lambda entry: _resolution(*entry))]
    layers = [i for i, (output, _) in enumerate(maps) if output.name.split(".")[0] == _FIRST_LAYER]
    if layers and layers[0] > 0 and len(ends) > 1:
        ends[0] = maps[layers[0] - 1]
    if len(ends) < 2:  # of one resolution
        tokens = [(o, -1) for o in outputs if len(o.shape) == 3 and o.shape[1] > 1]
        ends = _quarters(maps or tokens)
    return [Stage(output.name, output.shape[channel_dim], channel_dim) for output, channel_dim in ends]


class StageOutputs:
    """Records the outputs of a featurizer's stages, within `recorded` only.

    Args:
        featurizer: the featurizer.
        stages: its stages.
    """

    def __init__(self, featurizer: nn.Module, stages: Sequence[Stage]) -> None:
        self._outputs: list[Tensor] | None = None
        # For good, as a compiled network may not see hooks that are set later.
        for stage in stages:
            featurizer.get_submodule(stage.name).register_forward_hook(self._record)

    @contextmanager
    def recorded(self) -> Iterator[list[Tensor]]:
        """Yield a list to which forward passes inside the context append the output of every stage."""
        outputs: list[Tensor] = []
        self._outputs = outputs
        try:
            yield outputs
        finally:
            self._outputs = None

    def _record(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        if self._outputs is not None:
            self._outputs.append(output)


def _named_stages(outputs: list[_Output], names: Sequence[str], height: int, width: int) -> list[Stage]:
    by_name = {output.name: output.shape for output in outputs}
    stages = []
    for name in names:
        shape = by_name.get(name, ())
        channel_dim = -1 if len(shape) == 3 else _channel_dim(shape, height, width)
        if channel_dim is None:
            raise ValueError(f"module {name} cannot be a stage: it must run once and give a feature map or tokens")
        stages.append(Stage(name, shape[channel_dim], channel_dim))
    return stages


def _outputs(network: Network, parts: Mapping[str, nn.Module]) -> list[_Output]:
    """Return the outputs of parts of the featurizer for one image, in order, without parts that run more than once."""
    featurizer = network.featurizer
    assert network.image_shape is not None  # noqa: S101  (checked by the caller)
    outputs: list[_Output] = []

    def record(name: str, module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            outputs.append(_Output(name, type(module), tuple(output.shape)))

    handles = [part.register_forward_hook(partial(record, name)) for name, part in parts.items()]
    try:
        with torch.no_grad(), evaluation_mode(featurizer):
            featurizer(next(featurizer.parameters()).new_zeros(1, *network.image_shape))
    finally:
        for handle in handles:
            handle.remove()
    calls = Counter(output.name for output in outputs)
    return [output for output in outputs if calls[output.name] == 1]


def _channel_dim(shape: tuple[int, ...], height: int, width: int) -> int | None:
    """Return the dimension of a map's channels; None if the shape is not a map with the image's proportions."""
    if len(shape) != 4:
        return None
    for channel_dim, (rows, columns) in ((1, shape[2:]), (-1, shape[1:3])):
        if rows * columns > 1 and abs(rows * width - columns * height) <= max(height, width):
            return channel_dim
    return None


def _resolution(output: _Output, channel_dim: int) -> tuple[int, ...]:
    return output.shape[2:] if channel_dim == 1 else output.shape[1:3]


def _quarters(outputs: list[tuple[_Output, int]]) -> list[tuple[_Output, int]]:
    """Return the first output, and those that end the quarters of the longest run of modules of one class."""
    runs = [list(run) for _, run in groupby(range(len(outputs)), lambda i: outputs[i][0].kind)]
    if not runs:
        return []
    blocks = max(runs, key=len)
    ends = [blocks[-(-len(blocks) * quarter // 4) - 1] for quarter in (1, 2, 3, 4)]
    return [outputs[i] for i in dict.fromkeys([0, *ends])]
