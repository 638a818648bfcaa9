"""Risk distribution matching (Nguyen et al., 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from shiftproof.algorithms.algorithm import ALGORITHMS
from shiftproof.algorithms.annealed_penalty import AnnealedPenalty
from shiftproof.algorithms.domain_loss import pooled, split_domains
from shiftproof.algorithms.mmd import BANDWIDTHS, gaussian_kernel
from shiftproof.base.batch import Batch
from shiftproof.base.choices import Task
from shiftproof.base.hparams import Hparam, uniform, uniform_int
from shiftproof.models import Network

_BANDWIDTHS = (1e-4, *BANDWIDTHS)


class RDM(AnnealedPenalty):
    r"""Risk distribution matching (Nguyen, Do, Duong and Nguyen, WACV 2024, arXiv 2310.18598).

    .. math:: \frac{1}{E} \sum_e R_e + \lambda \operatorname{MMD}^2(T_w, T)
        + \kappa \left( \operatorname{Var}(T) + \operatorname{Var}(T_w) \right), \quad w = \operatorname{argmax}_e R_e

    with :math:`T_e` the cross-entropies of the images of domain :math:`e` and :math:`T` those of all. The squared
    discrepancy is the biased estimate of `MMD`, with the kernels
    :math:`\sum_\gamma \exp(-\gamma (a - b)^2), \gamma \in \{10^{-4}, 10^{-3}, ..., 10^3\}`. The variances (divided by
    n - 1) are those of the authors' code, which is DomainBed's; ``variance_weight`` 0 leaves the paper's objective.
    Both weights are 0 before they are raised; then the optimizer starts anew, with a learning rate of its own. With one
    source domain the discrepancy is 0.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        penalty_weight: :math:`\lambda` after the first ``anneal_steps`` steps, at least 0.
        anneal_steps: number of steps before the weights are raised, at least 0.
        variance_weight: :math:`\kappa` from then on, at least 0.
        lr_ratio: the learning rate from then on, divided by the run's; above 0.

    Raises:
        ValueError: an argument is out of its range, or a batch has only one image (raised by `objective`).
    """

    tasks: ClassVar[tuple[Task, ...]] = ("classification",)
    weighs_classes: ClassVar[bool] = False
    limits: ClassVar[str] = "it matches distributions of the images' cross-entropies"
    min_images: ClassVar[int] = 2
    weight_before: ClassVar[float] = 0.0
    hparams: ClassVar[Mapping[str, Hparam]] = {
        "penalty_weight": Hparam(5.0, uniform(0.1, 10.0), seed_name="rdm_lambda"),
        "anneal_steps": Hparam(1500, uniform_int(800, 2700), seed_name="rdm_penalty_anneal_iters"),
        "variance_weight": Hparam(0.004, uniform(0.001, 0.007)),
        "lr_ratio": Hparam(0.3, uniform(0.16, 0.4), seed_name="rdm_lr", relative_to="optimizer.lr"),
    }
    hparams_on: ClassVar[Mapping[str, Mapping[str, Hparam]]] = {
        "small_images": {
            "lr_ratio": Hparam(0.015, uniform(0.008, 0.02), seed_name="rdm_lr", relative_to="optimizer.lr"),
        },
        "PACS": {"penalty_weight": Hparam(5.0, uniform(1.0, 10.0), seed_name="rdm_lambda")},
        "TerraIncognita": {
            "penalty_weight": Hparam(5.0, uniform(1.0, 10.0), seed_name="rdm_lambda"),
            "variance_weight": Hparam(0.0),
        },
        "OfficeHome": {"variance_weight": Hparam(0.0)},
        "DomainNet": {
            "penalty_weight": Hparam(0.5, uniform(0.1, 1.0), seed_name="rdm_lambda"),
            "anneal_steps": Hparam(2400, uniform_int(1500, 3000), seed_name="rdm_penalty_anneal_iters"),
            "variance_weight": Hparam(0.0),
        },
    }
    short_hparams: ClassVar[Mapping[str, Hparam]] = {
        "anneal_steps": Hparam(90, uniform_int(48, 162), seed_name="rdm_penalty_anneal_iters"),
    }

    def __init__(
        self,
        network: Network,
        num_domains: int,
        penalty_weight: float = 5.0,
        anneal_steps: int = 1500,
        variance_weight: float = 0.004,
        lr_ratio: float = 0.3,
    ) -> None:
        super().__init__(network, num_domains, penalty_weight, anneal_steps, lr_ratio)
        if not 0 <= variance_weight < math.inf:
            raise ValueError(f"Invalid variance_weight value: {variance_weight}; it must be at least 0")
        self.variance_weight = variance_weight

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the mean of the domains' losses plus the weighted penalties, from one forward pass."""
        images, labels = pooled(batches)
        logits = self.predict(images)
        risks = F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels, reduction="none")
        of_domains = split_domains(risks, batches)
        means = torch.stack([of_domain.mean() for of_domain in of_domains])
        if self.beginning:
            return means.mean()
        if min(map(len, of_domains)) < 2:
            raise ValueError("RDM needs the variance of a domain's cross-entropies, and 1 image has none")
        is_worst = F.one_hot(means.argmax(), len(batches)).to(risks)  # an index would wait for the device
        of_worst = [share.expand(len(own)) / len(own) for share, own in zip(is_worst, of_domains, strict=True)]
        difference = torch.cat(of_worst) - 1 / len(risks)
        with torch.autocast(risks.device.type, enabled=False):
            discrepancy = difference @ gaussian_kernel(risks[:, None], _BANDWIDTHS) @ difference
        variance = risks.var() + (is_worst * torch.stack([of_domain.var() for of_domain in of_domains])).sum()
        return means.mean() + self.penalty_weight * discrepancy + self.variance_weight * variance


ALGORITHMS.register("rdm", RDM)
