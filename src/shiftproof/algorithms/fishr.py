"""Invariant gradient variances (Rame et al., 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from shiftproof.algorithms.algorithm import ALGORITHMS
from shiftproof.algorithms.annealed_penalty import AnnealedPenalty
from shiftproof.algorithms.domain_loss import pooled, split_domains
from shiftproof.base.batch import Batch
from shiftproof.base.choices import Task
from shiftproof.base.hparams import Hparam, log10_uniform, uniform, uniform_int
from shiftproof.models import Network


class Fishr(AnnealedPenalty):
    r"""Fishr (Rame, Dancette and Cord, ICML 2022, arXiv 2109.02934).

    .. math:: L + \lambda \cdot \frac{1}{E} \sum_e \frac{1}{P} \lVert \hat v_e - \bar v \rVert^2,
        \quad \bar v = \frac{1}{E} \sum_e \hat v_e

    with :math:`L` the mean cross-entropy over the images of all domains, and :math:`\hat v_e` the smoothed variance
    over the images of domain :math:`e` (divided by their number) of the gradients of the classifier's :math:`P`
    parameters. For one image with features :math:`z` and softmax :math:`p`, this gradient is :math:`(p - y) z^\top` for
    the weights and :math:`p - y` for the bias, so the variances take two matrix products. They are smoothed over steps,

    .. math:: \bar v_e^t = \gamma \bar v_e^{t-1} + (1 - \gamma) v_e^t,
        \quad \hat v_e = \bar v_e^t / (1 - \gamma), \quad \bar v_e^0 = 0,

    with gradients only through :math:`v_e^t`. The divisions by :math:`1 - \gamma` and by :math:`P` follow the released
    code, to which the published weights belong; they only change the unit of :math:`\lambda`. The penalty has weight 0
    before it is raised, but the variances are smoothed from the first step on. With one source domain this is ERM.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        penalty_weight: :math:`\lambda` after the first ``anneal_steps`` steps, at least 0.
        anneal_steps: number of steps before the penalty is raised, at least 0.
        ema: decay :math:`\gamma` of the smoothed variances, in [0, 1).

    Attributes:
        variances: the smoothed variances (num_domains, classes, features + 1), with the bias last.

    Raises:
        ValueError: an argument is out of its range.
    """

    tasks: ClassVar[tuple[Task, ...]] = ("classification",)
    weighs_classes: ClassVar[bool] = False
    limits: ClassVar[str] = "its gradients are the cross-entropy's in closed form"
    hparams: ClassVar[Mapping[str, Hparam]] = {
        "penalty_weight": Hparam(1000.0, log10_uniform(1, 4), seed_name="lambda"),
        "anneal_steps": Hparam(1500, uniform_int(0, 5000), seed_name="penalty_anneal_iters"),
        "ema": Hparam(0.95, uniform(0.9, 0.99)),
    }
    short_hparams: ClassVar[Mapping[str, Hparam]] = {
        "anneal_steps": Hparam(90, uniform_int(0, 300), seed_name="penalty_anneal_iters"),
    }
    weight_before: ClassVar[float] = 0.0
    variances: Tensor

    def __init__(
        self,
        network: Network,
        num_domains: int,
        *,
        penalty_weight: float = 1000.0,
        anneal_steps: int = 1500,
        ema: float = 0.95,
    ) -> None:
        super().__init__(network, num_domains, penalty_weight, anneal_steps)
        if not 0 <= ema < 1:
            raise ValueError(f"Invalid ema value: {ema}; it must be in [0, 1)")
        self.ema = ema
        classes, features = network.classifier.weight.shape
        self.register_buffer("variances", torch.zeros(num_domains, classes, features + 1))

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the loss plus the weighted penalty, from one forward pass."""
        images, labels = pooled(batches)
        features = self.network.dropout(self.network.featurizer(images))
        logits = self.network.classifier(features)
        loss = F.cross_entropy(logits, labels)
        with torch.set_grad_enabled(self.weight > 0 and torch.is_grad_enabled()):
            variances = self._variances(features, logits, batches)
            smoothed = self.ema * self.variances + (1 - self.ema) * variances
        self.carry("variances", smoothed)
        if not self.weight:
            return loss
        corrected = smoothed / (1 - self.ema)
        return loss + self.weight * (corrected - corrected.mean(0)).square().mean()

    def _variances(self, features: Tensor, logits: Tensor, batches: Sequence[Batch]) -> Tensor:
        """Return the variances of the domains' gradients."""
        dtype = self.variances.dtype
        with torch.autocast(features.device.type, enabled=False):  # bfloat16 is too coarse for differences of products
            inputs = torch.cat([features.to(dtype), features.new_ones(len(features), 1, dtype=dtype)], 1)
            labels = torch.cat([of_domain for _, of_domain in batches])
            errors = logits.to(dtype).softmax(1) - F.one_hot(labels, logits.shape[1])
            domains = zip(split_domains(errors, batches), split_domains(inputs, batches), strict=True)
            return torch.stack([e.square().T @ x.square() / len(e) - (e.T @ x / len(e)).square() for e, x in domains])


ALGORITHMS.register("fishr", Fishr)
