"""Gradient matching by inner steps (Shi et al., 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from shiftproof.algorithms.algorithm import ALGORITHMS, MakeClosure
from shiftproof.algorithms.erm import ERM
from shiftproof.base.batch import Batch
from shiftproof.base.hparams import Hparam, choice, option
from shiftproof.models import Network


class Fish(ERM):
    r"""Fish (Shi et al., "Gradient Matching for Domain Generalization", ICLR 2022, algorithm 1).

    Starting from the weights :math:`\theta`, the run's optimizer takes one inner step on each source domain, in random
    order, which leads to :math:`\tilde\theta`. The step of the run is then
    :math:`\theta \leftarrow \theta + \epsilon\,(\tilde\theta - \theta)`. To first order this increases the inner
    products between the domains' gradients.

    As in DomainBed, the optimizer's state carries over from step to step, but no network is rebuilt. With one source
    domain this is ERM with its steps scaled by :math:`\epsilon`.

    DomainBed's code departs from the paper in two ways, each an option here. It takes the domains in their order
    (``fixed_order``), so that the gradient of the last is always taken farthest from :math:`\theta`; averaged over
    random orders no domain is favoured, which the paper's theorem 3.1 needs. And it moves the statistics of batch norms
    only part of the way too (``interpolates_buffers``), although they are moving averages already; the paper does so
    with weights. Where batch norms are frozen or absent this changes nothing.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        meta_lr: length :math:`\epsilon` of the step, in (0, 1].
        fixed_order: whether the inner steps take the domains in their order, as in DomainBed.
        interpolates_buffers: whether buffers of real numbers go part of the way as weights do, as in DomainBed, rather
            than keep the values that the inner steps leave.

    Raises:
        ValueError: an argument is out of its range.
    """

    takes_class_vectors: ClassVar[bool] = False
    hparams: ClassVar[Mapping[str, Hparam]] = {
        "meta_lr": Hparam(0.5, choice(0.05, 0.1, 0.5)),
        "fixed_order": option(False, True),
        "interpolates_buffers": option(False, True),
    }

    def __init__(
        self,
        network: Network,
        num_domains: int,
        *,
        meta_lr: float = 0.5,
        fixed_order: bool = False,
        interpolates_buffers: bool = False,
    ) -> None:
        super().__init__(network, num_domains)
        if not 0 < meta_lr <= 1:
            raise ValueError(f"Invalid meta_lr value: {meta_lr}; it must be in (0, 1]")
        self.meta_lr = meta_lr
        self.fixed_order, self.interpolates_buffers = fixed_order, interpolates_buffers

    def update(self, batches: Sequence[Batch], step: int, make_closure: MakeClosure) -> Tensor:
        """Step through the domains, then go part of the way to the result; return the mean of the domains' losses."""
        moved: list[Tensor] = [p for p in self.parameters() if p.requires_grad]
        if self.interpolates_buffers:
            moved += [buffer for buffer in self.buffers() if buffer.is_floating_point()]
        start = [tensor.detach().clone() for tensor in moved]
        order: Sequence[int] = range(len(batches))
        if not self.fixed_order:
            order = torch.randperm(len(batches), device="cpu").tolist()
        losses = [self._step("all", make_closure([batches[domain]])) for domain in order]
        with torch.no_grad():
            for tensor, before in zip(moved, start, strict=True):
                tensor.copy_(before.lerp_(tensor, self.meta_lr))
        return torch.stack(losses).mean()


ALGORITHMS.register("fish", Fish)
