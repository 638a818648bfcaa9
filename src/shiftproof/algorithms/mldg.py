"""Meta-learning for domain generalization."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import cycle, pairwise
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm, OptimizerFactory
from shiftproof.algorithms.domain_loss import mean_domain_loss
from shiftproof.base.batch import Batch
from shiftproof.base.hparams import Hparam, choice, log10_uniform, option
from shiftproof.models import Network

Pairing = Literal["groups", "split", "ring"]


class MLDG(Algorithm):
    r"""Meta-learning for domain generalization (Li et al., AAAI 2018, arXiv 1710.03463, algorithm 1 and eq. 3).

    At every step the source domains are divided at random into meta-train and meta-test domains, and

    .. math:: F(\theta) + \beta \, G(\theta - \alpha \nabla F(\theta))

    is minimised, where :math:`F` and :math:`G` are the mean cross-entropies over the meta-train and over the meta-test
    domains, and :math:`\alpha` is the learning rate of the step, of each weight its own. The inner step is plain
    gradient descent, whichever optimizer takes the outer one.

    As in the paper, the gradient passes through the inner step. ``first_order`` treats :math:`\nabla F(\theta)` in it
    as constant, which gives :math:`\nabla F(\theta) + \beta \nabla G(\theta')`.

    DomainBed's code differs in two ways, which the dialects of published code choose. With ``inner_optimizer``, the
    inner step is the first of a new optimizer of the run's kind, of first order: Adam then moves every weight by about
    the learning rate, whatever the size of the gradient. Batch norms that train follow the passes at the weights
    themselves; in DomainBed's code they follow none and keep the statistics of the start, a defect. With ``pairing``,
    the domains are paired, each pair takes an inner step of its own, and the sum over the pairs of
    :math:`F_i(\theta) + \beta G_j(\theta'_i)` is divided by the number of domains. Of three domains of which two are
    held out, "split" then uses two. DomainBed learns nothing if ``n_meta_test`` leaves no domain to train on; here at
    least one always remains.

    Args:
        network: the network to train.
        num_domains: number of source domains, at least 2.
        beta: weight of the meta-test loss, at least 0.
        n_meta_test: number of meta-test domains, at least 1; capped at all source domains but one.
        first_order: whether to leave out second derivatives. A step then takes about as long as ERM's, and two to three
            times that with them. Models compiled by ``torch.compile`` have no second derivatives. Neither has fused
            attention, so PyTorch's own runs unfused.
        inner_optimizer: whether the inner step is one of the run's kind of optimizer rather than of gradient descent.
        inner_lr: learning rate of the inner step, at least 0; 0 for the run's.
        pairing: "groups" takes the mean over all meta-train and over all meta-test domains; "split" pairs each
            meta-train domain with one of the others (DomainBed since 2022); "ring" pairs every domain with the next, in
            random order, and has no use for ``n_meta_test`` (DomainBed's published table, SWAD). Of the batches of a
            pair, the longer is cut to the length of the other.

    Raises:
        ValueError: there is only one source domain, or a hyperparameter is out of its range.
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {
        "beta": Hparam(1.0, log10_uniform(-1, 1), seed_name="mldg_beta"),
        "n_meta_test": Hparam(2, choice(1, 2)),
        "first_order": Hparam(False),
        "inner_optimizer": option(False, True),
        "inner_lr": Hparam(0.0, later=True),
        "pairing": Hparam(
            "groups", in_dialects={"domainbed": "ring", "swad": "ring", "domainbed-head": "split"}, later=True
        ),
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
        inner_optimizer: bool = False,
        inner_lr: float = 0.0,
        pairing: Pairing = "groups",
    ) -> None:
        super().__init__(network, num_domains)
        if num_domains < 2:
            raise ValueError(f"MLDG holds out some of the source domains: it needs at least two, not {num_domains}")
        if not 0 <= beta < math.inf:
            raise ValueError(f"Invalid beta value: {beta}; it must be at least 0")
        if isinstance(n_meta_test, bool) or not isinstance(n_meta_test, int) or n_meta_test < 1:
            raise ValueError(f"Invalid n_meta_test value: {n_meta_test}; it must be a whole number, at least 1")
        if not 0 <= inner_lr < math.inf:
            raise ValueError(f"Invalid inner_lr value: {inner_lr}; it must be at least 0")
        if pairing not in get_args(Pairing):
            raise ValueError(f"Invalid pairing value: {pairing}; it must be one of {', '.join(get_args(Pairing))}")
        self.beta, self.n_meta_test, self.first_order = beta, min(n_meta_test, num_domains - 1), first_order
        self.inner_optimizer, self.inner_lr, self.pairing = inner_optimizer, inner_lr, pairing
        self._factory: OptimizerFactory | None = None

    def build_optimizers(self, factory: OptimizerFactory) -> None:
        """Build the optimizer of the outer step, and keep the factory for those of inner steps."""
        super().build_optimizers(factory)
        self._factory = factory

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the loss of meta-train domains plus the weighted loss of others after an inner step."""
        losses = []
        for meta_train, meta_test in self._divided(batches):
            loss, _, held_out = self._evaluate(meta_train, meta_test, create_graph=True)
            losses.append(loss + self.beta * held_out)
        return torch.stack(losses).sum() / self._divisor

    def backward(self, batches: Sequence[Batch], create_graph: bool = False) -> Tensor:
        """Leave gradients in the parameters and return the detached loss."""
        if create_graph or not (self.first_order or self.inner_optimizer):
            return super().backward(batches, create_graph)
        losses = []
        for meta_train, meta_test in self._divided(batches):
            loss, gradients, held_out = self._evaluate(meta_train, meta_test, create_graph=False)
            (self.beta * held_out / self._divisor).backward()  # type: ignore[no-untyped-call]
            for p, gradient in gradients.items():  # no second backward pass through the meta-train loss
                gradient = gradient / self._divisor
                p.grad = gradient if p.grad is None else p.grad + gradient
            losses.append((loss + self.beta * held_out).detach())
        return torch.stack(losses).sum() / self._divisor

    @property
    def _divisor(self) -> int:
        return 1 if self.pairing == "groups" else self.num_domains

    def _divided(self, batches: Sequence[Batch]) -> list[tuple[list[Batch], list[Batch]]]:
        """Divide the domains at random into groups, or pairs of one domain each, to train on and to hold out."""
        shuffled = [batches[i] for i in torch.randperm(len(batches), device="cpu").tolist()]
        held_out, rest = shuffled[: self.n_meta_test], shuffled[self.n_meta_test :]
        if self.pairing == "groups":
            return [(rest, held_out)]
        pairs = zip(rest, cycle(held_out)) if self.pairing == "split" else pairwise([*shuffled, shuffled[0]])
        return [([_first(one, len(other[1]))], [_first(other, len(one[1]))]) for one, other in pairs]

    def _evaluate(
        self, meta_train: Sequence[Batch], meta_test: Sequence[Batch], create_graph: bool
    ) -> tuple[Tensor, dict[nn.Parameter, Tensor], Tensor]:
        """Return the loss of the meta-train domains, its gradient, and the loss of the others after the inner step."""
        weights = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        # fused attention has no second derivative
        with sdpa_kernel(SDPBackend.MATH) if create_graph else nullcontext():
            loss = self._loss(meta_train, weights)
        buffers = {name: b.clone() for name, b in self.network.named_buffers()} if self.inner_optimizer else {}
        found = torch.autograd.grad(loss, list(weights.values()), create_graph=create_graph, allow_unused=True)
        gradients = {p: g for p, g in zip(weights.values(), found, strict=True) if g is not None}
        if self.inner_optimizer:
            stepped = self._stepped(meta_train, weights, buffers, None if create_graph else (loss, gradients))
        else:
            rates = {p: self.inner_lr or group["lr"] for group in self._groups for p in group["params"]}
            stepped = {
                name: p - rates[p] * (gradients[p].detach() if self.first_order else gradients[p])
                if p in gradients
                else p
                for name, p in weights.items()
            }
        return loss, gradients, self._loss(meta_test, {**stepped, **buffers})

    def _stepped(
        self,
        meta_train: Sequence[Batch],
        weights: Mapping[str, nn.Parameter],
        buffers: Mapping[str, Tensor],
        known: tuple[Tensor, Mapping[nn.Parameter, Tensor]] | None,
    ) -> dict[str, Tensor]:
        """Return the weights after the first step of new optimizers, one per group of rates; they pass gradients on.

        Args:
            meta_train: the batches to step on.
            weights: the weights that train, by name.
            buffers: buffers of the copy that is stepped, by name.
            known: the loss and its gradient at the weights; None if the optimizers need the gradient's graph.
        """
        assert self._factory is not None  # noqa: S101  (steps have optimizers)
        copies = {p: nn.Parameter(p.detach().clone()) for p in weights.values()}
        draw = int(torch.randint(2**31, (), device="cpu"))  # or all steps and pairs would draw the same numbers
        at_copies = {name: copies[p] for name, p in weights.items()}
        for number, group in enumerate(self._groups):
            inner = self._factory([copies[p] for p in group["params"]], name=f"inner {draw} {number}")
            for own in inner.param_groups:
                own |= {"lr": self.inner_lr or group["lr"]} | {k: group[k] for k in ("param_names",) if k in group}
            first_passes = iter([] if known is None else [known])

            def closure(first_passes: Iterator[tuple[Tensor, Mapping[nn.Parameter, Tensor]]] = first_passes) -> Tensor:
                if (first := next(first_passes, None)) is not None:
                    for p, copy in copies.items():
                        copy.grad = first[1][p].clone() if p in first[1] else None
                    return first[0].detach()
                loss = self._loss(meta_train, {**at_copies, **buffers})
                found = torch.autograd.grad(loss, list(copies.values()), create_graph=known is None, allow_unused=True)
                for copy, gradient in zip(copies.values(), found, strict=True):
                    copy.grad = gradient
                return loss.detach()

            inner.step(closure)  # type: ignore[arg-type]
        return {name: copies[p].detach() + (p - p.detach()) for name, p in weights.items()}

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return self.optimizers["all"].param_groups

    def _loss(self, batches: Sequence[Batch], weights: Mapping[str, Tensor]) -> Tensor:
        """Return the mean loss of some domains at given weights."""
        images = torch.cat([images for images, _ in batches])
        return mean_domain_loss(functional_call(self.network, dict(weights), (images,)), batches, self.network.loss)


def _first(batch: Batch, count: int) -> Batch:
    images, labels = batch
    return images[:count], labels[:count]


ALGORITHMS.register("mldg", MLDG)
