"""Base of CORAL, MMD and CausIRL: a penalty on the differences between the features of the source domains."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from shiftproof.algorithms.algorithm import Algorithm, SingleDomainWarning
from shiftproof.algorithms.domain_loss import mean_domain_loss, passed, split_domains
from shiftproof.base.batch import Batch
from shiftproof.base.hparams import Hparam, log10_uniform, option
from shiftproof.models import Network


class FeatureMatching(Algorithm, ABC):
    """Minimises the mean of the domains' cross-entropies plus a weighted `penalty`; with one domain this is ERM.

    The features are taken before dropout, from one forward pass of all domains. DomainBed takes them after dropout, as
    ``after_dropout`` does here, and makes one pass per domain, as does ``separate_passes``, which differs if batch
    norms normalise by the batch: they then remove differences that the penalty measures.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        penalty_weight: weight of the penalty, at least 0.
        separate_passes: whether every domain passes through the network on its own, as in DomainBed, so that batch
            norms that are not frozen see one domain at a time.
        after_dropout: whether the penalty is of the features after the dropout, which is part of DomainBed's
            featurizers.

    Raises:
        ValueError: ``penalty_weight`` is out of its range.
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {
        "penalty_weight": Hparam(1.0, log10_uniform(-1, 1), seed_name="mmd_gamma"),
        "separate_passes": option(False, True),
        "after_dropout": option(False, True),
    }
    accumulates: ClassVar[bool] = False
    compares_domains: ClassVar[bool] = True
    """Whether the penalty is between domains, so that there is none with one domain."""

    def __init__(
        self,
        network: Network,
        num_domains: int,
        penalty_weight: float = 1.0,
        separate_passes: bool = False,
        after_dropout: bool = False,
    ) -> None:
        super().__init__(network, num_domains)
        if not 0 <= penalty_weight < math.inf:
            raise ValueError(f"Invalid penalty_weight value: {penalty_weight}; it must be at least 0")
        if num_domains == 1 and self.compares_domains:
            name = type(self).__name__
            warnings.warn(
                f"{name} compares the features of source domains: with one domain {name} is ERM",
                SingleDomainWarning,
                stacklevel=1,
            )
        self.penalty_weight, self.separate_passes = penalty_weight, separate_passes
        self.after_dropout = after_dropout

    @abstractmethod
    def penalty(self, features: Sequence[Tensor]) -> Tensor:
        """Return the difference between two domains' features, averaged over all pairs of domains, as a scalar.

        Args:
            features: one tensor (images, features) per domain, for at least two domains and in at least float32.
        """

    def samples(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return what the penalty compares: by default the domains. Of fewer than two there is no penalty.

        Args:
            features: one tensor (images, features) per domain.
        """
        return features

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the loss of all batches."""
        featurizer = self.network.featurizer
        features = passed(featurizer, featurizer, batches, self.separate_passes)
        dropped = self.network.dropout(features)
        loss = mean_domain_loss(self.network.classifier(dropped), batches, self.network.loss)
        compared = dropped if self.after_dropout else features
        with torch.autocast(features.device.type, enabled=False):  # penalties are small differences of large sums
            exact = compared.to(torch.promote_types(features.dtype, torch.float32))
            samples = self.samples(split_domains(exact, batches))
            return loss + self.penalty_weight * self.penalty(samples) if len(samples) > 1 else loss


def mean_discrepancy(kernel: Tensor, features: Sequence[Tensor]) -> Tensor:
    r"""Return the mean over pairs of domains of :math:`\bar k_{ii} + \bar k_{jj} - 2 \bar k_{ij}`.

    Here :math:`\bar k_{ij}` is the mean over all images of domain i and all of domain j, so that each term is the
    squared distance between two domains' mean embeddings (Gretton et al., JMLR 2012, eq. 5).

    Args:
        kernel: value of the kernel at every pair of images (n, n), domain by domain.
        features: features of the domains, used only for their numbers of images.
    """
    rows = [f.new_full((1, len(f)), 1 / len(f)) for f in features]
    averaging: Tensor = torch.block_diag(*rows)  # type: ignore[no-untyped-call]
    means = averaging @ kernel @ averaging.T
    domains = len(features)
    # In the sum over pairs, each mean within a domain counts (domains - 1) times, and each between two domains twice.
    total: Tensor = domains * means.trace() - means.sum()
    return total * (2 / (domains * (domains - 1)))
