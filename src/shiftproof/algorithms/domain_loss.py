"""Pass the domains' batches through a network, together or one by one, and compute the domains' losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from shiftproof.base.batch import Batch
from shiftproof.models import Loss


def pooled(batches: Sequence[Batch]) -> Batch:
    """Join the batches of all domains, in their order, into one."""
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return images, labels


def split_domains(rows: Tensor, batches: Sequence[Batch]) -> list[Tensor]:
    """Split a tensor with one row per image, in the order of the batches, into one tensor per batch."""
    return list(rows.split([len(labels) for _, labels in batches]))  # type: ignore[no-untyped-call]


def domain_numbers(batches: Sequence[Batch]) -> Tensor:
    """Return the number of its domain for every image, (n,), in the order of the batches."""
    return torch.cat([labels.new_full((len(labels),), i, dtype=torch.int64) for i, (_, labels) in enumerate(batches)])


def passed(module: nn.Module, forward: Callable[[Tensor], Tensor], batches: Sequence[Batch], separate: bool) -> Tensor:
    """Return the outputs for all inputs of the batches, in their order.

    Args:
        module: what the inputs pass through.
        forward: maps inputs to outputs, row by row.
        batches: one batch per domain.
        separate: whether batch norms that are trained see one domain at a time, as in code that passes the domains one
            by one; else all see one batch of all domains.
    """
    if separate and any(isinstance(part, _BatchNorm) and part.training for part in module.modules()):
        return torch.cat([forward(inputs) for inputs, _ in batches])
    return forward(torch.cat([inputs for inputs, _ in batches]))


def losses_by_domain(outputs: Tensor, batches: Sequence[Batch], loss: Loss = F.cross_entropy) -> Tensor:
    """Return the mean loss of each domain, (domains,).

    Args:
        outputs: outputs (n, classes) of all inputs of the batches, in their order.
        batches: one batch per source domain.
        loss: maps outputs and targets to their mean loss, as `Network.loss` does.
    """
    parts = split_domains(outputs, batches)
    return torch.stack([loss(part, targets) for part, (_, targets) in zip(parts, batches, strict=True)])


def mean_domain_loss(outputs: Tensor, batches: Sequence[Batch], loss: Loss = F.cross_entropy) -> Tensor:
    """Return the unweighted mean of `losses_by_domain`: small batches count as much as large ones."""
    return losses_by_domain(outputs, batches, loss).mean()


def row_losses(outputs: Tensor, targets: Tensor, loss: Loss = F.cross_entropy) -> Tensor:
    """Return the loss of every row by itself, (n,); weights of classes have no effect on it.

    Args:
        outputs: outputs (n, classes).
        targets: targets of the rows.
        loss: maps outputs and targets to their mean loss, as `Network.loss` does.
    """
    if loss is F.cross_entropy:  # the same in a fifth of the time
        return F.cross_entropy(outputs, targets, reduction="none")
    losses: Tensor = vmap(lambda output, target: loss(output[None], target[None]))(outputs, targets)
    return losses
