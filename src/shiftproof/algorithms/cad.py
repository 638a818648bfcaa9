"""CAD and CondCAD, which learn features whose nearest neighbours may be of any domain."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm, SingleDomainWarning
from shiftproof.algorithms.domain_loss import domain_numbers, pooled
from shiftproof.base.batch import Batch
from shiftproof.base.choices import Task
from shiftproof.base.field_error import FieldError
from shiftproof.base.hparams import Hparam, choice, option
from shiftproof.models import Network

BASE_TEMPERATURE = 0.07
"""The penalty is multiplied by the temperature divided by this, as in the code for supervised contrastive learning."""


class CAD(Algorithm):
    r"""Contrastive adversarial domain bottleneck (Ruan, Dubois and Maddison, ICLR 2022, arXiv 2201.00057).

    With features :math:`z`, temperature :math:`\tau`, and :math:`O_i` the images of other domains than image
    :math:`i`, the objective is

    .. math:: L - \lambda \frac{\tau}{0.07} \operatorname{mean}_i \log
        \frac{\sum_{j \in O_i} \exp(z_i \cdot z_j / \tau)}{\sum_{j \ne i} \exp(z_i \cdot z_j / \tau)},

    with :math:`L` the mean cross-entropy. The fraction is a model of the probability that a neighbour of :math:`i` is
    of another domain, so that no discriminator is trained: the contrast takes its part. Without ``flipped``, the
    logarithm of the probability that it is of the same domain is minimised instead; the optima are the same, and the
    authors found the flipped form more stable.

    This is the form of the authors' code in DomainBed, whose searches always have the flipped one. The paper's own
    (section 4.2.1, equation 8 and algorithm 1) is not flipped, counts image :math:`i` itself in both sums, as does
    ``counts_itself`` here, and has neither :math:`\tau` nor the factor :math:`\tau / 0.07`: at temperature 1 a
    :math:`\lambda` of 0.07 times the paper's has the same effect. Measured at the defaults here, the paper's form ends
    near chance on vectors, as its penalty has no lower bound, so the default is the form behind the authors' tables.
    The code counts only images that have another one of their class in the batch, as does ``classes_met`` here,
    although this bottleneck needs no classes.

    The features are taken after the dropout. With one source domain CAD is ERM, and warns.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        penalty_weight: the weight :math:`\lambda`, at least 0.
        temperature: the temperature :math:`\tau`, above 0.
        normalised: whether features are divided by their norms in the penalty.
        flipped: whether other domains are made probable, rather than the same one improbable.
        classes_met: whether the penalty leaves out images that are alone of their class, as in DomainBed.
        counts_itself: whether an image is a neighbour of itself, as in the paper.

    Raises:
        ValueError: an argument is out of its range, or ``classes_met`` is set for another task than classification.
    """

    accumulates: ClassVar[bool] = False
    conditional: ClassVar[bool] = False
    hparams: ClassVar[Mapping[str, Hparam]] = {
        "penalty_weight": Hparam(0.1, choice(1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2), seed_name="lmbda"),
        "temperature": Hparam(0.1, choice(0.05, 0.1)),
        "normalised": Hparam(False),
        "flipped": Hparam(True),
        "classes_met": option(False, True, ("domainbed-head",)),
        "counts_itself": Hparam(False, later=True),
    }

    def __init__(
        self,
        network: Network,
        num_domains: int,
        penalty_weight: float = 0.1,
        temperature: float = 0.1,
        normalised: bool = False,
        flipped: bool = True,
        classes_met: bool = False,
        counts_itself: bool = False,
    ) -> None:
        super().__init__(network, num_domains)
        if not 0 <= penalty_weight < math.inf:
            raise ValueError(f"Invalid penalty_weight value: {penalty_weight}; it must be at least 0")
        if not 0 < temperature < math.inf:
            raise ValueError(f"Invalid temperature value: {temperature}; it must be above 0")
        if classes_met and network.task != "classification":
            raise FieldError("algorithm.classes_met", f"classes_met is for classification, not for {network.task}")
        if num_domains == 1:
            warnings.warn(f"{type(self).__name__} with one source domain is ERM", SingleDomainWarning, stacklevel=1)
        self.penalty_weight, self.temperature = penalty_weight, temperature
        self.normalised, self.flipped, self.classes_met = normalised, flipped, classes_met
        self.counts_itself = counts_itself

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the cross-entropy over all images plus the weighted penalty."""
        images, labels = pooled(batches)
        features = self.network.dropout(self.network.featurizer(images))
        loss = self.network.loss(self.network.classifier(features), labels)
        if len(batches) == 1:
            return loss
        with torch.autocast(features.device.type, enabled=False):  # products are divided by a small temperature
            exact = features.to(torch.promote_types(features.dtype, torch.float32))
            penalty = self.penalty(exact, labels, domain_numbers(batches))
        return loss + self.penalty_weight * penalty

    def penalty(self, features: Tensor, labels: Tensor, domains: Tensor) -> Tensor:
        """Return the penalty of features (n, feature_size) in at least float32 with their labels and domains (n,)."""
        if self.normalised:
            features = F.normalize(features, dim=1)
        # what all neighbours have in common cancels in the fraction, and rounding errors are smaller without it
        scores = features @ (features - features.detach().mean(0)).T / self.temperature
        others = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        met, same_domain = others, domains[:, None] == domains
        if self.counts_itself:
            met = torch.ones_like(others)
        if self.conditional:
            met = met & (labels[:, None] == labels)
        sought = met & ~same_domain if self.flipped else met & same_domain
        counted = sought.any(1)
        if self.classes_met:
            counted = counted & (others & (labels[:, None] == labels)).any(1)
        # rows that do not count sum over all images, as a sum over none has no derivative
        left_out = ~counted[:, None]
        numerator, denominator = (
            scores.masked_fill(~(mask | left_out), -math.inf).logsumexp(1) for mask in (sought, met)
        )
        total = torch.where(counted, numerator - denominator, 0).sum() * (self.temperature / BASE_TEMPERATURE)
        mean: Tensor = total / counted.sum().clamp(min=1)
        return -mean if self.flipped else mean


class CondCAD(CAD):
    r"""Conditional contrastive adversarial domain bottleneck (Ruan, Dubois and Maddison, ICLR 2022, arXiv 2201.00057).

    It is `CAD` within the classes: both sums of the fraction are over images of the class of image :math:`i`, and only
    images count whose class is in another domain's batch too. DomainBed's code is the same. The paper has this variant
    in appendix C.4, which was not at hand.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        penalty_weight: weight of the penalty, at least 0.
        temperature: the temperature, above 0.
        normalised: whether features are divided by their norms in the penalty.
        flipped: whether other domains are made probable, rather than the same one improbable.
        counts_itself: whether an image is a neighbour of itself.

    Raises:
        ValueError: an argument is out of its range.
    """

    conditional: ClassVar[bool] = True
    tasks: ClassVar[tuple[Task, ...]] = ("classification",)
    limits: ClassVar[str] = "it compares images of one class"
    hparams: ClassVar[Mapping[str, Hparam]] = {k: v for k, v in CAD.hparams.items() if k != "classes_met"}

    def __init__(
        self,
        network: Network,
        num_domains: int,
        penalty_weight: float = 0.1,
        temperature: float = 0.1,
        normalised: bool = False,
        flipped: bool = True,
        counts_itself: bool = False,
    ) -> None:
        super().__init__(
            network, num_domains, penalty_weight, temperature, normalised, flipped, counts_itself=counts_itself
        )


ALGORITHMS.register("cad", CAD)
ALGORITHMS.register("condcad", CondCAD)
