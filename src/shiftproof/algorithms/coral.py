"""Correlation alignment."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shiftproof.algorithms.algorithm import ALGORITHMS
from shiftproof.algorithms.feature_matching import FeatureMatching, mean_discrepancy


class CORAL(FeatureMatching):
    r"""Correlation alignment (Sun and Saenko, "Deep CORAL", ECCV 2016 workshops, arXiv 1607.01719).

    The penalty of a pair of domains is

    .. math:: \frac{1}{d} \lVert \mu_i - \mu_j \rVert^2 + \frac{1}{d^2} \lVert C_i - C_j \rVert_F^2

    with the means :math:`\mu` and the covariances :math:`C` (divided by n - 1) of their d features. The paper adapts
    one source to one target by the covariances alone, :math:`\lVert C_S - C_T \rVert_F^2 / (4 d^2)`. The form here
    (with the means, without the factor 1/4 and averaged over all pairs of source domains) is DomainBed's, to which
    published results refer. A batch of one image has covariance 0.
    """

    def penalty(self, features: Sequence[Tensor]) -> Tensor:
        """Return the mean over pairs of domains of the differences of their moments."""
        means = torch.stack([domain.mean(0) for domain in features])
        # <C_i, C_j> is the sum of (x . y)^2 over the centred features x and y of both domains, divided by
        # (n_i - 1) (n_j - 1): far fewer products than the d x d matrices take for small batches with many features.
        centred = [
            (domain - mean) * (len(domain) / max(len(domain) - 1, 1)) ** 0.5
            for domain, mean in zip(features, means, strict=True)
        ]
        rows = torch.cat(centred)
        covariances = mean_discrepancy((rows @ rows.T).square(), features) / rows.shape[1] ** 2
        return 2 * means.var(0).mean() + covariances  # the mean of (a_i - a_j)^2 over pairs is twice the variance


ALGORITHMS.register("coral", CORAL)
