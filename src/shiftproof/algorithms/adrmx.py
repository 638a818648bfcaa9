"""ADRMX, which subtracts the features of the domain and mixes them anew."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shiftproof.algorithms.algorithm import ALGORITHMS
from shiftproof.algorithms.dann import DANN, Discriminator
from shiftproof.algorithms.domain_loss import split_domains
from shiftproof.base.batch import Batch
from shiftproof.base.choices import Task
from shiftproof.base.hparams import Hparam, choice, option
from shiftproof.models import Network

TEMPERATURE = 0.07
"""Of the contrastive losses, as in the authors' code."""


class DifferenceDiscriminator(Discriminator):
    """A discriminator of the difference of two halves of the features."""

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return logits (n, num_domains) of two kinds of features, side by side (n, 2 feature_size)."""
        of_class, of_domain = features.chunk(2, 1)
        return super().forward(of_class - of_domain, labels)


class ADRMX(DANN):
    r"""Additive disentanglement of domain features with remix loss (Demirel, Aptoula and Ozkan, arXiv 2308.06624).

    A second featurizer, which starts as a copy of the first, learns features :math:`z_d` of the domain. Of the first
    one's features :math:`z`, the difference :math:`\bar z = z - z_d` is to be without the domain. The networks minimise

    .. math:: CE(h(z), y) + CE(\bar h(\bar z), y) + w_d \, CE(h_d(z_d), d) + w_r R
        + w_c \left( S(z) + S(\bar z) \right) - w \, L_D(\bar z),

    where :math:`h`, :math:`\bar h` and :math:`h_d` are linear classifiers, :math:`L_D` the loss of a discriminator of
    domains, and :math:`S` the supervised contrastive loss at temperature 0.07 (Khosla et al., NeurIPS 2020). The remix
    loss :math:`R` adds the domain of one image to the class of another: it takes one pair of images of a class, from
    different domains, for every class, and is the sum of :math:`CE(h(\bar z_i + z_{d,j}), y)` divided by the number of
    classes. Predictions are those of :math:`h(z)`.

    The discriminator trains as in `DANN`: by steps of its own on the features of the network's pass, or in turn with
    ``alternate``. DomainBed's code, which is the authors', alternates. Its remixed pairs are others, as are those of
    ``remixes_any``: it draws two of the places of a class's :math:`n_c` images and takes them for places in the batch,
    so that both images are among the first :math:`n_c` of the batch, whatever their classes and domains, with the label
    of the first. That is a slip, as the code's own comment asks for one class and two domains. The rest of its
    differences have no option here: classifiers have two hidden layers; the contrastive losses have small constants
    added in their logarithms, and are divided by the number of images plus 1; the optimizers have no weight decay; and
    without pretrained weights the two featurizers start differently.

    A step costs two passes of ERM's. The features are taken after the dropout. With one source domain ADRMX is ERM,
    and warns.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        penalty_weight: the weight :math:`w`, at least 0.
        domain_weight: the weight :math:`w_d`, at least 0.
        remix_weight: the weight :math:`w_r`, at least 0.
        contrast_weight: the weight :math:`w_c`, at least 0.
        d_steps: number of discriminator steps per step of the network, at least 1.
        beta1: decay of the first moment in both optimizers, if they have one, in [0, 1).
        beta2: the same for the second moment.
        mlp_width: width of the discriminator, at least 1.
        mlp_depth: number of its linear layers, at least 2.
        mlp_dropout: its dropout, in [0, 1).
        alternate: whether each step trains either the discriminator or the network, as in DomainBed.
        remixes_any: whether the two images of a remixed pair are of any class and domain, as in DomainBed.

    Raises:
        ValueError: an argument is out of its range.
    """

    accumulates: ClassVar[bool] = False
    draws_own_rates: ClassVar[bool] = False
    discriminator_type: ClassVar[type[Discriminator]] = DifferenceDiscriminator
    tasks: ClassVar[tuple[Task, ...]] = ("classification",)
    weighs_classes: ClassVar[bool] = False
    limits: ClassVar[str] = "it contrasts and remixes images by their class"
    single_device: ClassVar[str | None] = "it has a second featurizer"
    hparams: ClassVar[Mapping[str, Hparam]] = {
        "penalty_weight": Hparam(0.75),
        "domain_weight": Hparam(1.0),
        "remix_weight": Hparam(1.0),
        "contrast_weight": Hparam(1.0),
        "d_steps": Hparam(2),
        "beta1": Hparam(0.5),
        "beta2": Hparam(0.9),
        "mlp_width": Hparam(256),
        "mlp_depth": Hparam(9, choice(8, 9, 10)),
        "mlp_dropout": Hparam(0.0),
        "alternate": option(False, True, ("domainbed-head",)),
        "remixes_any": option(False, True, ("domainbed-head",)),
    }

    def __init__(
        self,
        network: Network,
        num_domains: int,
        penalty_weight: float = 0.75,
        domain_weight: float = 1.0,
        remix_weight: float = 1.0,
        contrast_weight: float = 1.0,
        d_steps: int = 2,
        beta1: float = 0.5,
        beta2: float = 0.9,
        mlp_width: int = 256,
        mlp_depth: int = 9,
        mlp_dropout: float = 0.0,
        alternate: bool = False,
        remixes_any: bool = False,
    ) -> None:
        weights = {"domain_weight": domain_weight, "remix_weight": remix_weight, "contrast_weight": contrast_weight}
        for name, value in weights.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"Invalid {name} value: {value}; it must be at least 0")
        super().__init__(
            network,
            num_domains,
            penalty_weight,
            d_steps=d_steps,
            beta1=beta1,
            beta2=beta2,
            mlp_width=mlp_width,
            mlp_depth=mlp_depth,
            mlp_dropout=mlp_dropout,
            alternate=alternate,
        )
        self.domain_weight, self.remix_weight, self.contrast_weight = domain_weight, remix_weight, contrast_weight
        self.remixes_any = remixes_any
        if self.discriminator is not None:
            self.of_domain = copy.deepcopy(network)  # a whole network, which keeps frozen parts as they are
            self.of_domain.classifier = nn.Linear(network.feature_size, num_domains)
            self.second_classifier = nn.Linear(network.feature_size, network.classifier.out_features)

    def _encoded(self, batches: Sequence[Batch]) -> list[Batch]:
        """Return batches with the features of classes and of domains, side by side, in place of images."""
        if self.discriminator is None:
            return super()._encoded(batches)
        images = torch.cat([of_domain for of_domain, _ in batches])
        both = torch.cat([part.dropout(part.featurizer(images)) for part in (self.network, self.of_domain)], 1)
        return [(part, labels) for part, (_, labels) in zip(split_domains(both, batches), batches, strict=True)]

    def _classification(self, features: Tensor, labels: Tensor, domains: Tensor) -> Tensor:
        """Return the networks' loss without the discriminator's."""
        if self.discriminator is None:
            return super()._classification(features, labels, domains)
        of_class, of_domain = features.chunk(2, 1)
        without = of_class - of_domain
        loss = F.cross_entropy(self.network.classifier(of_class), labels)
        loss = loss + F.cross_entropy(self.second_classifier(without), labels)
        loss = loss + self.domain_weight * F.cross_entropy(self.of_domain.classifier(of_domain), domains)
        loss = loss + self.remix_weight * self._remix(without, of_domain, labels, domains)
        return loss + self.contrast_weight * (_contrast(of_class, labels) + _contrast(without, labels))

    def _remix(self, without: Tensor, of_domain: Tensor, labels: Tensor, domains: Tensor) -> Tensor:
        """Return the loss of one remixed pair of every class that has one."""
        count, classes = len(labels), torch.arange(self.network.classifier.out_features, device=labels.device)
        in_class, numbers = labels == classes[:, None], torch.arange(count, device=labels.device)
        if self.remixes_any:
            order = torch.rand(len(classes), count, device="cpu").to(labels.device, non_blocking=True)
            images = in_class.sum(1)
            chosen = order.masked_fill(numbers >= images[:, None], 1).argsort(1)  # numbers drawn are below 1
            first, second, counted = chosen[:, 0], chosen[:, 1], images > 1
            classes = labels[first]
        else:
            place = torch.randperm(count, device="cpu").to(labels.device, non_blocking=True)
            places = place.masked_fill(~in_class, count)  # of a class's images, the first two in this order
            first = places.argmin(1)
            alike = (numbers == first[:, None]) | (domains == domains[first][:, None])
            least, second = places.masked_fill(alike, count).min(1)
            counted = least < count
        logits = self.network.classifier(without[first] + of_domain[second])
        losses = F.cross_entropy(logits, classes, reduction="none")
        return torch.where(counted, losses, 0).sum() / len(classes)


def _contrast(features: Tensor, labels: Tensor) -> Tensor:
    """Return the supervised contrastive loss, over images that have another one of their class."""
    with torch.autocast(features.device.type, enabled=False):  # products are divided by a small temperature
        rows = F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)
        others = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        scores = rows @ rows.T / TEMPERATURE
        scores = scores - scores.masked_fill(~others, -math.inf).logsumexp(1, keepdim=True)
        same = (labels[:, None] == labels) & others
        means = (scores * same).sum(1) / same.sum(1).clamp(min=1)  # 0 without another one
        return -means.sum() / same.any(1).sum().clamp(min=1)


ALGORITHMS.register("adrmx", ADRMX)
