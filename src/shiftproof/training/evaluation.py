"""Accuracy and loss of an algorithm's predictions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from shiftproof.algorithms import Batch
from shiftproof.base.choices import Precision


@torch.inference_mode()
def evaluate(
    predict: Callable[[Tensor], Tensor], batches: Iterable[Batch], num_classes: int, precision: Precision
) -> dict[str, Any]:
    """Score predictions.

    Args:
        predict: maps normalised images to logits (n, classes), in evaluation mode.
        batches: normalised images and labels.
        num_classes: number of classes.
        precision: precision of the forward passes, as in training.

    Returns:
        ``count``, the number of images; ``accuracy`` over all of them (top 1, in [0, 1]); ``per_class``, the accuracy
        of every class, None for a class without images; and ``loss``, the mean cross-entropy in nats, None if it is
        not finite.
    """
    # per batch: loss, images by class, correct ones by class; read all at once, because reading waits for a GPU
    sums: list[Tensor] = []
    for images, labels in batches:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = predict(images)
        by_class = F.one_hot(labels, num_classes).double()
        right = (logits.argmax(dim=1) == labels).double()
        loss = F.cross_entropy(logits.float(), labels, reduction="none").double().sum()
        sums.append(torch.cat([loss[None], by_class.sum(0), right @ by_class]))
    losses, *numbers = zip(*torch.stack(sums).tolist(), strict=True)
    total = sum(losses)
    counts, correct = ([int(sum(n)) for n in part] for part in (numbers[:num_classes], numbers[num_classes:]))
    return {
        "count": sum(counts),
        "accuracy": sum(correct) / sum(counts),
        "per_class": [c / n if n else None for c, n in zip(correct, counts, strict=True)],
        "loss": total / sum(counts) if math.isfinite(total) else None,
    }
