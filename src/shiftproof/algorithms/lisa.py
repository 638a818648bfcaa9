"""LISA: mixup of images that share their class or their domain (Yao et al., 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Beta

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm
from shiftproof.algorithms.domain_loss import pooled, row_losses
from shiftproof.base.batch import Batch
from shiftproof.base.choices import Task
from shiftproof.base.hparams import Hparam, log10_uniform, uniform
from shiftproof.models import Network


class LISA(Algorithm):
    r"""Selective augmentation, "LISA" (Yao et al., ICML 2022, arXiv 2201.00299, algorithm 1).

    Every step mixes within classes with probability ``p_sel``, and within domains otherwise. Image i gets a partner j,
    drawn from the batch's images of the same class in other domains (:math:`y_j = y_i, d_j \ne d_i`), or else of other
    classes in the same domain (:math:`y_j \ne y_i, d_j = d_i`), and a share
    :math:`\lambda_i \sim \text{Beta}(\alpha, \alpha)`:

    .. math:: x = \lambda_i x_i + (1 - \lambda_i) x_j, \qquad
        L_i = \lambda_i \, \ell(f(x), y_i) + (1 - \lambda_i) \, \ell(f(x), y_j).

    The loss is the mean of all :math:`L_i`. Within a class both labels are one, so that only the style of the domains
    is mixed. An image without a partner in the batch stays as it is: with one source domain, none is mixed within a
    class.

    The paper draws partners from all training images; SubpopBench (Yang et al., ICML 2023), whose defaults and
    distributions these are, draws pairs of groups of the batch until it has enough, and leaves out images without a
    partner. Both also have CutMix in the place of mixup for some sets of pictures, which is left out here.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        alpha: both parameters of the Beta distribution, at least 0.01; smaller values mix less.
        p_sel: probability of mixing within classes, in [0, 1].

    Raises:
        ValueError: an argument is out of its range.
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {
        "alpha": Hparam(2.0, log10_uniform(-1, 1), seed_name="LISA_alpha"),
        "p_sel": Hparam(0.5, uniform(0, 1), seed_name="LISA_p_sel"),
    }
    accumulates: ClassVar[bool] = False
    reads_pictures: ClassVar[bool] = True
    tasks: ClassVar[tuple[Task, ...]] = ("classification",)
    weighs_classes: ClassVar[bool] = False
    limits: ClassVar[str] = "it chooses pairs by their classes, each with a share of its own"
    single_device: ClassVar[str | None] = "it mixes the images of a batch, and each device holds only some of them"

    def __init__(self, network: Network, num_domains: int, *, alpha: float = 2.0, p_sel: float = 0.5) -> None:
        super().__init__(network, num_domains)
        if not 0.01 <= alpha < math.inf:  # for smaller ones float64 cannot hold the shares, which would become 1/2
            raise ValueError(f"Invalid alpha value: {alpha}; it must be at least 0.01")
        if not 0 <= p_sel <= 1:
            raise ValueError(f"Invalid p_sel value: {p_sel}; it must be in [0, 1]")
        concentration = torch.tensor(alpha, dtype=torch.float64, device="cpu")  # so that all devices draw the same
        self.p_sel = p_sel
        self._shares = Beta(concentration, concentration)

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the loss of all images mixed with their partners."""
        inputs, labels = pooled(batches)
        domains = torch.cat([torch.full_like(own, domain) for domain, (_, own) in enumerate(batches)])
        within_classes = float(torch.rand((), device="cpu")) < self.p_sel
        shares = self._shares.sample((len(labels),)).to(inputs, non_blocking=True)
        order = torch.rand(len(labels), len(labels), device="cpu").to(labels.device, non_blocking=True)
        same_class, same_domain = (one[:, None] == one for one in (labels, domains))
        fits = same_class & ~same_domain if within_classes else same_domain & ~same_class
        partners = torch.where(fits, order, -1).argmax(1)
        shares = torch.where(fits.any(1), shares, 1)
        own = shares.view(-1, *[1] * (inputs.ndim - 1))
        outputs = self.predict(own * inputs + (1 - own) * inputs[partners])
        losses = shares * row_losses(outputs, labels) + (1 - shares) * row_losses(outputs, labels[partners])
        return losses.mean()


ALGORITHMS.register("lisa", LISA)
