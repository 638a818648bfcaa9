"""IB-ERM and IB-IRM, which keep the variance of the features small (Ahuja et al., 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from shiftproof.algorithms.algorithm import ALGORITHMS
from shiftproof.algorithms.annealed_penalty import AnnealedPenalty
from shiftproof.algorithms.domain_loss import mean_domain_loss, split_domains
from shiftproof.algorithms.irm import IRM, irm_penalty
from shiftproof.algorithms.two_phases import check_steps
from shiftproof.base.batch import Batch
from shiftproof.base.choices import Task
from shiftproof.base.hparams import Hparam, log10_int, log10_uniform
from shiftproof.models import Network


class IBERM(AnnealedPenalty):
    r"""IB-ERM (Ahuja et al., "Invariance Principle Meets Information Bottleneck", NeurIPS 2021, arXiv 2106.06607).

    .. math:: \frac{1}{E} \sum_e \left( R_e + \nu \, \frac{1}{d} \sum_j \operatorname{Var}_e(z_j) \right)

    with :math:`\operatorname{Var}_e` the variance (divided by n - 1) of a domain's :math:`d` features. The paper bounds
    the features' entropy by their variance. Taking it within every domain, averaging it over the features (after the
    dropout) and over the domains, and the weight of 0 before it is raised are as in DomainBed. With one source domain
    it penalises that domain's variance.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        penalty_weight: :math:`\nu` after the first ``anneal_steps`` steps, at least 0.
        anneal_steps: number of steps before the penalty is raised, at least 0.

    Raises:
        ValueError: an argument is out of its range, or a batch has only one image (raised by `objective`).
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {
        "penalty_weight": Hparam(100.0, log10_uniform(-1, 5), seed_name="ib_lambda"),
        "anneal_steps": Hparam(500, log10_int(0, 4), seed_name="ib_penalty_anneal_iters"),
    }
    short_hparams: ClassVar[Mapping[str, Hparam]] = {
        "anneal_steps": Hparam(30, log10_int(0, 2.5), seed_name="ib_penalty_anneal_iters"),
    }
    weight_before: ClassVar[float] = 0.0
    min_images: ClassVar[int] = 2

    def __init__(
        self, network: Network, num_domains: int, penalty_weight: float = 100.0, anneal_steps: int = 500
    ) -> None:
        super().__init__(network, num_domains, penalty_weight, anneal_steps)

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the mean over domains of the loss plus the weighted variance, from one forward pass."""
        features = self.network.dropout(self.network.featurizer(torch.cat([images for images, _ in batches])))
        return self._loss(self.network.classifier(features), batches) + self._weighted_variance(features, batches)

    def _loss(self, logits: Tensor, batches: Sequence[Batch]) -> Tensor:
        """Return the loss apart from the variance."""
        return mean_domain_loss(logits, batches, self.network.loss)

    def _weighted_variance(self, features: Tensor, batches: Sequence[Batch]) -> Tensor:
        if not self.weight:
            return features.new_zeros(())
        parts = split_domains(features.to(torch.promote_types(features.dtype, torch.float32)), batches)
        if min(map(len, parts)) < 2:
            raise ValueError(f"{type(self).__name__} needs the variance of a domain's features, and 1 image has none")
        return self.weight * torch.stack([part.var(0).mean() for part in parts]).mean()


class IBIRM(IBERM):
    r"""IB-IRM (Ahuja et al., NeurIPS 2021): the penalty of `IBERM` on top of that of `IRM`.

    .. math:: \frac{1}{E} \sum_e \left( R_e + \lambda \lVert \nabla_{w|w=1} R_e(w \cdot \Phi) \rVert^2
        + \nu \, \frac{1}{d} \sum_j \operatorname{Var}_e(z_j) \right)

    Each penalty has its own number of steps before it is raised, IRM's from 1 and that of the variance from 0, and the
    optimizer starts anew at both, as in DomainBed.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        penalty_weight: :math:`\nu` after the first ``anneal_steps`` steps, at least 0.
        anneal_steps: number of steps before the variance is penalised, at least 0.
        irm_weight: :math:`\lambda` after the first ``irm_anneal_steps`` steps, at least 0.
        irm_anneal_steps: number of steps before IRM's penalty is raised, at least 0.

    Raises:
        ValueError: an argument is out of its range, or a batch has only one image (raised by `objective`).
    """

    tasks: ClassVar[tuple[Task, ...]] = IRM.tasks
    weighs_classes: ClassVar[bool] = IRM.weighs_classes
    limits: ClassVar[str] = IRM.limits
    hparams: ClassVar[Mapping[str, Hparam]] = {
        **IBERM.hparams,
        "irm_weight": IRM.hparams["penalty_weight"],
        "irm_anneal_steps": IRM.hparams["anneal_steps"],
    }
    short_hparams: ClassVar[Mapping[str, Hparam]] = {
        **IBERM.short_hparams,
        "irm_anneal_steps": IRM.short_hparams["anneal_steps"],
    }

    def __init__(
        self,
        network: Network,
        num_domains: int,
        penalty_weight: float = 100.0,
        anneal_steps: int = 500,
        irm_weight: float = 100.0,
        irm_anneal_steps: int = 500,
    ) -> None:
        super().__init__(network, num_domains, penalty_weight, anneal_steps)
        if not 0 <= irm_weight < math.inf:
            raise ValueError(f"Invalid irm_weight value: {irm_weight}; it must be at least 0")
        check_steps("irm_anneal_steps", irm_anneal_steps)
        self.irm_weight, self.irm_anneal_steps = irm_weight, irm_anneal_steps
        self._irm_weight = IRM.weight_before if irm_anneal_steps else irm_weight

    def before_step(self, batches: Sequence[Batch], step: int) -> None:
        """Set both penalties' weights, and replace the optimizer at the steps that raise one."""
        super().before_step(batches, step)
        self._irm_weight = IRM.weight_before if step <= self.irm_anneal_steps else self.irm_weight
        if step == self.irm_anneal_steps + 1 > 1 and self.irm_anneal_steps != self.anneal_steps:
            self._renew("annealed irm")

    def _loss(self, logits: Tensor, batches: Sequence[Batch]) -> Tensor:
        return super()._loss(logits, batches) + self._irm_weight * irm_penalty(logits, batches)


ALGORITHMS.register("ib_erm", IBERM)
ALGORITHMS.register("ib_irm", IBIRM)
