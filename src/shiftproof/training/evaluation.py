"""Accuracy of an algorithm's predictions, in all and class by class."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor

from shiftproof.algorithms import Batch
from shiftproof.training.spec import Precision


@torch.inference_mode()
def evaluate(
    predict: Callable[[Tensor], Tensor], batches: Iterable[Batch], num_classes: int, precision: Precision
) -> dict[str, Any]:
    """Score predictions.

    Args:
        predict: gives logits (n, classes) of normalised images, in evaluation mode.
        batches: normalised images and labels.
        num_classes: number of classes.
        precision: as in training.

    Returns:
        ``count`` of images, ``accuracy`` over all of them (top 1, in [0, 1]) and ``per_class``, the accuracy of
        every class, None for a class without images.
    """
    counts = torch.zeros(num_classes, dtype=torch.int64)
    correct = torch.zeros(num_classes, dtype=torch.int64)
    for images, labels in batches:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            right = predict(images).argmax(dim=1) == labels
        counts += torch.bincount(labels, minlength=num_classes).cpu()
        correct += torch.bincount(labels[right], minlength=num_classes).cpu()
    return {
        "count": int(counts.sum()),
        "accuracy": int(correct.sum()) / int(counts.sum()),
        "per_class": [c / n if n else None for c, n in zip(correct.tolist(), counts.tolist(), strict=True)],
    }


def training_domain_validation(record: dict[str, Any], targets: Collection[str]) -> float:
    """Return the unweighted mean accuracy on the held-out parts of the source domains.

    Args:
        record: one evaluation, as a run's metrics hold it.
        targets: the domains that are not sources.
    """
    accuracies: list[float] = [
        parts["out"]["accuracy"] for name, parts in record["domains"].items() if name not in targets
    ]
    return sum(accuracies) / len(accuracies)
