"""MIRO, which keeps features informative about those of the weights that training started from."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm, OptimizerFactory
from shiftproof.algorithms.domain_loss import pooled
from shiftproof.algorithms.stages import Stage, StageOutputs, find_stages
from shiftproof.base.batch import Batch
from shiftproof.base.choices import PICTURES, Kind
from shiftproof.base.hparams import Hparam, choice
from shiftproof.models import Network

ENCODER_LR_RATIO = 10.0
"""Learning rate of the variance encoders divided by the network's."""
_START_VARIANCE = 0.1
_EPSILON = 1e-5  # the smallest variance


class MIRO(Algorithm):
    r"""Mutual-information regularization with the start (Cha et al., ECCV 2022, arXiv 2203.10789, algorithm 1).

    With features :math:`z_l` after stage :math:`l`, and :math:`z^0_l` from the weights at the start, the objective is

    .. math:: L = CE + w \sum_l \tfrac12 \operatorname{mean}\left[\frac{(z_l - z^0_l)^2}{\sigma_l^2}
        + \log \sigma_l^2\right],\quad \sigma_l^2 = \operatorname{softplus}(b_l) + 10^{-5},

    with one :math:`b_l` per channel, initialised so that :math:`\sigma_l^2` is 0.1, and the identity as the mean
    encoder. The variance encoders train in the network's optimizer with 10 times the run's learning rate. `find_stages`
    finds the stages, which are those of the authors' code: the stem, with its max-pool, and the four layers of a
    residual network, or the patches and the quarters of a vision transformer's blocks. If it finds none, the features
    themselves are the only stage. Until version 7 of the results, the stem ended before the max-pool.

    The copy of the start is part of the algorithm's state; it does not train and stays in evaluation mode. A step costs
    one forward pass more than ERM's. The method is meant for start weights that are worth staying near.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        penalty_weight: the weight :math:`w`, at least 0. The paper found 0.01 for PACS and VLCS, and 0.1 otherwise.

    Raises:
        ValueError: the weight is out of its range.
    """

    kinds: ClassVar[tuple[Kind, ...]] = PICTURES
    reads_pictures: ClassVar[bool] = True
    limits: ClassVar[str] = "it compares feature maps with those of a pretrained network"
    single_device: ClassVar[str | None] = "its penalty is on feature maps inside the featurizer"
    hparams: ClassVar[Mapping[str, Hparam]] = {
        "penalty_weight": Hparam(0.1, choice(1.0, 0.1, 0.01, 0.001), seed_name="ld")
    }

    def __init__(self, network: Network, num_domains: int, penalty_weight: float = 0.1) -> None:
        super().__init__(network, num_domains)
        if not 0 <= penalty_weight < math.inf:
            raise ValueError(f"Invalid penalty_weight value: {penalty_weight}; it must be at least 0")
        self.penalty_weight = penalty_weight
        self.stages = find_stages(network) or [Stage("", network.feature_size, -1)]
        self.start = copy.deepcopy(network.featurizer).requires_grad_(False)
        self.encoders = nn.ParameterList(
            torch.full((stage.channels,), math.log(math.expm1(_START_VARIANCE - _EPSILON))) for stage in self.stages
        )
        self._outputs = StageOutputs(network.featurizer, self.stages)
        self._start_outputs = StageOutputs(self.start, self.stages)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; the copy of the start stays in evaluation mode."""
        super().train(mode)
        self.start.eval()
        return self

    def build_optimizers(self, factory: OptimizerFactory) -> None:
        """Build one optimizer, with a group for the encoders."""
        optimizer = factory(p for p in self.network.parameters() if p.requires_grad)
        lr = ENCODER_LR_RATIO * optimizer.defaults["lr"]
        optimizer.add_param_group({"params": list(self.encoders), "lr": lr})
        self.optimizers = {"all": optimizer}

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the cross-entropy over all images plus the weighted penalty."""
        images, labels = pooled(batches)
        with self._outputs.recorded() as outputs:
            loss = self.network.loss(self.predict(images), labels)
        with self._start_outputs.recorded() as start_outputs, torch.no_grad():
            self.start(images)
        penalty = torch.stack(
            [
                _divergence(z, start, F.softplus(b) + _EPSILON, stage.channel_dim)
                for z, start, b, stage in zip(outputs, start_outputs, self.encoders, self.stages, strict=True)
            ]
        ).sum()
        return loss + self.penalty_weight * penalty


def _divergence(features: Tensor, start: Tensor, variance: Tensor, channel_dim: int) -> Tensor:
    """Return half the mean of the squared distances divided by the variance (channels,) plus its logarithm."""
    rows, start_rows = (z.movedim(channel_dim, -1).flatten(0, -2) for z in (features, start))
    # not mean(), whose backward would first write out a gradient of the features' size
    distance = F.mse_loss(rows, start_rows, reduction="none").sum(0, dtype=variance.dtype) / len(rows)
    return (distance / variance + variance.log()).mean() / 2


ALGORITHMS.register("miro", MIRO)
