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
from shiftproof.protocol import score


@torch.inference_mode()
def evaluate(
    predict: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    num_classes: int,
    precision: Precision,
    task: Task = "classification",
    loss_of: Loss = F.cross_entropy,
    on_outputs: Callable[[Tensor], object] = lambda outputs: None,
) -> dict[str, Any]:
    """Score predictions.

    Args:
        predict: maps normalised images, or other inputs, to outputs (n, classes), in evaluation mode.
        batches: normalised images, or other inputs, and targets.
        num_classes: number of classes.
        precision: precision of the forward passes, as in training.
        task: what is predicted.
        loss_of: maps outputs and targets to their mean loss, for tasks other than classification.
        on_outputs: called with the outputs of all inputs, float32 on the CPU, shape (n, classes) or in regression (n,).

    Returns:
        ``count``, the number of inputs; ``loss``, their mean loss (cross-entropy in nats), None if it is not finite;
        and ``measures``, every measure of the task, None where it is undefined. Classification also has ``accuracy``
        (top 1, in [0, 1]) and ``per_class``, the accuracy of every class, None for a class without inputs.
    """
    # per batch: loss, and of a classification inputs by class and correct ones by class; read all at once, because
    # reading waits for a GPU
    sums: list[Tensor] = []
    seen: list[Batch] = []
    for inputs, targets in batches:
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bf16"):
            outputs = predict(inputs)
        exact = outputs.float()
        seen.append((exact, targets))
        if task != "classification":
            sums.append(loss_of(exact, targets).double()[None] * len(targets))
            continue
        by_class = F.one_hot(targets, num_classes).double()
        right = (outputs.argmax(dim=1) == targets).double()
        loss = F.cross_entropy(exact, targets, reduction="none").double().sum()
        sums.append(torch.cat([loss[None], by_class.sum(0), right @ by_class]))
    losses, *numbers = zip(*torch.stack(sums).tolist(), strict=True)
    total, count = sum(losses), sum(len(targets) for _, targets in seen)
    scores: dict[str, Any] = {"count": count}
    if task == "classification":
        counts, correct = ([int(sum(n)) for n in part] for part in (numbers[:num_classes], numbers[num_classes:]))
        scores["accuracy"] = sum(correct) / count
        scores["per_class"] = [c / n if n else None for c, n in zip(correct, counts, strict=True)]
    scores["loss"] = total / count if math.isfinite(total) else None
    outputs, targets = (torch.cat(parts).cpu() for parts in zip(*seen, strict=True))
    if task == "regression":
        outputs = outputs.reshape(targets.shape)
    on_outputs(outputs)
    scores["measures"] = score(task, outputs.numpy(), targets.numpy())
    return scores
