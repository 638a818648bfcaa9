"""The mean loss of a model over some batches, as a function of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from shiftproof.base.batch import Batch
from shiftproof.base.precise_sums import at_least_float32, norm
from shiftproof.base.randomness import seed_generators, torch_seed
from shiftproof.gradients import Loss, check_dense_layers, check_real, evaluation_mode


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require a gradient, by name; a shared parameter appears once.

    Raises:
        ValueError: there is none, or one is complex.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError("no parameter requires a gradient")
    check_real(parameters.values())
    return parameters


def flat_weights(model: nn.Module) -> Tensor:
    """Return a copy of the weights that train as one vector of shape (n,), in the order of ``named_parameters``.

    Weights of lower precision are converted to float32.
    """
    return torch.cat([at_least_float32(p.detach()).flatten() for p in trained_weights(model).values()])


class MeanLoss:
    """The mean loss of a model over all samples of some batches, as a function of the weights that train.

    The model is evaluated batch by batch, in evaluation mode, with weights passed to it. Its own weights and gradients
    are never written, and the modes of its modules and torch's generators are restored. If the model draws random
    numbers even in evaluation mode, all evaluations draw the same.

    Args:
        model: any module; all uses of a shared parameter change together.
        loss: mean loss of a batch.
        batches: one or more batches; their sizes may differ.

    Attributes:
        weights: the model's own weights, of shape (n,); see `flat_weights`.

    Raises:
        ValueError: there are no samples or no parameters that train, or such a parameter is complex.
    """

    def __init__(self, model: nn.Module, loss: Loss, batches: Sequence[Batch]) -> None:
        self._model, self._loss, self._batches = model, loss, batches
        self._samples = sum(len(targets) for _, targets in batches)
        if not self._samples:
            raise ValueError("no samples to evaluate the loss on")
        self._parameters = trained_weights(model)
        self._sizes = [p.numel() for p in self._parameters.values()]
        self.weights = flat_weights(model)

    def __call__(self, weights: Tensor) -> float:
        """Return the loss at weights of shape (n,)."""
        with self._evaluation(), torch.no_grad():
            return sum(float(share) for share in self._shares(weights))

    def gradient(self, weights: Tensor) -> tuple[float, Tensor]:
        """Return the loss at weights of shape (n,) and its gradient, of the same shape.

        Raises:
            ValueError: the loss is not finite.
            RuntimeError: a layer has sparse gradients.
        """
        check_dense_layers(self._model, self._parameters.values())
        leaf = weights.detach().requires_grad_()
        loss, gradient = 0.0, torch.zeros_like(weights)
        with self._evaluation(), torch.enable_grad():
            for share in self._shares(leaf):
                loss += share.item()
                gradient += torch.autograd.grad(share, leaf)[0]
        return checked(loss, "the loss"), gradient

    def hessian_product(self, vector: Tensor) -> Tensor:
        """Return the product of the Hessian at the model's weights with a vector of shape (n,), of the same shape.

        Raises:
            ValueError: the product is not finite.
            RuntimeError: a layer has sparse gradients.
        """
        check_dense_layers(self._model, self._parameters.values())
        leaf = self.weights.detach().requires_grad_()
        product = torch.zeros_like(vector)
        # the only attention kernel that can be differentiated twice
        with self._evaluation(), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            for share in self._shares(leaf):
                (gradient,) = torch.autograd.grad(share, leaf, create_graph=True)
                slope = gradient @ vector
                if slope.requires_grad:  # otherwise the loss is linear in the weights
                    product += torch.autograd.grad(slope, leaf, materialize_grads=True)[0]
        checked(norm(product), "the norm of a Hessian-vector product")
        return product

    def _shares(self, weights: Tensor) -> Iterator[Tensor]:
        """Yield the contribution of each batch to the mean loss."""
        parts = {
            name: part.view(p.shape).to(p.dtype)
            for (name, p), part in zip(self._parameters.items(), torch.split(weights, self._sizes), strict=True)
        }
        for inputs, targets in self._batches:
            outputs = functional_call(self._model, parts, (inputs,))
            yield at_least_float32(self._loss(outputs, targets)) * (len(targets) / self._samples)

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        device = self.weights.device
        with evaluation_mode(self._model), torch.random.fork_rng([device] if device.type == "cuda" else []):
            seed_generators(torch_seed("mean loss"), device)
            yield


def checked(value: float, name: str) -> float:
    """Return a number after checking that it is finite.

    Raises:
        ValueError: it is not; the message begins with ``name``.
    """
    if not abs(value) < float("inf"):
        raise ValueError(f"{name} is {value}")
    return value
