"""Dropping the gradients of over-predictive parameters (Michalkiewicz et al., 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from shiftproof.algorithms.algorithm import ALGORITHMS
from shiftproof.algorithms.domain_loss import pooled
from shiftproof.algorithms.erm import ERM
from shiftproof.base.batch import Batch
from shiftproof.base.hparams import Hparam, uniform
from shiftproof.gradients import PerSampleGradients
from shiftproof.models import Network


class GSNRDropout(ERM):
    r"""Dropout by the gradient's signal-to-noise ratio (Michalkiewicz et al., ICCV 2023, arXiv 2310.07361).

    Every step sets the gradient of ERM to 0 for the most predictive weights, those with the highest ratio

    .. math:: r_j = \frac{\mathbb{E}[g_j]^2}{\operatorname{Var}[g_j]}

    over the gradients :math:`g_j` of single images (Liu et al., "Understanding Why Neural Networks Generalize Well
    Through GSNR of Parameters", ICLR 2020, equation 1). In every parameter tensor this drops the share ``ratio`` of the
    elements, rounded down, or fewer if ratios tie.

    The paper learns ``ratio`` on held-out domains. Here it is fixed, with a default and a search distribution of our
    own. An optimizer with momentum still moves a weight whose gradient is 0. The gradients of single images are taken
    without dropout and with the stored statistics of batch norms; they cost about one forward and one backward pass in
    addition to ERM's.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        ratio: share of the gradient to drop, in [0, 1).

    Raises:
        ValueError: an argument is out of its range.
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {"ratio": Hparam(1 / 3, uniform(0.0, 0.5))}
    takes_class_vectors: ClassVar[bool] = False
    accumulates: ClassVar[bool] = False
    weighs_classes: ClassVar[bool] = False
    limits: ClassVar[str] = "its ratios are of the gradients of single rows, without weights"
    single_device: ClassVar[str | None] = "it compares gradients of single images"

    def __init__(self, network: Network, num_domains: int, *, ratio: float = 1 / 3) -> None:
        super().__init__(network, num_domains)
        if not 0 <= ratio < 1:
            raise ValueError(f"Invalid ratio value: {ratio}; it must be in [0, 1)")
        self.ratio = ratio
        self._per_sample = PerSampleGradients(network, network.loss)

    def backward(self, batches: Sequence[Batch], create_graph: bool = False) -> Tensor:
        """Leave gradients in the parameters with the dropped elements set to 0, and return the detached loss."""
        loss = super().backward(batches, create_graph)
        for p, mask in self._masks(batches):
            if p.grad is not None:
                p.grad = p.grad * mask
        return loss

    def _masks(self, batches: Sequence[Batch]) -> Iterator[tuple[nn.Parameter, Tensor]]:
        images, labels = pooled(batches)
        with torch.autocast(images.device.type, enabled=False):
            _, sums, squares = self._per_sample(images, labels)
        for name, p in self.network.named_parameters():
            if name in sums:
                # increases with the ratio in the class's formula, but stays between 0 and 1
                tiny = torch.finfo(squares[name].dtype).tiny
                predictive = sums[name].square() / (len(images) * squares[name]).clamp_min(tiny)
                dropped = int(self.ratio * p.numel())
                highest_kept = predictive.flatten().kthvalue(p.numel() - dropped).values
                yield p, predictive <= highest_kept


ALGORITHMS.register("gsnr_dropout", GSNRDropout)
