"""Checks that gradients are real and dense, the only kinds that can be measured."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def check_real(parameters: Iterable[Tensor]) -> None:
    """Check that no parameter is complex.

    Raises:
        ValueError: one is.
    """
    for p in parameters:
        if p.is_complex():
            raise ValueError(
                f"complex gradients are not supported: a parameter of shape {tuple(p.shape)} is of "
                f"{str(p.dtype).removeprefix('torch.')}; freeze it, or train its real view (torch.view_as_real)"
            )


def check_dense(gradients: Iterable[Tensor | None]) -> None:
    """Check that no gradient is sparse.

    Raises:
        RuntimeError: one is.
    """
    for gradient in gradients:
        if gradient is not None and gradient.layout != torch.strided:
            raise RuntimeError(_SPARSE.format(what=f"the gradient of a parameter of shape {tuple(gradient.shape)} is"))


def check_dense_layers(model: nn.Module, parameters: Iterable[Tensor]) -> None:
    """Check that no parameter belongs to a layer with sparse gradients, such as an embedding with ``sparse=True``.

    Raises:
        RuntimeError: one does.
    """
    measured = set(parameters)
    for name, module in model.named_modules():
        if getattr(module, "sparse", False) is True and not measured.isdisjoint(module.parameters(recurse=False)):
            raise RuntimeError(_SPARSE.format(what=f"the gradients of {name or type(module).__name__} are"))


_SPARSE = "sparse gradients are not supported: {what} sparse; build the embedding with sparse=False"
