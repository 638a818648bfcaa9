"""What CORAL and MMD share: a penalty on the difference between the features of the source domains."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from shiftproof.algorithms.algorithm import Algorithm, SingleDomainWarning
from shiftproof.algorithms.domain_loss import mean_domain_loss, split_domains
from shiftproof.base.batch import Batch
from shiftproof.base.hparams import Hparam, log10_uniform
from shiftproof.models import Network


class FeatureMatching(Algorithm, ABC):
    """The mean of the domains' cross-entropies plus a weighted `penalty`; of a single domain, ERM.

    The features are those before dropout, of one forward pass of all domains. DomainBed makes one per domain, which
    differs where batch norms normalise by the batch: they would take out of every domain what the penalty is to see.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        penalty_weight: at least 0.

    Raises:
        ValueError: ``penalty_weight`` is out of its range.
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {
        "penalty_weight": Hparam(1.0, log10_uniform(-1, 1), seed_name="mmd_gamma")
    }
    accumulates: ClassVar[bool] = False

    def __init__(self, network: Network, num_domains: int, penalty_weight: float = 1.0) -> None:
        super().__init__(network, num_domains)
        if not 0 <= penalty_weight < math.inf:
            raise ValueError(f"Invalid penalty_weight value: {penalty_weight}; it must be at least 0")
        if num_domains == 1:
            name = type(self).__name__
            warnings.warn(
                f"{name} compares the features of source domains: with one domain {name} is ERM",
                SingleDomainWarning,
                stacklevel=1,
            )
        self.penalty_weight = penalty_weight

    @abstractmethod
    def penalty(self, features: Sequence[Tensor]) -> Tensor:
        """Return a scalar, the mean over all pairs of domains of how much their features differ.

        Args:
            features: (images, features) of each of at least two domains, at least float32.
        """

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the loss of all batches in one forward pass."""
        features = self.network.featurizer(torch.cat([images for images, _ in batches]))
        loss = mean_domain_loss(self.network.classifier(self.network.dropout(features)), batches)
        if len(batches) == 1:
            return loss
        with torch.autocast(features.device.type, enabled=False):  # small differences of large sums
            exact = features.to(torch.promote_types(features.dtype, torch.float32))
            penalty = self.penalty(split_domains(exact, batches))
        return loss + self.penalty_weight * penalty


def mean_discrepancy(kernel: Tensor, features: Sequence[Tensor]) -> Tensor:
    r"""Return the mean over pairs of domains of :math:`\bar k_{ii} + \bar k_{jj} - 2 \bar k_{ij}`.

    With means :math:`\bar k_{ij}` over all images of domain i and all of domain j: the squared distance between the
    domains' mean embeddings (Gretton et al., JMLR 2012, eq. 5).

    Args:
        kernel: (n, n), its value at every two images, domain by domain.
        features: of the domains, for their numbers of images.
    """
    rows = [f.new_full((1, len(f)), 1 / len(f)) for f in features]
    averaging: Tensor = torch.block_diag(*rows)  # type: ignore[no-untyped-call]
    means = averaging @ kernel @ averaging.T
    domains = len(features)
    # summed over pairs, each mean within a domain counts (domains - 1) times, each of two domains twice
    total: Tensor = domains * means.trace() - means.sum()
    return total * (2 / (domains * (domains - 1)))
