"""Base of the AND-mask and the SAND-mask, which scale every element of the gradient by the domains' agreement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from shiftproof.algorithms.algorithm import Algorithm
from shiftproof.base.batch import Batch
from shiftproof.models import Network


class GradientMask(Algorithm, ABC):
    """Multiplies the mean of the domains' gradients by a `mask`, element by element.

    The domains' gradients are evaluated one after the other, and only their sums are kept.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        rescale: whether to divide the gradient of every parameter tensor by the mean of its mask.
    """

    accumulates: ClassVar[bool] = False
    single_device: ClassVar[str | None] = (
        "it compares the gradients of whole domains, and each device holds only parts of them"
    )
    reads_variances: ClassVar[bool] = False
    """Whether the mask depends on the variance of the domains' gradients."""

    def __init__(self, network: Network, num_domains: int, rescale: bool) -> None:
        super().__init__(network, num_domains)
        self.rescale = rescale

    @abstractmethod
    def mask(self, agreement: Tensor, variance: Tensor) -> Tensor:
        """Return the factors, from 0 to 1, of the elements of one parameter's gradient.

        Args:
            agreement: magnitude of the mean over the domains of the gradient's sign.
            variance: variance of the gradient over the domains (divided by their number less 1; 0 for one domain), if
                the class reads it.
        """

    def backward(self, batches: Sequence[Batch], create_graph: bool = False) -> Tensor:
        """Leave the masked gradients in the parameters and return the mean of the domains' losses, detached."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        sums: list[Tensor | None] = [None] * len(parameters)
        signs: list[Tensor] = [p.new_zeros(()) for p in parameters]
        squares: list[Tensor] = [p.new_zeros(()) for p in parameters]  # of deviations from the mean so far
        losses = []
        for domain in range(len(batches)):
            loss = self.domain_loss(batches, domain)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True, create_graph=create_graph)
            for i, gradient in enumerate(gradients):
                if gradient is not None:
                    before = sums[i]
                    sums[i] = gradient if before is None else before + gradient
                    signs[i] = signs[i] + gradient.detach().sign()
                    if self.reads_variances and before is not None:  # Welford's update: no difference of large squares
                        deviation = gradient.detach() - before.detach() / domain
                        squares[i] = squares[i] + deviation.square() * (domain / (domain + 1))
            losses.append(loss.detach())
        for p, total, sign, square in zip(parameters, sums, signs, squares, strict=True):
            if total is not None:
                mask = self.mask(sign.abs() / len(batches), square / max(len(batches) - 1, 1)).to(total.dtype)
                if self.rescale:
                    mask = mask / mask.mean().clamp_min(1e-10)  # a mask of zeros stays zero
                masked = mask * total / len(batches)
                p.grad = masked if p.grad is None else p.grad + masked
        return torch.stack(losses).mean()
