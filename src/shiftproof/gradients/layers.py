"""Per-sample gradients of one layer's parameters, computed from its input and the gradient of its output.

`gradients.samples` uses this module. Throughout, ``x`` is the layer's input (n, ...) and ``g`` the gradient with
respect to its output (n, ...). The gradient of a weight is the outer product of the two, summed over positions
(Goodfellow, "Efficient Per-Example Gradient Computations", 2015, arXiv 1510.01799; Rochette, Manoel and Tramel,
"Efficient Per-Example Gradient Computations in Convolutional Neural Networks", 2019, arXiv 1912.06015).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

Sums = tuple[Tensor, Tensor]
"""Sums over samples of the gradients and of their squares, in the parameter's shape and at least float32."""

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, _BatchNorm, nn.GroupNorm, nn.LayerNorm)
"""The layers whose weight and bias have a formula here. Their subclasses may compute something else."""

_HELD = 2**19  # elements to hold at once besides the sums, so that they fit a processor's cache


def fits(layer: nn.Module, x: Tensor, samples: int) -> bool:
    """Return whether an input has the shape that the formulas expect: samples first, and no dimension missing."""
    if isinstance(layer, _ConvNd):
        dimensions = x.ndim == layer.weight.ndim
    elif isinstance(layer, nn.LayerNorm):
        dimensions = x.ndim > len(layer.normalized_shape)
    elif isinstance(layer, _BatchNorm):
        # without running statistics, it mixes samples even in evaluation mode
        dimensions = x.ndim > 1 and layer.running_mean is not None
    else:
        dimensions = x.ndim > 1
    return dimensions and len(x) == samples


class Workspace:
    """Memory that all layers reuse in turn, because allocating it anew can take longer than the computation."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, purpose: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return an uninitialised tensor of a shape, with the dtype and device of another."""
        key, elements = (purpose, like.dtype, like.device), math.prod(shape)
        if key not in self._buffers or self._buffers[key].numel() < elements:
            self._buffers[key] = like.new_empty(elements)
        return self._buffers[key][:elements].view(shape)


def parameter_sums(layer: nn.Module, attribute: str, x: Tensor, g: Tensor, workspace: Workspace) -> Sums:
    """Sum the gradients of a layer's ``weight`` or ``bias``, and their squares, over the samples."""
    precision = torch.promote_types(getattr(layer, attribute).dtype, torch.float32)
    x, g = x.to(precision), g.to(precision)
    if attribute == "bias":
        return _summed(_over_positions(layer, g))
    if isinstance(layer, _ConvNd):
        return _convolution(layer, x, g, workspace)
    if isinstance(layer, nn.Linear):
        return _linear(layer, x, g, workspace)
    return _summed(_over_positions(layer, g * _normalised(layer, x)))


def _at_once(elements: int) -> int:
    """Return how many samples to process at once if each takes this number of elements."""
    return max(1, _HELD // elements)


def accumulate(gradients: Tensor, total: Tensor, squares: Tensor) -> None:
    """Add the sums over samples of gradients (n, ...) and their squares to the totals; overwrite the gradients."""
    rows = gradients.flatten(1)
    ones = rows.new_ones(1, len(rows))  # a matrix product is the fastest way to sum rows
    total.view(1, -1).addmm_(ones, rows)
    squares.view(1, -1).addmm_(ones, rows.square_())


def _summed(gradients: Tensor) -> Sums:
    return gradients.sum(0), gradients.square().sum(0)


def _over_positions(layer: nn.Module, values: Tensor) -> Tensor:
    """Sum values (n, ...) of a layer's output over all dimensions but samples and features."""
    if isinstance(layer, nn.Linear | nn.LayerNorm):  # features last
        trailing = len(layer.normalized_shape) if isinstance(layer, nn.LayerNorm) else 1
        return values if values.ndim == 1 + trailing else values.flatten(1, -1 - trailing).sum(1)
    return values if values.ndim == 2 else values.flatten(2).sum(2)


def _linear(layer: nn.Linear, x: Tensor, g: Tensor, workspace: Workspace) -> Sums:
    if x.ndim == 2:  # no sum over positions, so the square of a product is the product of squares
        return g.T @ x, g.square().T @ x.square()
    sums = g.new_zeros(2, 1, *layer.weight.shape)
    _add_products(g.flatten(1, -2).mT[:, None], x.flatten(1, -2)[:, None], sums, workspace)
    return sums[0, 0], sums[1, 0]


def _convolution(layer: _ConvNd, x: Tensor, g: Tensor, workspace: Workspace) -> Sums:
    rows = g.view(len(g), layer.groups, -1, *g.shape[2:]).flatten(3)  # (n, groups, channels out, positions)
    patch = layer.weight[0].numel() * layer.groups
    samples = _at_once(patch * rows.shape[-1])
    sums = g.new_zeros(2, layer.groups, rows.shape[2], layer.weight[0].numel())
    for inputs, part in zip(torch.split(x, samples), torch.split(rows, samples), strict=True):
        _add_products(part, _patches(layer, inputs, g.shape[2:], workspace), sums, workspace)
    total, squares = sums.view(2, layer.out_channels, *layer.kernel_size, -1).movedim(-1, 2).contiguous()
    return total, squares


def _add_products(g: Tensor, x: Tensor, sums: Tensor, workspace: Workspace) -> None:
    """Add the products of (n, groups, out, positions) and (n, groups, positions, in), and their squares, to sums."""
    samples = _at_once(sums[0].numel())
    products = workspace.take("products", (min(samples, len(g)), *sums.shape[1:]), sums)
    for part, other in zip(torch.split(g, samples), torch.split(x, samples), strict=True):
        product = products[: len(part)]
        torch.bmm(part.flatten(0, 1), other.flatten(0, 1), out=product.flatten(0, 1))
        accumulate(product, sums[0], sums[1])


def _patches(layer: _ConvNd, x: Tensor, positions: torch.Size, workspace: Workspace) -> Tensor:
    """Return the patch of input that the kernel sees at each position: (n, groups, positions, kernel x channels in)."""
    padding = layer._reversed_padding_repeated_twice
    if any(padding):
        x = F.pad(x, padding, "constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    x = x.view(len(x), layer.groups, -1, *x.shape[2:]).movedim(2, -1)  # (n, groups, ..., channels in)
    size = math.prod(layer.kernel_size)
    if size > 1:
        x = x.contiguous()  # so that windows are copied in long pieces
    sample, group, *steps, channel = x.stride()
    strides = [step * stride for step, stride in zip(steps, layer.stride, strict=True)]
    taps = [step * dilation for step, dilation in zip(steps, layer.dilation, strict=True)]
    windows = x.as_strided(
        (*x.shape[:2], *positions, *layer.kernel_size, x.shape[-1]), (sample, group, *strides, *taps, channel)
    )
    if size > 1:
        windows = workspace.take("windows", windows.shape, x).copy_(windows)
    return windows.reshape(*x.shape[:2], positions.numel(), -1)


def _normalised(layer: nn.Module, x: Tensor) -> Tensor:
    """Return a normalisation layer's normalised input, before it is multiplied by the weight."""
    if isinstance(layer, nn.LayerNorm):
        return F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    if isinstance(layer, nn.GroupNorm):
        return F.group_norm(x, layer.num_groups, eps=layer.eps)
    assert isinstance(layer, _BatchNorm)  # noqa: S101
    assert layer.running_mean is not None  # noqa: S101  (`fits` ensures it)
    assert layer.running_var is not None  # noqa: S101
    return F.batch_norm(x, layer.running_mean.to(x.dtype), layer.running_var.to(x.dtype), eps=layer.eps)
