"""Transfer risk minimization (Xu and Jaakkola, 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from shiftproof.algorithms.algorithm import ALGORITHMS
from shiftproof.algorithms.domain_loss import pooled, split_domains
from shiftproof.algorithms.two_phases import TwoPhases
from shiftproof.base.batch import Batch
from shiftproof.base.choices import Task
from shiftproof.base.hparams import Hparam, log10_int, log10_uniform
from shiftproof.models import Network

_FIT_STEPS, _FIT_RATE = 30, 0.1
_TERMS, _LARGEST = 10, 10.0  # of the series after its first term, which stops beyond the largest element


class TRM(TwoPhases):
    r"""Transfer risk minimization (Xu and Jaakkola, arXiv 2110.09940).

    .. math:: R + \frac{1}{E} \sum_Q \left( \sum_{P \ne Q} \alpha_{QP} R_P(w_Q)
        - \lambda \langle H_Q^{-1} \sum_{P \ne Q} \alpha_{QP} \nabla R_P(w_Q), \nabla R_Q(w_Q) \rangle \right)

    with :math:`R` the mean cross-entropy over the images of all domains, and :math:`w_Q` a linear classifier of domain
    :math:`Q`, which at every step descends 30 times (rate 0.1) on the features of that domain. Its risk on the other
    domains is the transfer risk, which the features minimise. They also move :math:`w_Q`, and the second term follows
    that: with :math:`\lambda = 1` by the implicit function theorem. Its gradients and its Hessian :math:`H_Q` of
    :math:`R_Q` are those of the weights without the bias. Its first factor counts as a constant, and is estimated by
    the terms 0 to 10 of the Neumann series :math:`\sum_i (I - H_Q)^i`, or fewer if an element grows beyond 10. After
    every step :math:`\alpha_{QP} \propto \alpha_{QP} \exp(\eta R_P(w_Q))`. The first ``anneal_steps`` steps minimise
    :math:`R` alone. All of this has closed forms in the features, and takes no other pass of the network.

    In DomainBed the first term of the series is overwritten by the second, and the exponent has
    :math:`\alpha_{QP} R_P`; its classifiers of domains start at random, and here as the network's. With one source
    domain there is no transfer, and this is ERM.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        penalty_weight: :math:`\lambda`, at least 0.
        anneal_steps: number of steps before the transfer risk is minimised, at least 0.
        eta: step size :math:`\eta` of the weights :math:`\alpha`, at least 0.

    Attributes:
        heads: the domains' classifiers (num_domains, classes, features + 1), with the bias last.
        shares: the weights :math:`\alpha` (num_domains, num_domains), with zeros on the diagonal.

    Raises:
        ValueError: an argument is out of its range.
    """

    renews = False
    tasks: ClassVar[tuple[Task, ...]] = ("classification",)
    weighs_classes: ClassVar[bool] = False
    limits: ClassVar[str] = "its domains' classifiers follow the cross-entropy's derivatives in closed form"
    hparams: ClassVar[Mapping[str, Hparam]] = {
        "penalty_weight": Hparam(1e-4, log10_uniform(-5, 0), seed_name="cos_lambda"),
        "anneal_steps": Hparam(200, log10_int(0, 4), seed_name="iters"),
        "eta": Hparam(0.01, log10_uniform(-3, -1), seed_name="groupdro_eta"),
    }
    short_hparams: ClassVar[Mapping[str, Hparam]] = {
        "anneal_steps": Hparam(12, log10_int(0, 2.5), seed_name="iters"),
    }
    heads: Tensor
    shares: Tensor

    def __init__(
        self,
        network: Network,
        num_domains: int,
        penalty_weight: float = 1e-4,
        anneal_steps: int = 200,
        eta: float = 0.01,
    ) -> None:
        super().__init__(network, num_domains, anneal_steps)
        for name, value in (("penalty_weight", penalty_weight), ("eta", eta)):
            if not 0 <= value < math.inf:
                raise ValueError(f"Invalid {name} value: {value}; it must be at least 0")
        self.penalty_weight, self.eta = penalty_weight, eta
        start = torch.cat([network.classifier.weight, network.classifier.bias[:, None]], 1).detach()
        self.register_buffer("heads", start.repeat(num_domains, 1, 1))
        self.register_buffer("shares", (1 - torch.eye(num_domains)) / max(num_domains - 1, 1))

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the loss of all images plus the domains' mean transfer risk."""
        images, labels = pooled(batches)
        features = self.network.dropout(self.network.featurizer(images))
        loss = F.cross_entropy(self.network.classifier(features), labels)
        if self.beginning or len(batches) == 1:
            return loss
        with torch.autocast(features.device.type, enabled=False):
            exact = features.to(self.heads.dtype)
            inputs = split_domains(torch.cat([exact, exact.new_ones(len(exact), 1)], 1), batches)
            domains = [_Domain(rows, labels) for rows, (_, labels) in zip(inputs, batches, strict=True)]
            fitted = [_fitted(head, domain) for head, domain in zip(self.heads, domains, strict=True)]
            risks = torch.stack([torch.stack([domain.risk(head) for domain in domains]) for head in fitted])
            transfer = (self.shares * risks).sum(1)
            if self.penalty_weight:
                following = [self._follow(i, head, domains) for i, head in enumerate(fitted)]
                transfer = transfer - self.penalty_weight * torch.stack(following)
        self.carry("heads", torch.stack(fitted))
        self.carry("shares", (self.shares.log() + self.eta * risks.detach()).softmax(1))
        return loss + transfer.mean()

    def _follow(self, own: int, head: Tensor, domains: Sequence[_Domain]) -> Tensor:
        """Return the inner product by which the transfer risk follows a domain's classifier."""
        with torch.no_grad():
            others = torch.stack([domain.gradient(head) for domain in domains])
            term = (self.shares[own][:, None, None] * others).sum(0)
            total, stopped = term, term.new_zeros((), dtype=torch.bool)
            for _ in range(_TERMS):
                term = term - domains[own].curvature(head, term)
                total = torch.where(stopped, total, total + term)
                stopped = stopped | (total.abs().max() > _LARGEST)
        return (total * domains[own].gradient(head)).sum()


class _Domain(NamedTuple):
    """Inputs (n, features + 1) of linear classifiers, whose last is 1, and labels (n,) of one domain."""

    inputs: Tensor
    labels: Tensor

    def risk(self, head: Tensor) -> Tensor:
        """Return the mean cross-entropy of a classifier (classes, features + 1)."""
        return F.cross_entropy(self.inputs @ head.T, self.labels)

    def gradient(self, head: Tensor, bias: bool = False) -> Tensor:
        """Return the gradient of the risk, (classes, features), or with that to the bias."""
        errors = (self.inputs @ head.T).softmax(1) - F.one_hot(self.labels, len(head))
        gradient = errors.T @ self.inputs / len(self.labels)
        return gradient if bias else gradient[:, :-1]

    def curvature(self, head: Tensor, direction: Tensor) -> Tensor:
        """Return the product of the Hessian of the risk with a direction (classes, features)."""
        probabilities = (self.inputs @ head.T).softmax(1)
        change = probabilities * (self.inputs[:, :-1] @ direction.T)
        change = change - probabilities * change.sum(1, keepdim=True)
        return change.T @ self.inputs[:, :-1] / len(self.labels)


@torch.no_grad()
def _fitted(head: Tensor, domain: _Domain) -> Tensor:
    """Return a classifier after some steps of gradient descent on a domain."""
    for _ in range(_FIT_STEPS):
        head = head - _FIT_RATE * domain.gradient(head, bias=True)
    return head


ALGORITHMS.register("trm", TRM)
