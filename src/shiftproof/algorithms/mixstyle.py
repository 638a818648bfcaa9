"""MixStyle, which creates new styles by mixing those of a batch's images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm
from shiftproof.algorithms.domain_loss import pooled
from shiftproof.algorithms.stages import find_stages
from shiftproof.base.batch import Batch
from shiftproof.base.choices import PICTURES, Kind
from shiftproof.base.hparams import Hparam, option
from shiftproof.models import Network

_EPSILON = 1e-6  # added to variances


class MixStyle(Algorithm):
    r"""MixStyle (Zhou et al., "Domain Generalization with MixStyle", ICLR 2021, arXiv 2104.02008).

    Training follows ERM, but mixes styles after some stages of the featurizer, in every pass with probability ``p`` per
    stage. The style of an image's feature maps :math:`x` is their mean :math:`\mu` and standard deviation
    :math:`\sigma` over the pixels of each channel. It is mixed with the style of another image :math:`\tilde x` of the
    batch:

    .. math:: \gamma\,\frac{x - \mu(x)}{\sigma(x)} + \beta,\quad
        \gamma = \lambda\sigma(x) + (1 - \lambda)\sigma(\tilde x),\
        \beta = \lambda\mu(x) + (1 - \lambda)\mu(\tilde x),\ \lambda \sim Beta(\alpha, \alpha).

    No gradient passes through the statistics. The other image can be any of the batch; this is the paper's form without
    domain labels, which also works with one source domain. The stages are the three before the last, which are layers 1
    to 3 in a residual network. Predictions and the losses of single domains use the network without mixing.

    Args:
        network: the network to train; its featurizer must be convolutional.
        num_domains: number of source domains.
        p: probability of mixing, in [0, 1].
        alpha: parameter of the Beta distribution, above 0.

    Raises:
        ValueError: the featurizer has no feature maps before its last stage, or an argument is out of its range.
    """

    kinds: ClassVar[tuple[Kind, ...]] = PICTURES
    reads_pictures: ClassVar[bool] = True
    limits: ClassVar[str] = "it mixes statistics of feature maps"
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
        """Return the cross-entropy over all images; in training mode, with mixed styles."""
        images, labels = pooled(batches)
        if self.training:
            drawn = self._draw([len(of_domain) for _, of_domain in batches])
            self._draws = [None if draw is None else _moved(draw, images) for draw in drawn]
        try:
            return self.network.loss(self.predict(images), labels)
        finally:
            self._draws = [None for _ in self.stages]

    def _draw(self, sizes: Sequence[int]) -> list[tuple[Tensor, Tensor] | None]:
        """Draw on the CPU, for each stage, the weight of every image's own style and its partner; None: do not mix.

        Args:
            sizes: the domains' numbers of images.
        """
        draws: list[tuple[Tensor, Tensor] | None] = []
        for mixes in (torch.rand(len(self.stages), device="cpu") < self.p).tolist():
            draw = self._weights(sum(sizes)), torch.randperm(sum(sizes), device="cpu")
            draws.append(draw if mixes else None)
        return draws

    def _weights(self, images: int) -> Tensor:
        return torch.distributions.Beta(self.alpha, self.alpha).sample((images,))

    def _mix(self, stage: int, module: nn.Module, inputs: object, maps: Tensor) -> Tensor | None:
        draw = self._draws[stage]
        return None if draw is None else mix_styles(maps, *draw)


def mix_styles(maps: Tensor, weights: Tensor, partners: Tensor) -> Tensor:
    """Return feature maps with mixed styles; maps with weight 1 stay the same bit for bit.

    Args:
        maps: feature maps (n, channels, height, width).
        weights: weight of each image's own style (n,).
        partners: index of the image whose style is mixed into each (n,).
    """
    with torch.no_grad():
        mean = maps.mean((2, 3), keepdim=True)
        variance = (maps - mean).square_().mean((2, 3), keepdim=True)  # var_mean is six times slower on a CPU
        deviation = (variance + _EPSILON).sqrt()
        weights = weights[:, None, None, None]
        scale = (weights * deviation + (1 - weights) * deviation[partners]) / deviation
        shift = weights * mean + (1 - weights) * mean[partners] - mean * scale
    return torch.addcmul(shift.to(maps.dtype), maps, scale.to(maps.dtype))


class MixStyleDomains(MixStyle):
    r"""MixStyle with domain labels (Zhou et al., ICLR 2021, arXiv 2104.02008, section 3.1): of two different domains.

    It differs from `MixStyle` in the other image, whose style is mixed in: it is always of another domain. The domains
    are arranged in a ring, and the first half of each one's images forms a pair with the second half of the next one's.
    In every pair, and after every stage with probability ``p``, each image is mixed with one of the other half. In the
    paper a batch is one such pair, of two domains drawn at random. A step is thus one batch of the paper's per domain,
    in one forward pass. If halves differ in size, some images of the smaller one are partners twice.

    The ring is drawn anew in every pass; SWAD's code ("Mixstyle2") always takes the domains in their order, as does
    ``fixed_order`` here, so that of more than three domains some are never mixed. With one source domain, its two
    halves are mixed.

    Args:
        network: the network to train; its featurizer must be convolutional.
        num_domains: number of source domains.
        p: probability of mixing, in [0, 1].
        alpha: parameter of the Beta distribution, above 0.
        fixed_order: whether the ring is always that of the domains' order, as in SWAD.

    Raises:
        ValueError: the featurizer has no feature maps before its last stage, or an argument is out of its range.
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {**MixStyle.hparams, "fixed_order": option(False, True, ("swad",))}

    def __init__(
        self, network: Network, num_domains: int, p: float = 0.5, alpha: float = 0.1, fixed_order: bool = False
    ) -> None:
        super().__init__(network, num_domains, p, alpha)
        self.fixed_order = fixed_order

    def _draw(self, sizes: Sequence[int]) -> list[tuple[Tensor, Tensor] | None]:
        pairs = self._pairs(sizes)
        draws: list[tuple[Tensor, Tensor] | None] = []
        for _ in self.stages:
            weights, partners = torch.ones(sum(sizes), device="cpu"), torch.arange(sum(sizes), device="cpu")
            for pair in pairs:
                mixes = float(torch.rand((), device="cpu")) < self.p
                for half, other in (pair, pair[::-1]):
                    own = self._weights(len(half))
                    shuffled = other[torch.randperm(len(other), device="cpu")]
                    if mixes and len(half) and len(other):
                        weights[half] = own
                        partners[half] = shuffled.repeat(math.ceil(len(half) / len(other)))[: len(half)]
            draws.append((weights, partners) if bool((weights < 1).any()) else None)
        return draws

    def _pairs(self, sizes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Return the pairs of halves that are mixed, as numbers of images."""
        images = torch.arange(sum(sizes), device="cpu").split(list(sizes))  # type: ignore[no-untyped-call]
        ring = list(range(len(sizes))) if self.fixed_order else torch.randperm(len(sizes), device="cpu").tolist()
        halves = [(own[: math.ceil(len(own) / 2)], own[math.ceil(len(own) / 2) :]) for own in images]
        return [(halves[i][0], halves[j][1]) for i, j in zip(ring, ring[1:] + ring[:1], strict=True)]


def _moved(draw: tuple[Tensor, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    weights, partners = draw
    return weights.to(images, non_blocking=True), partners.to(images.device, non_blocking=True)


ALGORITHMS.register("mixstyle", MixStyle)
ALGORITHMS.register("mixstyle_domains", MixStyleDomains)
