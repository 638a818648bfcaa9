"""Adaptive risk minimization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm
from shiftproof.algorithms.domain_loss import mean_domain_loss
from shiftproof.algorithms.extended_network import ExtendedNetwork
from shiftproof.base.batch import Batch
from shiftproof.models import Network

HIDDEN = 64
KERNEL = 5


class ContextNetwork(ExtendedNetwork):
    """A network that sees beside each image the context of its domain: one more channel, of the images' size.

    The context is the mean over the domain's images of what a small network makes of them. The convolution that takes
    the image takes the context too, with weights that start at zero, so that the start is the network that was given.

    Args:
        network: its parts are taken over, the first convolution with a channel more.

    Raises:
        ValueError: its featurizer does not begin with a convolution.
    """

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        channels = len(network.normalisation.mean)
        _add_input_channel(network.featurizer, channels)
        # beside the featurizer, as its batch norms have no given statistics to keep
        self.context = nn.Sequential(
            nn.Conv2d(channels, HIDDEN, KERNEL, padding="same", bias=False),  # the batch norms have one
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
            sizes: the domains' numbers of images; None where all are of one.
        """
        maps = self.context(images).split([len(images)] if sizes is None else list(sizes))
        context = torch.cat([part.mean(0, keepdim=True).expand_as(part) for part in maps])
        return super().forward(torch.cat([images, context], dim=1))


def _add_input_channel(featurizer: nn.Module, channels: int) -> None:
    first = next((module for module in featurizer.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.in_channels != channels or first.groups != 1:
        found = "it has no convolution" if first is None else f"its first convolution is {first}"
        raise ValueError(
            "ARM gives the featurizer the context as one more channel of the image, so its first convolution must "
            f"take the image's {channels}: {found}"
        )
    weight = first.weight.detach()
    first.weight = nn.Parameter(torch.cat([weight, torch.zeros_like(weight[:, :1])], 1), first.weight.requires_grad)
    first.in_channels += 1


class ARM(Algorithm):
    """Adaptive risk minimization with a context network, ARM-CML (Zhang et al., NeurIPS 2021, arXiv 2007.02931).

    A network learns, with all others, to sum up the unlabelled images of a domain's batch in a context, by which the
    classification adapts to the domain (algorithm 1 with the model of section 4.1); the loss is the mean of the
    domains' cross-entropies. In evaluation the context is that of the batch: a prediction depends on the images
    beside it.

    The context network is DomainBed's, three convolutions of 5 x 5 at the full size of the images: on each more
    multiplications than ResNet-50 does. DomainBed builds it after its optimizer, so that there it is never trained,
    and adapts to as many images in evaluation as a batch had in training; here it is all that are given at once.
    As there, a domain's batch is always of 8 photographs.

    Args:
        network: the network to train; its first convolution gets one more channel.
        num_domains: number of source domains.

    Raises:
        ValueError: the featurizer does not begin with a convolution.
    """

    photograph_batch_size: ClassVar[int | None] = 8
    accumulates: ClassVar[bool] = False
    transductive: ClassVar[bool] = True
    single_device: ClassVar[str | None] = "its context is of all images of a domain"
    pools_domains: ClassVar[bool] = False  # its context networks have batch norms that see one domain at a time
    network: ContextNetwork

    @staticmethod
    def extend(network: Network) -> ContextNetwork:
        """Return the network with the context, as it is trained; the given one's featurizer is changed."""
        return ContextNetwork(network)

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the loss of all batches in one forward pass, each with the context of its domain."""
        images = torch.cat([images for images, _ in batches])
        return mean_domain_loss(self.network(images, [len(labels) for _, labels in batches]), batches)


ALGORITHMS.register("arm", ARM)
