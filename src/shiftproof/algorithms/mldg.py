"""Meta-learning for domain generalization."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm
from shiftproof.algorithms.domain_loss import mean_domain_loss
from shiftproof.base.batch import Batch
from shiftproof.base.hparams import Hparam, choice, log10_uniform
from shiftproof.models import Network


class MLDG(Algorithm):
    r"""Meta-learning for domain generalization (Li et al., AAAI 2018, arXiv 1710.03463, algorithm 1 and eq. 3).

    At every step the source domains are divided at random into meta-train and meta-test domains, and

    .. math:: F(\theta) + \beta \, G(\theta - \alpha \nabla F(\theta))

    is minimised, where :math:`F` and :math:`G` are the mean cross-entropies over the meta-train and over the meta-test
    domains, and :math:`\alpha` is the learning rate of the step, of each weight its own. The inner step is plain
    gradient descent, whichever optimizer takes the outer one.

    As in the paper, the gradient passes through the inner step. ``first_order`` treats :math:`\nabla F(\theta)` in it
    as constant, as DomainBed does, which gives :math:`\nabla F(\theta) + \beta \nabla G(\theta')`. DomainBed differs in
    three more ways. It steps to :math:`\theta'` with a new Adam, which moves every weight by about the learning rate.
    It pairs domains instead of averaging over them, so with three domains of which two are held out, one goes unused.
    And it learns nothing if ``n_meta_test`` leaves no domain to train on; here at least one always remains.

    Args:
        network: the network to train.
        num_domains: number of source domains, at least 2.
        beta: weight of the meta-test loss, at least 0.
        n_meta_test: number of meta-test domains, at least 1; capped at all source domains but one.
        first_order: whether to leave out second derivatives. A step then takes about as long as ERM's, and two to three
            times that with them. Models compiled by ``torch.compile`` have no second derivatives. Neither has fused
            attention, so PyTorch's own runs unfused.

    Raises:
        ValueError: there is only one source domain, or a hyperparameter is out of its range.
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {
        "beta": Hparam(1.0, log10_uniform(-1, 1), seed_name="mldg_beta"),
        "n_meta_test": Hparam(2, choice(1, 2)),
        "first_order": Hparam(False),
    }
    min_domains: ClassVar[int] = 2
    accumulates: ClassVar[bool] = False
    single_device: ClassVar[str | None] = "it takes gradients at weights outside the averaging over devices"

    def __init__(
        self,
        network: Network,
        num_domains: int,
        beta: float = 1.0,
        n_meta_test: int = 2,
        first_order: bool = False,
    ) -> None:
        super().__init__(network, num_domains)
        if num_domains < 2:
            raise ValueError(f"MLDG holds out some of the source domains: it needs at least two, not {num_domains}")
        if not 0 <= beta < math.inf:
            raise ValueError(f"Invalid beta value: {beta}; it must be at least 0")
        if isinstance(n_meta_test, bool) or not isinstance(n_meta_test, int) or n_meta_test < 1:
            raise ValueError(f"Invalid n_meta_test value: {n_meta_test}; it must be a whole number, at least 1")
        self.beta, self.n_meta_test, self.first_order = beta, min(n_meta_test, num_domains - 1), first_order

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the loss of the meta-train domains plus the weighted loss of the others after the inner step."""
        loss, _, held_out = self._evaluate(batches, create_graph=True)
        return loss + self.beta * held_out

    def backward(self, batches: Sequence[Batch], create_graph: bool = False) -> Tensor:
        """Leave gradients in the parameters and return the detached loss."""
        if create_graph or not self.first_order:
            return super().backward(batches, create_graph)
        loss, gradients, held_out = self._evaluate(batches, create_graph=False)
        (self.beta * held_out).backward()  # type: ignore[no-untyped-call]
        for p, gradient in gradients.items():  # no second backward pass through the meta-train loss
            p.grad = gradient if p.grad is None else p.grad + gradient
        return (loss + self.beta * held_out).detach()

    def _evaluate(
        self, batches: Sequence[Batch], create_graph: bool
    ) -> tuple[Tensor, dict[nn.Parameter, Tensor], Tensor]:
        """Return the loss of the meta-train domains, its gradient, and the loss of the others after the inner step."""
        shuffled = [batches[i] for i in torch.randperm(len(batches), device="cpu").tolist()]
        meta_test, meta_train = shuffled[: self.n_meta_test], shuffled[self.n_meta_test :]
        weights = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        # fused attention has no second derivative
        with sdpa_kernel(SDPBackend.MATH) if create_graph else nullcontext():
            loss = self._loss(meta_train, weights)
        found = torch.autograd.grad(loss, list(weights.values()), create_graph=create_graph, allow_unused=True)
        gradients = {p: g for p, g in zip(weights.values(), found, strict=True) if g is not None}
        groups = self.optimizers["all"].param_groups
        rates = {p: group["lr"] for group in groups for p in group["params"]}
        stepped: dict[str, Tensor] = dict(weights)
        for name, p in weights.items():
            if p in gradients:
                stepped[name] = p - rates[p] * (gradients[p].detach() if self.first_order else gradients[p])
        return loss, gradients, self._loss(meta_test, stepped)

    def _loss(self, batches: Sequence[Batch], weights: Mapping[str, Tensor]) -> Tensor:
        """Return the mean loss of some domains at given weights."""
        images = torch.cat([images for images, _ in batches])
        return mean_domain_loss(functional_call(self.network, dict(weights), (images,)), batches, self.network.loss)


ALGORITHMS.register("mldg", MLDG)
