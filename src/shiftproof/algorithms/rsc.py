"""RSC, which hides from the classifier the features that a prediction relies on most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm
from shiftproof.algorithms.domain_loss import pooled
from shiftproof.base.batch import Batch
from shiftproof.base.choices import Task
from shiftproof.base.hparams import Hparam, uniform
from shiftproof.models import Network


class RSC(Algorithm):
    r"""Representation self-challenging (Huang et al., ECCV 2020, arXiv 2007.02454, algorithm 1).

    For every image, the features :math:`z` for which the gradient of the true logit, :math:`\partial s_y / \partial z`,
    is above its quantile :math:`1 - f` are set to 0. The cross-entropy is computed on the remaining features. This
    applies only to images whose probability of the true class falls by more than the quantile :math:`1 - b` of all such
    falls; other images keep all their features.

    With a linear classifier the gradient is the row of the true class, so no second backward pass is needed. "Above" is
    strict, whereas the authors' code also drops features at the quantile: a classifier that starts at zero has equal
    gradients everywhere, and would never see any feature. The features are taken after the dropout.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        feature_drop: the share :math:`f` of the features, in [0, 1).
        batch_drop: the share :math:`b` of the images, in [0, 1).

    Raises:
        ValueError: a share is out of its range.
    """

    tasks: ClassVar[tuple[Task, ...]] = ("classification",)
    limits: ClassVar[str] = "it mutes what the true class depends on"
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
        """Return the cross-entropy over all images, with some of their features hidden."""
        images, labels = pooled(batches)
        features = self.network.dropout(self.network.featurizer(images))
        kept = self._kept(features.detach(), labels)
        return self.network.loss(self.network.classifier(features * kept), labels)

    @torch.no_grad()
    def _kept(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return a mask (n, feature_size) of the features that remain."""
        rows = self.network.classifier.weight
        kept = (rows <= rows.quantile(1 - self.feature_drop, dim=1, keepdim=True))[labels]
        before, after = (
            self.network.classifier(z).softmax(1).gather(1, labels[:, None]).to(rows.dtype)  # quantile has no bfloat16
            for z in (features, features * kept)
        )
        fall = before - after
        return torch.logical_or(kept, fall <= fall.quantile(1 - self.batch_drop))


ALGORITHMS.register("rsc", RSC)
