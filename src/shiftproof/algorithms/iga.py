"""Inter-environmental gradient alignment (Koyama and Yamaguchi, 2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm
from shiftproof.base.batch import Batch
from shiftproof.base.hparams import Hparam, log10_uniform, option
from shiftproof.models import Network


class IGA(Algorithm):
    r"""Inter-environmental gradient alignment (Koyama and Yamaguchi, arXiv 2008.01883).

    .. math:: \frac{1}{E} \sum_e R_e + \lambda \cdot \frac{1}{E} \sum_e \lVert \nabla R_e - \bar g \rVert^2,
        \quad \bar g = \frac{1}{E} \sum_e \nabla R_e

    The penalty is the trace of the variance over domains of the gradients of all parameters, so its gradient takes a
    second backward pass. DomainBed sums the penalty over the domains, as does ``summed`` here, and holds
    :math:`\bar g` fixed, which changes no gradient, because the deviations from a mean add up to 0. The domains are
    evaluated one by one. With one source domain this is ERM.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        penalty_weight: the weight :math:`\lambda`, at least 0.
        summed: whether the squared deviations are summed over the domains rather than averaged.

    Raises:
        ValueError: the weight is out of its range.
    """

    differentiates: ClassVar[bool] = True
    accumulates: ClassVar[bool] = False
    single_device: ClassVar[str | None] = (
        "it compares the gradients of whole domains, and each device holds only parts of them"
    )
    hparams: ClassVar[Mapping[str, Hparam]] = {
        "penalty_weight": Hparam(1000.0, log10_uniform(1, 5), seed_name="penalty"),
        "summed": option(False, True, ("domainbed-head",)),
    }

    def __init__(
        self, network: Network, num_domains: int, penalty_weight: float = 1000.0, summed: bool = False
    ) -> None:
        super().__init__(network, num_domains)
        if not 0 <= penalty_weight < math.inf:
            raise ValueError(f"Invalid penalty_weight value: {penalty_weight}; it must be at least 0")
        self.penalty_weight, self.summed = penalty_weight, summed

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the mean of the domains' losses plus the weighted variance of their gradients."""
        losses = [self.domain_loss(batches, domain) for domain in range(len(batches))]
        loss = torch.stack(losses).mean()
        if len(batches) == 1 or not self.penalty_weight:
            return loss
        parameters = [p for p in self.parameters() if p.requires_grad]
        by_domain = [
            torch.autograd.grad(of_domain, parameters, create_graph=True, materialize_grads=True)
            for of_domain in losses
        ]
        stacked = [torch.stack(gradients) for gradients in zip(*by_domain, strict=True)]
        variances = torch.stack([(g - g.mean(0)).square().sum() for g in stacked])
        return loss + self.penalty_weight * variances.sum() / (1 if self.summed else len(batches))


ALGORITHMS.register("iga", IGA)
