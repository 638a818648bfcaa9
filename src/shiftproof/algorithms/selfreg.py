"""SelfReg, which draws the images of a class together without pushing others apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Beta
from torch.nn import functional as F

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm
from shiftproof.algorithms.domain_loss import pooled
from shiftproof.base.batch import Batch
from shiftproof.base.choices import Task
from shiftproof.base.hparams import Hparam
from shiftproof.models import Network


class SelfReg(Algorithm):
    r"""Self-supervised contrastive regularization (Kim et al., ICCV 2021, arXiv 2104.09841, section 3).

    Every image :math:`i` meets two others :math:`j` and :math:`k` of its class, whatever their domains. With the
    features :math:`z`, the perturbation layer :math:`f` (a perceptron of three layers, each with a batch norm), the
    logits :math:`s` and :math:`\gamma \sim \text{Beta}(\alpha, \alpha)`,

    .. math:: L + \min(1, L) \left( w_z \left[ \gamma \lVert z_i - f(z_j) \rVert^2
        + (1 - \gamma) \lVert z_i - \gamma f(z_j) - (1 - \gamma) f(z_k) \rVert^2 \right]
        + w_s \left[ \gamma \lVert s_i - s_j \rVert^2
        + (1 - \gamma) \lVert s_i - \gamma s_j - (1 - \gamma) s_k \rVert^2 \right] \right),

    with :math:`L` the mean cross-entropy, whose minimum with 1 counts as a constant, and with squared norms averaged
    over images and entries. One :math:`\gamma` and two permutations within the classes are drawn for each pass, so an
    image can meet itself. This is the form of DomainBed, whose code is the authors'. Their curriculum of domains and
    the averaging of weights, which the paper adds, are left out as in DomainBed; ``--averaging sma`` has the latter.

    The features are taken after the dropout. The biases that a batch norm would remove at once are left out of the
    perturbation layer, which makes no other difference, and its batch norms keep no statistics, as it is of no use
    after training.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        feature_weight: the weight :math:`w_z`, at least 0.
        logit_weight: the weight :math:`w_s`, at least 0.
        alpha: both parameters of the Beta distribution, at least 0.01.

    Raises:
        ValueError: an argument is out of its range.
    """

    min_images: ClassVar[int] = 2
    tasks: ClassVar[tuple[Task, ...]] = ("classification",)
    limits: ClassVar[str] = "it compares images of one class"
    accumulates: ClassVar[bool] = False
    hparams: ClassVar[Mapping[str, Hparam]] = {
        "feature_weight": Hparam(0.3),
        "logit_weight": Hparam(1.0),
        "alpha": Hparam(0.5),
    }

    def __init__(
        self,
        network: Network,
        num_domains: int,
        feature_weight: float = 0.3,
        logit_weight: float = 1.0,
        alpha: float = 0.5,
    ) -> None:
        super().__init__(network, num_domains)
        for name, value in (("feature_weight", feature_weight), ("logit_weight", logit_weight)):
            if not 0 <= value < math.inf:
                raise ValueError(f"Invalid {name} value: {value}; it must be at least 0")
        if not 0.01 <= alpha < math.inf:  # for smaller ones float64 cannot hold the shares, which would become 1/2
            raise ValueError(f"Invalid alpha value: {alpha}; it must be at least 0.01")
        self.feature_weight, self.logit_weight = feature_weight, logit_weight
        concentration = torch.tensor(alpha, dtype=torch.float64, device="cpu")  # so that all devices draw the same
        self._shares = Beta(concentration, concentration)
        size = network.feature_size
        hidden = size if size == 2048 else 2 * size
        self.perturbation = nn.Sequential(
            *_layer(size, hidden), nn.ReLU(), *_layer(hidden, hidden), nn.ReLU(), *_layer(hidden, size)
        )

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the cross-entropy over all images plus the weighted distances within the classes."""
        images, labels = pooled(batches)
        features = self.network.dropout(self.network.featurizer(images))
        logits = self.network.classifier(features)
        loss = self.network.loss(logits, labels)
        share = float(self._shares.sample())
        partners = _shuffled_within(labels), _shuffled_within(labels)
        distance = self.feature_weight * _distance(features, self.perturbation(features), share, *partners)
        distance = distance + self.logit_weight * _distance(logits, logits, share, *partners)
        return loss + loss.detach().clamp(max=1) * distance


def _layer(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    return nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs, track_running_stats=False)


def _distance(rows: Tensor, others: Tensor, share: float, first: Tensor, second: Tensor) -> Tensor:
    """Return the mean squared distance of rows to their first partner and to a mixture of both."""
    near, far = others[first], others[second]
    mixed = share * near + (1 - share) * far
    return share * F.mse_loss(rows, near) + (1 - share) * F.mse_loss(rows, mixed)


def _shuffled_within(labels: Tensor) -> Tensor:
    """Return for every image another one of its class (n,), as a permutation drawn on the CPU."""
    shuffled = torch.randperm(len(labels), device="cpu").to(labels.device, non_blocking=True)
    shuffled = shuffled[labels[shuffled].argsort(stable=True)]
    return torch.empty_like(shuffled).index_copy_(0, labels.argsort(stable=True), shuffled)


ALGORITHMS.register("selfreg", SelfReg)
