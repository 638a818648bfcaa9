"""SagNet, which learns features whose style says nothing about the class."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm
from shiftproof.algorithms.domain_loss import pooled
from shiftproof.base.batch import Batch
from shiftproof.base.choices import PICTURES, Kind, Task
from shiftproof.base.hparams import Hparam, log10_uniform
from shiftproof.models import Network

_EPSILON = 1e-5  # added to variances


class SagNet(Algorithm):
    r"""Style-agnostic network (Nam et al., CVPR 2021, arXiv 1910.11645).

    The style of features :math:`z` is their mean :math:`\mu` and standard deviation :math:`\sigma`; their content is
    :math:`(z - \mu)/\sigma`. With :math:`z'` from another image of the batch and :math:`\alpha \sim U(0, 1)` per image,

    .. math:: SR(z) = \hat\sigma\,\frac{z - \mu}{\sigma} + \hat\mu,\quad
        \hat\mu = \alpha\mu + (1 - \alpha)\mu',\ \hat\sigma = \alpha\sigma + (1 - \alpha)\sigma',\qquad
        CR(z) = \sigma\,\frac{z' - \mu'}{\sigma'} + \mu.

    Three losses are minimised:

    - the classifier's cross-entropy at :math:`SR(z)`, over featurizer and classifier;
    - a style head's cross-entropy at :math:`CR(z)`, over the style head;
    - ``adversary_weight`` times the cross-entropy between the style head's predictions at :math:`CR(z)` and equal
      probabilities for all classes, over the featurizer. This loss moves only the style; the content is held fixed.

    All three gradients are taken at the same weights, in one forward and one backward pass. DomainBed takes three steps
    one after the other, each with a forward pass of its own, and steps the featurizer twice. As in DomainBed, the
    features are those before the classifier (after the dropout), so any featurizer will do. The paper instead splits a
    residual network before its third stage, takes statistics of feature maps over their pixels, and lets the adversary
    change only the scales and shifts of batch norms. As in the paper, standard deviations are mixed; the authors' code
    mixes variances. The style head starts as a copy of the classifier.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        adversary_weight: weight of the adversary's loss, at least 0.

    Raises:
        ValueError: the weight is out of its range.
    """

    kinds: ClassVar[tuple[Kind, ...]] = PICTURES
    tasks: ClassVar[tuple[Task, ...]] = ("classification",)
    reads_pictures: ClassVar[bool] = True
    limits: ClassVar[str] = "it exchanges styles of feature maps, and its adversary spreads the classes' probabilities"
    reads_heads: ClassVar[bool] = True
    hparams: ClassVar[Mapping[str, Hparam]] = {
        "adversary_weight": Hparam(0.1, log10_uniform(-2, 1), seed_name="sag_w_adv")
    }

    def __init__(self, network: Network, num_domains: int, adversary_weight: float = 0.1) -> None:
        super().__init__(network, num_domains)
        if not 0 <= adversary_weight < math.inf:
            raise ValueError(f"Invalid adversary_weight value: {adversary_weight}; it must be at least 0")
        self.adversary_weight = adversary_weight
        self.style_head = copy.deepcopy(network.classifier)

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the sum of the three losses, each with gradients only for the parameters that minimise it."""
        images, labels = pooled(batches)
        features = self.network.dropout(self.network.featurizer(images))
        restyled, refilled = randomised(features)
        content = F.cross_entropy(self.network.classifier(restyled), labels)
        style = F.cross_entropy(self.style_head(refilled.detach()), labels)
        logits = F.linear(refilled, self.style_head.weight.detach(), self.style_head.bias.detach())
        adversary = -F.log_softmax(logits, 1).mean()
        return content + style + self.adversary_weight * adversary


def randomised(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (n, feature_size) with randomised styles, and with randomised contents.

    The draws come from torch's CPU generator.
    """
    variance, mean = torch.var_mean(features, 1, correction=0, keepdim=True)
    deviation = (variance + _EPSILON).sqrt()
    content = (features - mean) / deviation
    weight = torch.rand(len(features), 1, device="cpu").to(features, non_blocking=True)
    orders = torch.stack([torch.randperm(len(features), device="cpu") for _ in range(2)])
    styles, contents = orders.to(features.device, non_blocking=True)
    mixed_deviation, mixed_mean = (weight * own + (1 - weight) * own[styles] for own in (deviation, mean))
    return content * mixed_deviation + mixed_mean, content[contents].detach() * deviation + mean


ALGORITHMS.register("sagnet", SagNet)
