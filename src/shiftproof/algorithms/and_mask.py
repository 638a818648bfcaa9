"""The AND-mask (Parascandolo et al., 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm
from shiftproof.base.batch import Batch
from shiftproof.base.hparams import REFERENCE_DIALECTS, Hparam, uniform
from shiftproof.models import Network


class ANDMask(Algorithm):
    r"""AND-mask (Parascandolo et al., "Learning explanations that are hard to vary", ICLR 2021, section 3.3).

    .. math:: g = m \odot \frac{1}{E} \sum_e g_e, \quad
        m_j = \left[\, \left|\sum_e \operatorname{sign}(g_e)_j\right| \ge \tau E \,\right]

    with :math:`g_e` the gradients of the domains' losses: a weight moves only if enough domains agree on the sign. With
    ``rescale``, the gradient of every parameter tensor is divided by the share of its elements that the mask keeps, as
    in the released code and in DomainBed's. With one source domain this is ERM.

    The domains' gradients are evaluated one after the other, and only their sums are kept.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        tau: :math:`\tau`, in [0, 1]; at 1 all domains must agree.
        rescale: whether to divide by the kept share.

    Raises:
        ValueError: an argument is out of its range.
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {
        "tau": Hparam(1.0, uniform(0.5, 1.0)),
        "rescale": Hparam(False, in_dialects=dict.fromkeys(REFERENCE_DIALECTS, True)),
    }
    accumulates: ClassVar[bool] = False
    single_device: ClassVar[str | None] = (
        "it compares the gradients of whole domains, and each device holds only parts of them"
    )

    def __init__(self, network: Network, num_domains: int, *, tau: float = 1.0, rescale: bool = False) -> None:
        super().__init__(network, num_domains)
        if not 0 <= tau <= 1:
            raise ValueError(f"Invalid tau value: {tau}; it must be in [0, 1]")
        self.tau, self.rescale = tau, rescale

    def backward(self, batches: Sequence[Batch], create_graph: bool = False) -> Tensor:
        """Leave the masked gradients in the parameters and return the mean of the domains' losses, detached."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        sums: list[Tensor | None] = [None] * len(parameters)
        signs: list[Tensor] = [p.new_zeros(()) for p in parameters]
        losses = []
        for domain in range(len(batches)):
            loss = self.domain_loss(batches, domain)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True, create_graph=create_graph)
            for i, gradient in enumerate(gradients):
                if gradient is not None:
                    before = sums[i]
                    sums[i] = gradient if before is None else before + gradient
                    signs[i] = signs[i] + gradient.detach().sign()
            losses.append(loss.detach())
        for p, total, agreement in zip(parameters, sums, signs, strict=True):
            if total is not None:
                mask = (agreement.abs() >= self.tau * len(batches)).to(total.dtype)
                if self.rescale:
                    mask = mask / mask.mean().clamp_min(1 / mask.numel())  # a mask of zeros stays zero
                masked = mask * total / len(batches)
                p.grad = masked if p.grad is None else p.grad + masked
        return torch.stack(losses).mean()


ALGORITHMS.register("and_mask", ANDMask)
