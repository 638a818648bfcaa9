"""Gradient matching by inner steps (Shi et al., 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from shiftproof.algorithms.algorithm import ALGORITHMS, MakeClosure
from shiftproof.algorithms.erm import ERM
from shiftproof.base.batch import Batch
from shiftproof.base.hparams import Hparam, choice
from shiftproof.models import Network


class Fish(ERM):
    r"""Fish (Shi et al., "Gradient Matching for Domain Generalization", ICLR 2022, algorithm 1).

    Starting from the weights :math:`\theta`, the run's optimizer takes one inner step on each source domain, in random
    order, which leads to :math:`\tilde\theta`. The step of the run is then
    :math:`\theta \leftarrow \theta + \epsilon\,(\tilde\theta - \theta)`. To first order this increases the inner
    products between the domains' gradients.

    As in DomainBed, the optimizer's state carries over from step to step. Unlike in DomainBed, buffers such as the
    statistics of batch norms keep the values that the inner steps leave, the order is random as in the paper, and no
    network is rebuilt. With one source domain this is ERM with its steps scaled by :math:`\epsilon`.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        meta_lr: length :math:`\epsilon` of the step, in (0, 1].

    Raises:
        ValueError: an argument is out of its range.
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {"meta_lr": Hparam(0.5, choice(0.05, 0.1, 0.5))}

    def __init__(self, network: Network, num_domains: int, *, meta_lr: float = 0.5) -> None:
        super().__init__(network, num_domains)
        if not 0 < meta_lr <= 1:
            raise ValueError(f"Invalid meta_lr value: {meta_lr}; it must be in (0, 1]")
        self.meta_lr = meta_lr

    def update(self, batches: Sequence[Batch], step: int, make_closure: MakeClosure) -> Tensor:
        """Step through the domains, then go part of the way to the result; return the mean of the domains' losses."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        start = [p.detach().clone() for p in parameters]
        order: list[int] = torch.randperm(len(batches), device="cpu").tolist()
        losses = [self._step("all", make_closure([batches[domain]])) for domain in order]
        with torch.no_grad():
            for p, weight in zip(parameters, start, strict=True):
                p.copy_(weight.lerp_(p, self.meta_lr))
        return torch.stack(losses).mean()


ALGORITHMS.register("fish", Fish)
