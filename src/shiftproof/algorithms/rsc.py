"""RSC: the features that a prediction leans on most are hidden from the classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm
from shiftproof.algorithms.domain_loss import pooled
from shiftproof.base.batch import Batch
from shiftproof.base.hparams import Hparam, uniform
from shiftproof.models import Network


class RSC(Algorithm):
    r"""Representation self-challenging (Huang et al., ECCV 2020, arXiv 2007.02454, algorithm 1).

    Of every image's features :math:`z` those are set to 0 whose gradient :math:`\partial s_y / \partial z` of the
    true logit is above its quantile :math:`1 - f`, and the cross-entropy is that of what remains. It is so for the
    images whose probability of the true class falls by more than the quantile :math:`1 - b` when their features are
    hidden; the others keep theirs.

    The gradient at a linear classifier is its row of the true class, so no second backward pass is needed. "Above"
    is strict, where the authors' code drops what is at the quantile too: a classifier that starts at zero has equal
    gradients everywhere, and would see no feature, now or later. The features are those after the dropout.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        feature_drop: the share :math:`f` of the features, in [0, 1).
        batch_drop: the share :math:`b` of the images, in [0, 1).

    Raises:
        ValueError: a share is out of its range.
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {
        "feature_drop": Hparam(1 / 3, uniform(0, 0.5), seed_name="rsc_f_drop_factor"),
        "batch_drop": Hparam(1 / 3, uniform(0, 0.5), seed_name="rsc_b_drop_factor"),
    }
    accumulates: ClassVar[bool] = False
    reads_heads: ClassVar[bool] = True

    def __init__(
        self, network: Network, num_domains: int, feature_drop: float = 1 / 3, batch_drop: float = 1 / 3
    ) -> None:
        super().__init__(network, num_domains)
        for name, share in (("feature_drop", feature_drop), ("batch_drop", batch_drop)):
            if not 0 <= share < 1:
                raise ValueError(f"Invalid {name} value: {share}; it must be in [0, 1)")
        self.feature_drop = feature_drop
        self.batch_drop = batch_drop

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the cross-entropy over all images, of features of which some are hidden."""
        images, labels = pooled(batches)
        features = self.network.dropout(self.network.featurizer(images))
        return F.cross_entropy(self.network.classifier(features * self._kept(features.detach(), labels)), labels)

    @torch.no_grad()
    def _kept(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return which features remain, (n, feature_size)."""
        rows = self.network.classifier.weight
        kept = (rows <= rows.quantile(1 - self.feature_drop, dim=1, keepdim=True))[labels]
        before, after = (
            self.network.classifier(z).softmax(1).gather(1, labels[:, None]).to(rows.dtype)  # quantile has no bfloat16
            for z in (features, features * kept)
        )
        fall = before - after
        return torch.logical_or(kept, fall <= fall.quantile(1 - self.batch_drop))


ALGORITHMS.register("rsc", RSC)
