"""Distributionally robust optimization by the conditional value at risk (Levy et al., 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm
from shiftproof.algorithms.domain_loss import pooled, row_losses
from shiftproof.base.batch import Batch
from shiftproof.base.hparams import Hparam, log10_uniform
from shiftproof.models import Network


class CVaRDRO(Algorithm):
    r"""The mean of the worst share of a batch's losses (Levy, Carmon, Duchi and Sidford, NeurIPS 2020).

    .. math:: L = \max_q \left\{ \sum_i q_i \ell_i : q_i \ge 0,\ \sum_i q_i = 1,\ q_i \le \frac{1}{\alpha n} \right\}

    over the losses :math:`\ell_i` of all :math:`n` images of the batch, whatever their domain (arXiv 2010.05893,
    section 2: the conditional value at risk at level :math:`\alpha`, estimated from a batch). The maximum is the mean
    of the :math:`\alpha n` largest losses, of which the last counts in part where :math:`\alpha n` is no whole number;
    if it is below 1, it is the largest loss. The weights :math:`q` count as constants in the gradient.

    The authors' code finds :math:`q` by bisection, with the same result. The default and the search distribution are
    those of SubpopBench (Yang et al., ICML 2023).

    Args:
        network: the network to train.
        num_domains: number of source domains.
        alpha: share :math:`\alpha` of the images, above 0 and at most 1; 1 is ERM.

    Raises:
        ValueError: an argument is out of its range.
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {
        "alpha": Hparam(0.1, log10_uniform(-2, 0), seed_name="joint_dro_alpha"),
    }
    accumulates: ClassVar[bool] = False
    weighs_classes: ClassVar[bool] = False
    limits: ClassVar[str] = "it ranks the losses of single rows, without weights"

    def __init__(self, network: Network, num_domains: int, *, alpha: float = 0.1) -> None:
        super().__init__(network, num_domains)
        if not 0 < alpha <= 1:
            raise ValueError(f"Invalid alpha value: {alpha}; it must be above 0 and at most 1")
        self.alpha = alpha

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the mean of the worst share of all images' losses."""
        inputs, targets = pooled(batches)
        losses = row_losses(self.predict(inputs), targets, self.network.loss).sort(descending=True, stable=True).values
        count = max(self.alpha * len(losses), 1.0)
        places = torch.arange(len(losses), device=losses.device, dtype=losses.dtype)
        return ((count - places).clamp(0, 1) * losses).sum() / count


ALGORITHMS.register("cvar_dro", CVaRDRO)
