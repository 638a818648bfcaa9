"""Spectral decoupling (Pezeshki et al., 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm
from shiftproof.algorithms.domain_loss import pooled
from shiftproof.base.batch import Batch
from shiftproof.base.choices import Task
from shiftproof.base.hparams import Hparam, log10_uniform
from shiftproof.models import Network


class SpectralDecoupling(Algorithm):
    r"""Spectral decoupling (Pezeshki et al., "Gradient Starvation", NeurIPS 2021, arXiv 2011.09468, equation 25).

    .. math:: L + \lambda \cdot \frac{1}{nC} \sum_i \lVert l_i \rVert^2

    with :math:`L` the mean cross-entropy over the images of all domains and :math:`l_i` the :math:`C` logits of an
    image. The domains play no part. The paper has one logit and half the squared norm; the mean of the squares is
    DomainBed's, to which the published weights belong. The two differ only in the unit of :math:`\lambda`.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        penalty_weight: the weight :math:`\lambda`, at least 0.

    Raises:
        ValueError: the weight is out of its range.
    """

    tasks: ClassVar[tuple[Task, ...]] = ("classification", "multilabel")
    limits: ClassVar[str] = "it keeps logits small, and values have a unit"
    hparams: ClassVar[Mapping[str, Hparam]] = {
        "penalty_weight": Hparam(0.1, log10_uniform(-5, -1), seed_name="sd_reg"),
    }

    def __init__(self, network: Network, num_domains: int, penalty_weight: float = 0.1) -> None:
        super().__init__(network, num_domains)
        if not 0 <= penalty_weight < math.inf:
            raise ValueError(f"Invalid penalty_weight value: {penalty_weight}; it must be at least 0")
        self.penalty_weight = penalty_weight

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the loss plus the weighted mean of the squared logits."""
        images, labels = pooled(batches)
        logits = self.predict(images)
        return self.network.loss(logits, labels) + self.penalty_weight * logits.square().mean()


ALGORITHMS.register("sd", SpectralDecoupling)
