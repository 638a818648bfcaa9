"""What a network's outputs are for, by task: their loss, and how targets of any unit become numbers near zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shiftproof.base.choices import Task
from shiftproof.base.field_error import FieldError

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps outputs and targets to their mean loss."""


class Quantity(NamedTuple):
    """Mean and standard deviation of a regression's targets on the rows trained on."""

    mean: float
    std: float


class QuantityHead(nn.Linear):
    """A linear layer with one output in the unit of a quantity, computed in at least float32 from a standardised one.

    Args:
        in_features: number of features.
        quantity: mean and standard deviation of the quantity.
    """

    def __init__(self, in_features: int, quantity: Quantity) -> None:
        super().__init__(in_features, 1)
        self.quantity = quantity

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
        """Return values (n, 1)."""
        standardised = super().forward(input)
        exact = standardised.to(torch.promote_types(standardised.dtype, torch.float32))
        return exact * self.quantity.std + self.quantity.mean


def classifier_of(
    feature_size: int, outputs: int, quantity: Quantity | None, class_vectors: Tensor | None = None
) -> nn.Linear:
    """Return the last layer of a network: of logits, by given vectors of the classes if there are any, or a quantity.

    Raises:
        FieldError: the vectors are not as many as the outputs, or not of the size of the features.
    """
    if class_vectors is not None:
        if class_vectors.shape != (outputs, feature_size):
            raise FieldError(
                ("class_vectors", "model"),
                f"class vectors of shape {tuple(class_vectors.shape)} do not fit {outputs} classes and the model's "
                f"{feature_size} features",
            )
        return CosineClassifier(class_vectors)
    return nn.Linear(feature_size, outputs) if quantity is None else QuantityHead(feature_size, quantity)


class CosineClassifier(nn.Linear):
    r"""A frozen classifier by cosine similarity: the logit of class c is :math:`100\, \cos(z, v_c)`.

    The features are :math:`z`, and :math:`v_c` are given vectors of the classes, such as a text encoder's. It has no
    bias, and its weights are the vectors at length 1.

    Source: Radford et al., "Learning transferable visual models from natural language supervision", ICML 2021 (arXiv
    2103.00020), whose scale is learned and kept from exceeding 100, the value that the published models have.

    Args:
        vectors: shape (classes, feature_size).
    """

    scale = 100.0

    def __init__(self, vectors: Tensor) -> None:
        super().__init__(vectors.shape[1], vectors.shape[0], bias=False)
        with torch.no_grad():
            self.weight.copy_(F.normalize(vectors))
        self.weight.requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
        """Return logits (n, classes)."""
        return self.scale * super().forward(F.normalize(input))


def weighted_cross_entropy(weights: Tensor) -> Loss:
    """Return the cross-entropy in which every row weighs as its class does.

    Args:
        weights: weights of the classes, shape (classes,). The loss is divided by the weights of the batch's rows, as
            `torch.nn.functional.cross_entropy` does.
    """

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        dtype = torch.promote_types(outputs.dtype, torch.float32)  # autocast computes it in no less
        return F.cross_entropy(outputs, targets, weights.to(outputs.device, dtype, non_blocking=True))

    return loss


def loss_of(task: Task, quantity: Quantity | None = None) -> Loss:
    """Return the loss that a task is trained with.

    Args:
        task: "classification" has the cross-entropy of logits (n, classes); "multilabel" the mean over labels of the
            binary cross-entropy of logits (n, labels); "regression" the squared error of values (n, 1) in units of
            the variance of the targets.
        quantity: of a regression.
    """
    if task == "classification":
        return F.cross_entropy
    if task == "multilabel":
        return _binary_cross_entropy
    assert quantity is not None  # noqa: S101  (a regression has one)
    variance = quantity.std**2

    def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs.reshape(targets.shape), targets) / variance

    return squared_error


def _binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, targets.to(torch.result_type(outputs, 1.0)))
