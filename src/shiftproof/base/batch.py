"""The type of a batch."""

from torch import Tensor

Batch = tuple[Tensor, Tensor]
"""Inputs (n, ...) and targets (n, ...) of one domain, on the model's device.

In a run: normalised images (n, channels, height, width) and int64 labels (n,).
"""
