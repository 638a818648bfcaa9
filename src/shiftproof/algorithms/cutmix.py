"""CutMix, which pastes a rectangle of another image of the batch into every image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Beta

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm
from shiftproof.algorithms.domain_loss import pooled
from shiftproof.base.batch import Batch
from shiftproof.base.choices import PICTURES, Kind
from shiftproof.base.hparams import Hparam
from shiftproof.models import Network


class CutMix(Algorithm):
    r"""CutMix (Yun et al., ICCV 2019, arXiv 1905.04899, equations 1 and 2).

    In a share ``p`` of the steps, each image of the batch of all domains gets a rectangle of another image, which a
    permutation gives it:

    .. math:: x = M \odot x_i + (1 - M) \odot x_j, \qquad
        L = \lambda \, \ell(f(x), y_i) + (1 - \lambda) \, \ell(f(x), y_j).

    The mask :math:`M` is 0 in the rectangle, which is the same for all images of a step: its centre is uniform, and its
    sides are :math:`\sqrt{1 - \lambda}` times the image's, with :math:`\lambda \sim \text{Beta}(\alpha, \alpha)`. What
    lies outside the image is cut off, and :math:`\lambda` in the loss is the share of pixels outside the rectangle. All
    of this is the paper's, its code's and SWAD's; halves of the sides are rounded down to whole pixels as in the code.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        p: probability that a step mixes, in [0, 1]. The paper has 1 for ImageNet and 0.5 for CIFAR.
        alpha: both parameters of the Beta distribution, at least 0.01.

    Raises:
        ValueError: an argument is out of its range.
    """

    kinds: ClassVar[tuple[Kind, ...]] = PICTURES
    reads_pictures: ClassVar[bool] = True
    limits: ClassVar[str] = "it pastes rectangles of pictures into others"
    single_device: ClassVar[str | None] = "it mixes images of the whole batch"
    hparams: ClassVar[Mapping[str, Hparam]] = {"p": Hparam(1.0), "alpha": Hparam(1.0)}

    def __init__(self, network: Network, num_domains: int, p: float = 1.0, alpha: float = 1.0) -> None:
        super().__init__(network, num_domains)
        if not 0 <= p <= 1:
            raise ValueError(f"Invalid p value: {p}; it must be in [0, 1]")
        if not 0.01 <= alpha < math.inf:  # for smaller ones float64 cannot hold the shares, which would become 1/2
            raise ValueError(f"Invalid alpha value: {alpha}; it must be at least 0.01")
        self.p = p
        concentration = torch.tensor(alpha, dtype=torch.float64, device="cpu")  # so that all devices draw the same
        self._shares = Beta(concentration, concentration)

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the loss of the images with their rectangles."""
        images, labels = pooled(batches)
        if float(torch.rand((), device="cpu")) >= self.p:
            return self.network.loss(self.predict(images), labels)
        height, width = images.shape[2:]
        (top, bottom), (left, right) = self._rectangle(height, width)
        partners = torch.randperm(len(images), device="cpu").to(images.device, non_blocking=True)
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = images[partners, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
        outputs = self.predict(mixed)
        own, pasted = (self.network.loss(outputs, of) for of in (labels, labels[partners]))
        return share * own + (1 - share) * pasted

    def _rectangle(self, height: int, width: int) -> list[tuple[int, int]]:
        """Draw the first row and column of a rectangle, and the first ones behind it."""
        ratio = math.sqrt(1 - float(self._shares.sample()))
        ends = []
        for side in (height, width):
            centre, half = int(torch.randint(side, (), device="cpu")), int(side * ratio) // 2
            ends.append((max(centre - half, 0), min(centre + half, side)))
        return ends


ALGORITHMS.register("cutmix", CutMix)
