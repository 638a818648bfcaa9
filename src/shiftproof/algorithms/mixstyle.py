"""MixStyle: new styles between those of the images of a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm
from shiftproof.algorithms.domain_loss import pooled
from shiftproof.algorithms.stages import find_stages
from shiftproof.base.batch import Batch
from shiftproof.base.hparams import Hparam
from shiftproof.models import Network

_EPSILON = 1e-6  # added to variances


class MixStyle(Algorithm):
    r"""MixStyle (Zhou et al., "Domain Generalization with MixStyle", ICLR 2021, arXiv 2104.02008).

    Trains as ERM does, but behind a stage of the featurizer, with probability ``p`` of its own in every pass, the
    style of an image's feature maps :math:`x`, their mean :math:`\mu` and standard deviation :math:`\sigma` over the
    pixels of each channel, is mixed with that of another image :math:`\tilde x` of the batch:

    .. math:: \gamma\,\frac{x - \mu(x)}{\sigma(x)} + \beta,\quad
        \gamma = \lambda\sigma(x) + (1 - \lambda)\sigma(\tilde x),\
        \beta = \lambda\mu(x) + (1 - \lambda)\mu(\tilde x),\ \lambda \sim Beta(\alpha, \alpha).

    No gradient passes through the statistics. The other image is any of the batch, the paper's form without domain
    labels, which works with one source domain too. The stages are the three before the last: in a residual network,
    layers 1 to 3. Predictions and the losses of single domains are those of the network itself.

    Args:
        network: the network to train; its featurizer is convolutional.
        num_domains: number of source domains.
        p: probability of mixing, in [0, 1].
        alpha: of the Beta distribution, above 0.

    Raises:
        ValueError: the featurizer has no feature maps before its last stage, or an argument is out of its range.
    """

    single_device: ClassVar[str | None] = "it mixes images inside the featurizer"
    hparams: ClassVar[Mapping[str, Hparam]] = {"p": Hparam(0.5), "alpha": Hparam(0.1)}

    def __init__(self, network: Network, num_domains: int, p: float = 0.5, alpha: float = 0.1) -> None:
        super().__init__(network, num_domains)
        if not 0 <= p <= 1:
            raise ValueError(f"Invalid p value: {p}; it must be in [0, 1]")
        if not 0 < alpha < math.inf:
            raise ValueError(f"Invalid alpha value: {alpha}; it must be above 0")
        stages = find_stages(network)[-4:-1]
        if not stages or any(stage.channel_dim != 1 for stage in stages):
            raise ValueError(
                "MixStyle mixes statistics of feature maps (n, channels, height, width) before the last stage of a "
                f"convolutional featurizer; this {type(network.featurizer).__name__} has none"
            )
        self.p = p
        self.alpha = alpha
        self.stages = tuple(stage.name for stage in stages)
        self._draws: list[tuple[Tensor, Tensor] | None] = [None for _ in stages]  # None: nothing is mixed
        for i, name in enumerate(self.stages):
            network.featurizer.get_submodule(name).register_forward_hook(partial(self._mix, i))

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the cross-entropy over all images, in training with mixed styles."""
        images, labels = pooled(batches)
        if self.training:
            self._draws = self._draw(images)
        try:
            return F.cross_entropy(self.predict(images), labels)
        finally:
            self._draws = [None for _ in self.stages]

    def _draw(self, images: Tensor) -> list[tuple[Tensor, Tensor] | None]:
        """Draw, on the CPU, the weight of every image's own style and its partner, by stage; None mixes nothing."""
        draws: list[tuple[Tensor, Tensor] | None] = []
        for mixes in (torch.rand(len(self.stages), device="cpu") < self.p).tolist():
            weights = torch.distributions.Beta(self.alpha, self.alpha).sample((len(images),))
            partners = torch.randperm(len(images), device="cpu")
            moved = weights.to(images, non_blocking=True), partners.to(images.device, non_blocking=True)
            draws.append(moved if mixes else None)
        return draws

    def _mix(self, stage: int, module: nn.Module, inputs: object, maps: Tensor) -> Tensor | None:
        draw = self._draws[stage]
        return None if draw is None else mix_styles(maps, *draw)


def mix_styles(maps: Tensor, weights: Tensor, partners: Tensor) -> Tensor:
    """Return feature maps whose styles are mixed; those of weight 1 are left as they are, bit for bit.

    Args:
        maps: (n, channels, height, width).
        weights: (n,), of an image's own style.
        partners: (n,), the images whose styles are mixed in.
    """
    with torch.no_grad():
        mean = maps.mean((2, 3), keepdim=True)
        variance = (maps - mean).square_().mean((2, 3), keepdim=True)  # var_mean takes the CPU six times as long
        deviation = (variance + _EPSILON).sqrt()
        weights = weights[:, None, None, None]
        scale = (weights * deviation + (1 - weights) * deviation[partners]) / deviation
        shift = weights * mean + (1 - weights) * mean[partners] - mean * scale
    return torch.addcmul(shift.to(maps.dtype), maps, scale.to(maps.dtype))


ALGORITHMS.register("mixstyle", MixStyle)
