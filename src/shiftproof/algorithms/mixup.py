"""Mixup between source domains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Beta

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm
from shiftproof.algorithms.domain_loss import passed, pooled, split_domains
from shiftproof.base.batch import Batch
from shiftproof.base.hparams import Hparam, log10_uniform, option
from shiftproof.models import Network


class Mixup(Algorithm):
    r"""Inter-domain mixup (Yan et al., arXiv 2001.00677; mixup: Zhang et al., ICLR 2018, arXiv 1710.09412).

    The domains are arranged in a ring at random. Each pair of neighbours (i, j) is mixed with one share
    :math:`\lambda \sim \text{Beta}(\alpha, \alpha)`,

    .. math:: x = \lambda x_i + (1 - \lambda) x_j, \qquad
        L_{ij} = \lambda \, \ell(f(x), y_i) + (1 - \lambda) \, \ell(f(x), y_j),

    and the loss is the mean of all :math:`L_{ij}`. If batches differ in size, only as many images are mixed as the
    smaller one has, the first of each. A single domain is mixed with itself in another order, as in the original mixup.

    This differs from DomainBed in two ways. All pairs share one forward pass; DomainBed makes one per pair, as does
    ``separate_passes`` here, which matters if batch norms normalise by the batch. And DomainBed does not mix a single
    domain. The search behind its published table always draws 0.1 by mistake (fixed in commit aa728f5), as do the
    dialects ``domainbed`` and ``swad``.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        alpha: both parameters of the Beta distribution, at least 0.01; smaller values mix less.
        separate_passes: whether every pair passes through the network on its own, as in DomainBed, so that batch norms
            that are not frozen see one pair at a time.

    Raises:
        ValueError: ``alpha`` is out of its range.
    """

    mixes_images: ClassVar[bool] = True
    reads_pictures: ClassVar[bool] = True
    hparams: ClassVar[Mapping[str, Hparam]] = {
        "alpha": Hparam(0.2, log10_uniform(-1, 1), seed_name="mixup_alpha", published_draw=log10_uniform(-1, -1)),
        "separate_passes": option(False, True),
    }

    def __init__(self, network: Network, num_domains: int, alpha: float = 0.2, separate_passes: bool = False) -> None:
        super().__init__(network, num_domains)
        if not 0.01 <= alpha < math.inf:  # for smaller ones float64 cannot hold the shares, which would become 1/2
            raise ValueError(f"Invalid alpha value: {alpha}; it must be at least 0.01")
        concentration = torch.tensor(alpha, dtype=torch.float64, device="cpu")  # so that all devices draw the same
        self.separate_passes = separate_passes
        self._shares = Beta(concentration, concentration)

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the loss of all mixed pairs."""
        order = torch.randperm(len(batches), device="cpu").tolist()
        mixed: list[Batch] = []
        partners: list[tuple[float, Tensor]] = []
        for i, j in zip(order, order[1:] + order[:1], strict=True):
            (images, labels), (others, other_labels) = batches[i], batches[j]
            if i == j:
                shuffled = torch.randperm(len(labels), device="cpu").to(labels.device, non_blocking=True)
                others, other_labels = others[shuffled], other_labels[shuffled]
            count = min(len(labels), len(other_labels))
            share = float(self._shares.sample())
            mixed.append((share * images[:count] + (1 - share) * others[:count], labels[:count]))
            partners.append((share, other_labels[:count]))
        parts = split_domains(passed(self.network, self.predict, mixed, self.separate_passes), mixed)
        losses = [
            share * self.network.loss(logits, labels) + (1 - share) * self.network.loss(logits, other_labels)
            for logits, (_, labels), (share, other_labels) in zip(parts, mixed, partners, strict=True)
        ]
        return torch.stack(losses).mean()


class OrgMixup(Mixup):
    r"""Mixup of all images of a step, whatever their domains (Zhang et al., ICLR 2018, arXiv 1710.09412, section 2).

    The batches of all domains are one batch, each of whose images is mixed with another that a permutation gives it,
    with one share :math:`\lambda \sim \text{Beta}(\alpha, \alpha)` for the step:

    .. math:: x = \lambda x_i + (1 - \lambda) x_j, \qquad
        L = \lambda \, \ell(f(x), y_i) + (1 - \lambda) \, \ell(f(x), y_j).

    This is the "OrgMixup" of SWAD's code, which does the same. With one source domain it is `Mixup`.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        alpha: both parameters of the Beta distribution, at least 0.01; smaller values mix less.

    Raises:
        ValueError: ``alpha`` is out of its range.
    """

    single_device: ClassVar[str | None] = "it mixes images of the whole batch"
    hparams: ClassVar[Mapping[str, Hparam]] = {"alpha": Mixup.hparams["alpha"]}

    def __init__(self, network: Network, num_domains: int, alpha: float = 0.2) -> None:
        super().__init__(network, num_domains, alpha)

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the loss of the mixed images."""
        return super().objective([pooled(batches)])


ALGORITHMS.register("mixup", Mixup)
ALGORITHMS.register("orgmixup", OrgMixup)
