"""Adaptive risk minimization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm
from shiftproof.algorithms.domain_loss import mean_domain_loss
from shiftproof.algorithms.extended_network import ExtendedNetwork
from shiftproof.base.batch import Batch
from shiftproof.base.choices import PICTURES, Kind
from shiftproof.base.hparams import Hparam, option
from shiftproof.models import Network

HIDDEN = 64
KERNEL = 5


class ContextNetwork(ExtendedNetwork):
    """A network that sees the context of an image's domain as one more channel of the image.

    The context is a map of the image's size: the mean of a small network's output over the domain's images. The weights
    that the first convolution has for it start at zero, so that the network starts out equal to the given one.

    Args:
        network: the network whose parts to use; its first convolution gets one more channel.

    Raises:
        ValueError: its featurizer does not begin with a convolution, or that is frozen.
    """

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        assert network.normalisation is not None  # noqa: S101  (its inputs are pictures)
        channels = len(network.normalisation.mean)
        _add_input_channel(network.featurizer, channels)
        # not inside the featurizer, whose batch norms may be frozen: these have no given statistics to keep
        self.context = nn.Sequential(
            nn.Conv2d(channels, HIDDEN, KERNEL, padding="same", bias=False),  # the batch norms have a bias
            nn.BatchNorm2d(HIDDEN),
            nn.ReLU(),
            nn.Conv2d(HIDDEN, HIDDEN, KERNEL, padding="same", bias=False),
            nn.BatchNorm2d(HIDDEN),
            nn.ReLU(),
            nn.Conv2d(HIDDEN, 1, KERNEL, padding="same"),
        )

    def forward(self, images: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
        """Return logits (n, classes).

        Args:
            images: normalised images (n, channels, height, width), domain by domain.
            sizes: number of images of each domain; None if all images belong to one domain.
        """
        maps = self.context(images)
        parts = [maps] if sizes is None else maps.split(list(sizes))
        context = torch.cat([part.mean(0, keepdim=True).expand_as(part) for part in parts])
        return super().forward(torch.cat([images, context], dim=1))


def _add_input_channel(featurizer: nn.Module, channels: int) -> None:
    first = next((module for module in featurizer.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.in_channels != channels or first.groups != 1:
        found = "it has no convolution" if first is None else f"its first convolution is {first}"
        raise ValueError(
            "ARM gives the featurizer the context as one more channel of the image, so its first convolution must "
            f"take the image's {channels}: {found}"
        )
    if not first.weight.requires_grad:
        raise ValueError(
            "ARM gives the featurizer the context as one more channel, whose weights start at zero; its first "
            "convolution is frozen and would never read it"
        )
    weight = first.weight.detach()
    first.weight = nn.Parameter(torch.cat([weight, torch.zeros_like(weight[:, :1])], 1))
    first.in_channels += 1


class ARM(Algorithm):
    """Adaptive risk minimization with a context network, ARM-CML (Zhang et al., NeurIPS 2021, arXiv 2007.02931).

    A context network is trained along with the classifier. It summarises the unlabelled images of a domain's batch, and
    the classifier uses this summary to adapt to the domain (algorithm 1 with the model of section 4.1). The loss is the
    mean of the domains' cross-entropies. In evaluation the context comes from the batch, so a prediction depends on the
    other images in it.

    The context network is DomainBed's: three 5 x 5 convolutions at the full size of the images, which take more
    multiplications per image than ResNet-50. DomainBed builds it after the optimizer and so never trains it; here it is
    trained. In evaluation it adapts to all images given at once; in DomainBed, to as many as a training batch has of a
    domain, which ``evaluates_in_groups`` does too. As in DomainBed, a domain's batch always has 8 photographs.

    Args:
        network: the network to train; its first convolution gets one more channel.
        num_domains: number of source domains.
        evaluates_in_groups: whether images to be evaluated adapt in groups of as many as the last training batch had of
            a domain, in their order, if that divides their number.

    Raises:
        ValueError: the featurizer does not begin with a convolution, or that is frozen.
    """

    kinds: ClassVar[tuple[Kind, ...]] = PICTURES
    reads_pictures: ClassVar[bool] = True
    limits: ClassVar[str] = "it adds channels to pictures"
    photograph_batch_size: ClassVar[int | None] = 8
    accumulates: ClassVar[bool] = False
    transductive: ClassVar[bool] = True
    single_device: ClassVar[str | None] = "its context is a mean over all images of a domain"
    pools_domains: ClassVar[bool] = False  # the batch norms of its context network see one domain at a time
    hparams: ClassVar[Mapping[str, Hparam]] = {"evaluates_in_groups": option(False, True)}
    network: ContextNetwork
    group: Tensor

    def __init__(self, network: Network, num_domains: int, *, evaluates_in_groups: bool = False) -> None:
        super().__init__(network, num_domains)
        self.evaluates_in_groups = evaluates_in_groups
        if evaluates_in_groups:
            self.register_buffer("group", torch.tensor(0))

    @staticmethod
    def extend(network: Network) -> ContextNetwork:
        """Return the network with a context network added; this changes the featurizer of the given one."""
        return ContextNetwork(network)

    def before_step(self, batches: Sequence[Batch], step: int) -> None:
        """Remember how many images a domain's batch has."""
        if self.evaluates_in_groups:
            self.group.fill_(len(batches[0][1]))

    def predict(self, images: Tensor) -> Tensor:
        """Return logits (n, classes) of images of one domain, with their own context or those of groups of them."""
        group = int(self.group) if self.evaluates_in_groups and not self.training else 0
        sizes = [group] * (len(images) // group) if group and len(images) % group == 0 else None
        return self.network(images, sizes)  # type: ignore[no-any-return]

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the loss of all batches, each with the context of its domain, in one forward pass."""
        images = torch.cat([images for images, _ in batches])
        return mean_domain_loss(
            self.network(images, [len(labels) for _, labels in batches]), batches, self.network.loss
        )


ALGORITHMS.register("arm", ARM)
