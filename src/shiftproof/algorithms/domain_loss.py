"""Pool the domains' batches for one forward pass, and compute the domains' losses from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from shiftproof.base.batch import Batch


def pooled(batches: Sequence[Batch]) -> Batch:
    """Join the batches of all domains, in their order, into one."""
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return images, labels


def split_domains(rows: Tensor, batches: Sequence[Batch]) -> list[Tensor]:
    """Split a tensor with one row per image, in the order of the batches, into one tensor per batch."""
    return list(rows.split([len(labels) for _, labels in batches]))  # type: ignore[no-untyped-call]


def losses_by_domain(logits: Tensor, batches: Sequence[Batch]) -> Tensor:
    """Return the mean cross-entropy of each domain, (domains,).

    Args:
        logits: logits (n, classes) of all images of the batches, in their order.
        batches: one batch per source domain.
    """
    parts = split_domains(logits, batches)
    return torch.stack([F.cross_entropy(part, labels) for part, (_, labels) in zip(parts, batches, strict=True)])


def mean_domain_loss(logits: Tensor, batches: Sequence[Batch]) -> Tensor:
    """Return the unweighted mean of `losses_by_domain`: small batches count as much as large ones."""
    return losses_by_domain(logits, batches).mean()
