"""CausIRL, which compares two random parts of a batch of all domains (Chevalley et al., 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from shiftproof.algorithms.algorithm import ALGORITHMS
from shiftproof.algorithms.coral import CORAL
from shiftproof.algorithms.feature_matching import FeatureMatching
from shiftproof.algorithms.mmd import MMD


class CausIRL(FeatureMatching):
    r"""CausIRL (Chevalley, Bunne, Krause and Bauer, arXiv 2206.11646): the penalty between two parts of the batch.

    Every domain's batch of :math:`n_e` images is cut at a random place, :math:`c_e` uniform in
    :math:`\{0, \dots, n_e - 1\}`. The first parts of all domains together and the second parts together are mixtures of
    the domains in random proportions, which features without a trace of the domain cannot tell apart:

    .. math:: \frac{1}{E} \sum_e R_e + \gamma \cdot D\Big(\bigcup_e z_e^{1:c_e}, \bigcup_e z_e^{c_e+1:n_e}\Big)

    Where one of the parts has fewer than two images there is no penalty, as in DomainBed. With one source domain the
    two parts are of that domain.
    """

    compares_domains: ClassVar[bool] = False

    def samples(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return two random parts of the features of all domains, or nothing if one is too small."""
        cuts = [int(torch.randint(len(domain), (), device="cpu")) for domain in features]
        parts = [
            torch.cat([domain[:cut] for domain, cut in zip(features, cuts, strict=True)]),
            torch.cat([domain[cut:] for domain, cut in zip(features, cuts, strict=True)]),
        ]
        return parts if min(map(len, parts)) > 1 else []


class CausIRLCORAL(CausIRL, CORAL):
    """CausIRL with the difference of `CORAL`: of means and covariances."""


class CausIRLMMD(CausIRL, MMD):
    """CausIRL with the difference of `MMD`: the maximum mean discrepancy."""


ALGORITHMS.register("causirl_coral", CausIRLCORAL)
ALGORITHMS.register("causirl_mmd", CausIRLMMD)
