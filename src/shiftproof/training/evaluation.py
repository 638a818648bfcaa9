"""Loss of an algorithm's predictions, and their accuracy if they are of classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from shiftproof.algorithms import Batch
from shiftproof.base.choices import Precision, Task
from shiftproof.models import Loss


@torch.inference_mode()
def evaluate(
    predict: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    num_classes: int,
    precision: Precision,
    task: Task = "classification",
    loss_of: Loss = F.cross_entropy,
) -> dict[str, Any]:
    """Score predictions.

    Args:
        predict: maps normalised images, or other inputs, to outputs (n, classes), in evaluation mode.
        batches: normalised images, or other inputs, and targets.
        num_classes: number of classes.
        precision: precision of the forward passes, as in training.
        task: what is predicted.
        loss_of: maps outputs and targets to their mean loss, for tasks other than classification.

    Returns:
        ``count``, the number of images; ``accuracy`` over all of them (top 1, in [0, 1]); ``per_class``, the accuracy
        of every class, None for a class without images; and ``loss``, the mean cross-entropy in nats, None if it is
        not finite. Tasks other than classification have ``count`` and ``loss`` alone.
    """
    if task != "classification":
        return _evaluate_loss(predict, batches, precision, loss_of)
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


def _evaluate_loss(
    predict: Callable[[Tensor], Tensor], batches: Iterable[Batch], precision: Precision, loss_of: Loss
) -> dict[str, Any]:
    sums: list[Tensor] = []
    count = 0
    for inputs, targets in batches:
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bf16"):
            outputs = predict(inputs)
        sums.append(loss_of(outputs.float(), targets).double() * len(targets))
        count += len(targets)
    total = float(torch.stack(sums).sum())
    return {"count": count, "loss": total / count if math.isfinite(total) else None}
