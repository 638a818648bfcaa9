"""Transfer, which learns features on which no classifier near the own one does better in one domain than in another."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.func import functional_call

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm, MakeClosure, SingleDomainWarning
from shiftproof.algorithms.domain_loss import losses_by_domain, passed, pooled
from shiftproof.base.batch import Batch
from shiftproof.base.hparams import Hparam, choice, log10_uniform, option, uniform
from shiftproof.models import Network


class Transfer(Algorithm):
    r"""Transfer (Zhang, Zhao, Yu and Poupart, NeurIPS 2021, arXiv 2106.03632, algorithm 2).

    .. math:: \min_{g, h} L(h \circ g) + \lambda \max_{\lVert h' - h \rVert \le \delta}
        \left[ \max_e R_e(h' \circ g) - \min_e R_e(h' \circ g) \right]

    with features :math:`g`, the classifier :math:`h`, the mean loss :math:`L` over all images and the losses
    :math:`R_e` of the domains. In every pass the adversary :math:`h'` starts at :math:`h` and takes ``d_steps`` steps
    of projected gradient ascent on :math:`\lambda` times the gap. It then counts as a constant, so that the gap moves
    the features only. The adversary's steps take no forward pass, as they are on features that are computed anyway.
    In the paper (section 4.2, equation 14) :math:`L` is the mean of the domains' losses, which is the same for batches
    of one size, and the ascent is on the gap alone; :math:`\lambda` in it is DomainBed's, and lengthens its steps.

    DomainBed's code, which is the authors' algorithm, takes two steps of the optimizer per batch, as does ``two_steps``
    here: one on the loss, and one on the gap with the adversary from the batch before; then the adversary starts at the
    classifier and ascends with the features of the new weights. The domains pass one by one for the gap. In all its
    settings but the first, an option ("gda") gives the optimizer the adversary's weights only, so that nothing else is
    ever trained. That defect is left out here.

    The features are taken after the dropout. With one source domain Transfer is ERM, and warns.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        penalty_weight: the weight :math:`\lambda`, at least 0.
        delta: the radius :math:`\delta`, at least 0, over all weights of the classifier together.
        d_steps: the adversary's number of steps, at least 0.
        lr_d: length of its steps divided by the gradient's, at least 0.
        two_steps: whether loss and gap are minimised in steps of their own, as in DomainBed.

    Raises:
        ValueError: an argument is out of its range.
    """

    accumulates: ClassVar[bool] = False
    reads_heads: ClassVar[bool] = True
    hparams: ClassVar[Mapping[str, Hparam]] = {
        "penalty_weight": Hparam(1.0, log10_uniform(-2, 1), seed_name="t_lambda"),
        "delta": Hparam(2.0, uniform(0.1, 3.0)),
        "d_steps": Hparam(10, choice(1, 2, 5), seed_name="d_steps_per_g"),
        "lr_d": Hparam(1e-3, log10_uniform(-4.5, -2.5)),
        "two_steps": option(False, True, ("domainbed-head",)),
    }

    def __init__(
        self,
        network: Network,
        num_domains: int,
        penalty_weight: float = 1.0,
        delta: float = 2.0,
        d_steps: int = 10,
        lr_d: float = 1e-3,
        two_steps: bool = False,
    ) -> None:
        super().__init__(network, num_domains)
        for name, value in (("penalty_weight", penalty_weight), ("delta", delta), ("lr_d", lr_d)):
            if not 0 <= value < math.inf:
                raise ValueError(f"Invalid {name} value: {value}; it must be at least 0")
        if type(d_steps) is not int or d_steps < 0:
            raise ValueError(f"Invalid d_steps value: {d_steps}; it must be a whole number, at least 0")
        if num_domains == 1:
            warnings.warn("Transfer with one source domain is ERM", SingleDomainWarning, stacklevel=1)
        self.penalty_weight, self.delta, self.d_steps, self.lr_d = penalty_weight, delta, d_steps, lr_d
        self.adversary = None
        if two_steps and num_domains > 1:
            self.adversary = copy.deepcopy(network.classifier).requires_grad_(False)
        self._turn: Literal["both", "loss", "gap", "adversary"] = "both"

    def update(self, batches: Sequence[Batch], step: int, make_closure: MakeClosure) -> Tensor:
        """Take the step, or both of them and the adversary's, and return the detached loss."""
        if self.adversary is None:
            return super().update(batches, step, make_closure)
        try:
            self._turn = "loss"
            loss = self._step("all", make_closure(batches))
            self._turn = "gap"
            self._step("all", make_closure(batches))
            self._turn = "adversary"
            make_closure(batches, annealed=False)()
        finally:
            self._turn = "both"
        return loss

    def backward(self, batches: Sequence[Batch], create_graph: bool = False) -> Tensor:
        """Leave the gradients, or move the adversary in its turn; return the detached loss."""
        if self._turn != "adversary":
            return super().backward(batches, create_graph)
        assert self.adversary is not None  # noqa: S101  # it has a turn only if it is kept
        with torch.no_grad():
            features = self._features(batches, separate=True)
        moved = self._ascended(features, batches)
        for name, parameter in self.adversary.named_parameters():
            parameter.copy_(moved[name])
        return self._gap(features, moved, batches).detach()

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the loss plus the weighted gap, or the one of them whose turn it is."""
        if self._turn == "gap":
            assert self.adversary is not None  # noqa: S101  # it has a turn only if it is kept
            features = self._features(batches, separate=True)
            return self.penalty_weight * self._gap(features, dict(self.adversary.named_parameters()), batches)
        features = self._features(batches, separate=False)
        loss = self.network.loss(self.network.classifier(features), pooled(batches)[1])
        if self._turn == "loss" or len(batches) == 1:
            return loss
        adversary = self._ascended(features.detach(), batches)
        return loss + self.penalty_weight * self._gap(features, adversary, batches)

    def _features(self, batches: Sequence[Batch], separate: bool) -> Tensor:
        featurizer, dropout = self.network.featurizer, self.network.dropout
        features: Tensor = dropout(passed(featurizer, featurizer, batches, separate))
        return features

    def _gap(self, features: Tensor, classifier: Mapping[str, Tensor], batches: Sequence[Batch]) -> Tensor:
        """Return the largest of the domains' losses minus the smallest, by a classifier of the given weights."""
        outputs = functional_call(self.network.classifier, dict(classifier), (features,))
        losses = losses_by_domain(outputs, batches, self.network.loss)
        return losses.max() - losses.min()

    def _ascended(self, features: Tensor, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Return the adversary's weights after steps from the classifier's, projected into the ball around these."""
        centre = {name: p.detach() for name, p in self.network.classifier.named_parameters()}
        adversary = centre
        with torch.enable_grad(), torch.autocast(features.device.type, enabled=False):
            exact = features.to(torch.promote_types(features.dtype, torch.float32))
            for _ in range(self.d_steps):
                weights = {name: weight.clone().requires_grad_() for name, weight in adversary.items()}
                gap = self._gap(exact, weights, batches)
                gradients = torch.autograd.grad(gap, list(weights.values()))
                rate = self.lr_d * self.penalty_weight
                change = {
                    name: weights[name].detach() + rate * gradient - centre[name]
                    for name, gradient in zip(weights, gradients, strict=True)
                }
                distance = torch.stack([part.square().sum() for part in change.values()]).sum().sqrt()
                shorter = (self.delta / distance).nan_to_num(1.0).clamp(max=1)  # 0/0: it has not moved
                adversary = {name: centre[name] + shorter * change[name] for name in centre}
        return adversary


ALGORITHMS.register("transfer", Transfer)
