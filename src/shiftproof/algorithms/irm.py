"""Invariant risk minimization (Arjovsky et al., 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from shiftproof.algorithms.algorithm import ALGORITHMS
from shiftproof.algorithms.annealed_penalty import AnnealedPenalty
from shiftproof.algorithms.domain_loss import mean_domain_loss, split_domains
from shiftproof.base.batch import Batch
from shiftproof.base.choices import Task
from shiftproof.base.hparams import Hparam, log10_int, log10_uniform
from shiftproof.models import Network


class IRM(AnnealedPenalty):
    r"""IRMv1 (Arjovsky, Bottou, Gulrajani and Lopez-Paz, arXiv 1907.02893).

    .. math:: \frac{1}{E} \sum_e \left( R_e + \lambda \lVert \nabla_{w|w=1} R_e(w \cdot \Phi) \rVert^2 \right)

    The squared norm is estimated without bias, as the paper does for minibatches (section 3.2, appendix D): as the
    product of the derivatives on the images at even and at odd positions, which may be negative. The derivative of one
    image's cross-entropy has the closed form :math:`\sum_c p_c l_c - l_y`, with logits :math:`l` and their softmax
    :math:`p`, so no second backward pass is needed. As in DomainBed, domains are averaged (the paper sums them), and
    the weight is 1 before it is raised.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        penalty_weight: :math:`\lambda` after the first ``anneal_steps`` steps, at least 0.
        anneal_steps: number of steps before the penalty is raised, at least 0.

    Raises:
        ValueError: an argument is out of its range, or a batch has only one image (raised by `objective`).
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {
        "penalty_weight": Hparam(100.0, log10_uniform(-1, 5), seed_name="irm_lambda"),
        "anneal_steps": Hparam(500, log10_int(0, 4), seed_name="irm_penalty_anneal_iters"),
    }
    short_hparams: ClassVar[Mapping[str, Hparam]] = {
        "anneal_steps": Hparam(30, log10_int(0, 2.5), seed_name="irm_penalty_anneal_iters"),
    }

    min_images: ClassVar[int] = 2
    tasks: ClassVar[tuple[Task, ...]] = ("classification",)
    weighs_classes: ClassVar[bool] = False
    limits: ClassVar[str] = "its penalty is the cross-entropy's derivative in closed form"

    def __init__(
        self, network: Network, num_domains: int, *, penalty_weight: float = 100.0, anneal_steps: int = 500
    ) -> None:
        super().__init__(network, num_domains, penalty_weight, anneal_steps)

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the mean over domains of the loss plus the weighted penalty, from one forward pass."""
        logits = self.predict(torch.cat([images for images, _ in batches]))
        return mean_domain_loss(logits, batches, self.network.loss) + self.weight * irm_penalty(logits, batches)


def irm_penalty(logits: Tensor, batches: Sequence[Batch]) -> Tensor:
    """Return the mean of the domains' penalties.

    Args:
        logits: logits (n, classes) of all images of the batches, in their order.
        batches: one batch per source domain.
    """
    domains = zip(split_domains(logits, batches), batches, strict=True)
    return torch.stack([_penalty(of_domain, labels) for of_domain, (_, labels) in domains]).mean()


def _penalty(logits: Tensor, labels: Tensor) -> Tensor:
    if len(labels) < 2:
        raise ValueError("IRM computes its penalty from two halves of each batch, and a batch of 1 image has none")
    derivatives = (logits.softmax(1) * logits).sum(1) - logits.gather(1, labels[:, None]).squeeze(1)
    return derivatives[::2].mean() * derivatives[1::2].mean()


ALGORITHMS.register("irm", IRM)
