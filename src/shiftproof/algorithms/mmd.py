"""Maximum mean discrepancy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shiftproof.algorithms.algorithm import ALGORITHMS
from shiftproof.algorithms.feature_matching import FeatureMatching, mean_discrepancy

BANDWIDTHS = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)


class MMD(FeatureMatching):
    r"""Maximum mean discrepancy (Gretton et al., JMLR 2012; in domain generalization Li et al., CVPR 2018).

    The penalty of a pair of domains is the biased estimate of the squared discrepancy (Gretton et al., eq. 5)

    .. math:: \overline{k(z_i, z_i)} + \overline{k(z_j, z_j)} - 2 \, \overline{k(z_i, z_j)}, \qquad
        k(a, b) = \sum_\gamma \exp(-\gamma \lVert a - b \rVert^2), \quad \gamma \in \{10^{-3}, 10^{-2}, ..., 10^3\},

    with means over all pairs of images. As in DomainBed, the adversarial autoencoder that Li et al. build around this
    penalty is left out.
    """

    def penalty(self, features: Sequence[Tensor]) -> Tensor:
        """Return the mean over pairs of domains of their squared discrepancy."""
        return mean_discrepancy(gaussian_kernel(torch.cat(list(features)), BANDWIDTHS), features)


def gaussian_kernel(points: Tensor, bandwidths: Sequence[float]) -> Tensor:
    r"""Return the sum of the kernels :math:`\exp(-\gamma \lVert a - b \rVert^2)` at all pairs of points, (n, n).

    Args:
        points: the points (n, dimensions).
        bandwidths: the :math:`\gamma` of the kernels.
    """
    distances = _squared_distances(points)
    return torch.stack([(-bandwidth * distances).exp() for bandwidth in bandwidths]).sum(0)


def _squared_distances(points: Tensor) -> Tensor:
    """Return the squared Euclidean distances between n points, (n, n), differentiable any number of times."""
    points = points - points.mean(0)  # rounding errors are smaller near the origin
    norms = points.square().sum(1)
    distances = (norms[:, None] + norms - 2 * points @ points.T).clamp(min=0)
    return distances.masked_fill(torch.eye(len(points), dtype=torch.bool, device=points.device), 0)


ALGORITHMS.register("mmd", MMD)
