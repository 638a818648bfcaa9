"""SagNet, which learns features whose style says nothing about the class."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm, MakeClosure
from shiftproof.algorithms.domain_loss import pooled
from shiftproof.base.batch import Batch
from shiftproof.base.choices import PICTURES, Kind, Task
from shiftproof.base.hparams import Hparam, log10_uniform, option
from shiftproof.base.randomness import seed_generators, torch_seed
from shiftproof.models import Network

_EPSILON = 1e-5  # added to variances
_Turn = Literal["classifier", "style", "adversary"]


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

    All three gradients are taken at the same weights, in one forward and one backward pass, and standard deviations are
    mixed, as in the paper's equations. As in DomainBed, the features are those before the classifier (after the
    dropout), so any featurizer will do. The paper instead splits a residual network before its third stage, takes
    statistics of feature maps over their pixels, and lets the adversary change only the scales and shifts of batch
    norms. The style head starts as a copy of the classifier.

    With ``three_steps`` it trains as DomainBed's code does, to which its published tables belong: a step for each loss,
    one after the other, each with a forward pass and random numbers of its own, so that the featurizer is stepped
    twice; and :math:`SR` mixes variances, as in the authors' code, here their unbiased estimates. Neither is wrong: the
    joint step costs less than half, and in three the adversary meets a style head that has just learned. DomainBed has
    three optimizers, for featurizer, classifier and style head. Here one steps the parameters to which a loss gives
    gradients, which is the same for every rule that treats parameters apart, such as Adam's; SAM's norm in the first
    step is over featurizer and classifier together. Only this step, whose loss trains what predicts, is edited by
    annealers, has the run's penalty, counts as a pass and is reported. If nothing in the featurizer trains, there is
    no third.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        adversary_weight: weight of the adversary's loss, at least 0.
        three_steps: whether to step by one loss after the other, as DomainBed does, rather than by their sum.

    Raises:
        ValueError: the weight is out of its range.
    """

    kinds: ClassVar[tuple[Kind, ...]] = PICTURES
    tasks: ClassVar[tuple[Task, ...]] = ("classification",)
    reads_pictures: ClassVar[bool] = True
    limits: ClassVar[str] = "it exchanges styles of feature maps, and its adversary spreads the classes' probabilities"
    reads_heads: ClassVar[bool] = True
    hparams: ClassVar[Mapping[str, Hparam]] = {
        "adversary_weight": Hparam(0.1, log10_uniform(-2, 1), seed_name="sag_w_adv"),
        "three_steps": option(False, True),
    }

    def __init__(
        self, network: Network, num_domains: int, adversary_weight: float = 0.1, three_steps: bool = False
    ) -> None:
        super().__init__(network, num_domains)
        if not 0 <= adversary_weight < math.inf:
            raise ValueError(f"Invalid adversary_weight value: {adversary_weight}; it must be at least 0")
        self.adversary_weight, self.three_steps = adversary_weight, three_steps
        self.style_head = copy.deepcopy(network.classifier)
        self._turn: _Turn | None = None  # the loss that is stepped by; None for all

    def update(self, batches: Sequence[Batch], step: int, make_closure: MakeClosure) -> Tensor:
        """Take a step by the sum of the losses, or one by each; return the detached sum, or the first."""
        if not self.three_steps:
            return super().update(batches, step, make_closure)
        turns: list[_Turn] = ["classifier", "style"]
        if any(p.requires_grad for p in self.network.featurizer.parameters()):
            turns.append("adversary")
        try:
            losses = []
            for self._turn in turns:
                losses.append(self._step("all", make_closure(batches, annealed=self._turn == "classifier")))
        finally:
            self._turn = None
        return losses[0]

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the sum of the losses, or one, each with gradients only for the parameters that minimise it."""
        images, labels = pooled(batches)
        if self._turn in ("style", "adversary"):  # all closures of a step begin with the same random numbers
            seed_generators(torch_seed(torch.initial_seed(), self._turn), images.device)
        with torch.no_grad() if self._turn == "style" else nullcontext():
            features = self.network.dropout(self.network.featurizer(images))
        restyled, refilled = randomised(features, mixes_variances=self.three_steps)
        losses = []
        if self._turn in (None, "classifier"):
            losses.append(self.network.loss(self.network.classifier(restyled), labels))
        if self._turn in (None, "style"):
            losses.append(self.network.loss(self.style_head(refilled.detach()), labels))
        if self._turn in (None, "adversary"):
            logits = F.linear(refilled, self.style_head.weight.detach(), self.style_head.bias.detach())
            losses.append(self.adversary_weight * -F.log_softmax(logits, 1).mean())
        return sum(losses[1:], losses[0])


def randomised(features: Tensor, mixes_variances: bool = False) -> tuple[Tensor, Tensor]:
    """Return features (n, feature_size) with randomised styles, and with randomised contents.

    The draws come from torch's CPU generator.

    Args:
        features: the features.
        mixes_variances: whether styles are mixed by unbiased variances rather than by standard deviations.
    """
    variance, mean = torch.var_mean(features, 1, correction=int(mixes_variances), keepdim=True)
    deviation = (variance + _EPSILON).sqrt()
    content = (features - mean) / deviation
    weight = torch.rand(len(features), 1, device="cpu").to(features, non_blocking=True)
    orders = torch.stack([torch.randperm(len(features), device="cpu") for _ in range(2)])
    styles, contents = orders.to(features.device, non_blocking=True)
    spread = variance if mixes_variances else deviation
    mixed_spread, mixed_mean = (weight * own + (1 - weight) * own[styles] for own in (spread, mean))
    mixed_deviation = (mixed_spread + _EPSILON).sqrt() if mixes_variances else mixed_spread
    return content * mixed_deviation + mixed_mean, content[contents].detach() * deviation + mean


ALGORITHMS.register("sagnet", SagNet)
