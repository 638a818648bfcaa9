"""Risk extrapolation (Krueger et al., 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from shiftproof.algorithms.algorithm import ALGORITHMS
from shiftproof.algorithms.annealed_penalty import AnnealedPenalty
from shiftproof.algorithms.domain_loss import losses_by_domain
from shiftproof.base.batch import Batch
from shiftproof.base.hparams import Hparam, log10_int, log10_uniform
from shiftproof.models import Network


class VREx(AnnealedPenalty):
    r"""V-REx (Krueger et al., "Out-of-Distribution Generalization via Risk Extrapolation", ICML 2021, equation 8).

    .. math:: \bar R + \beta \cdot \frac{1}{E} \sum_e (R_e - \bar R)^2, \quad \bar R = \frac{1}{E} \sum_e R_e

    The variance is the population variance over the source domains. With one domain it is 0, and V-REx is ERM. As in
    DomainBed, the first term is the mean of the domains' losses (the paper has their sum), and the weight is 1 before
    it is raised.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        penalty_weight: :math:`\beta` after the first ``anneal_steps`` steps, at least 0.
        anneal_steps: number of steps before the penalty is raised, at least 0.

    Raises:
        ValueError: an argument is out of its range.
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {
        "penalty_weight": Hparam(10.0, log10_uniform(-1, 5), seed_name="vrex_lambda"),
        "anneal_steps": Hparam(500, log10_int(0, 4), seed_name="vrex_penalty_anneal_iters"),
    }
    short_hparams: ClassVar[Mapping[str, Hparam]] = {
        "anneal_steps": Hparam(30, log10_int(0, 2.5), seed_name="vrex_penalty_anneal_iters"),
    }

    def __init__(
        self, network: Network, num_domains: int, *, penalty_weight: float = 10.0, anneal_steps: int = 500
    ) -> None:
        super().__init__(network, num_domains, penalty_weight, anneal_steps)

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the mean of the domains' losses plus their weighted variance, from one forward pass."""
        logits = self.predict(torch.cat([images for images, _ in batches]))
        losses = losses_by_domain(logits, batches, self.network.loss)
        return losses.mean() + self.weight * losses.var(correction=0)


ALGORITHMS.register("vrex", VREx)
