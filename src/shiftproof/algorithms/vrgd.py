"""VRGD: gradients scaled by how far parts of a batch agree on them (Jiang et al., 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm
from shiftproof.algorithms.domain_loss import pooled
from shiftproof.base.batch import Batch
from shiftproof.base.hparams import Hparam
from shiftproof.models import Network

_LARGEST_RATIO = 1e12
"""The ratio of elements on which all parts agree, whose variance is 0 or what rounding makes of it."""


class VRGD(Algorithm):
    r"""Variance reduced gradient descent (Jiang, Liu, Ding, Guo and Lin, arXiv 2309.13681, algorithm 1).

    .. math::
        r_j = \frac{\bar g_j^2}{\frac{1}{K} \sum_k (g_{kj} - \bar g_j)^2}, \qquad
        \tilde r_j = \operatorname{clip}\!\left( \frac{r_j}{\frac{1}{J} \sum_i r_i},\ \gamma,\ 1 \right), \qquad
        g_j = \tilde r_j \, \bar g_j

    with :math:`g_k` the gradients of the losses of :math:`K` parts of the batch, :math:`\bar g` their mean and the mean
    over :math:`i` that over the elements of the same parameter tensor. The gradient's signal-to-noise ratio :math:`r`
    compares the elements of a tensor with one another: those on which the parts agree less than on average move more
    slowly, down to :math:`\gamma`. A ratio above :math:`10^{12}`, as of an element on which all parts agree, counts as
    that.

    In the paper a part is what one of many devices holds of a large batch. So it is here by default, where every
    part has each ``parts``-th image of the batch, of all domains. With ``by_domain`` the parts are the domains' batches
    and the mean is that of the domains' losses, as in `ANDMask`; the ratio then measures how far domains agree. The
    paper's VR-Adam averages :math:`\tilde r` over the steps before it multiplies the gradient; here every optimizer
    gets the gradient of VR-SGD. The default of 8 parts is the least number of devices in the paper's experiments
    (section 6); its regression does best with 32 to 256 (section 7.3). No code of the authors was found, and the
    sections are those of the text that they submitted for review.

    The gradients are evaluated part after part, each over its own images, and only their mean and variance are kept.
    Batch norms that train see one part at a time. With weights of classes, the loss of a part is divided by the weights
    of its own images, so that the mean of the parts is not quite the loss of the batch.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        gamma: the least factor :math:`\gamma`, in [0, 1]; 1 is ERM.
        parts: number of parts, at least 1, or as many as there are images; 1 is ERM.
        by_domain: whether the parts are the domains.

    Raises:
        ValueError: an argument is out of its range.
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {
        "gamma": Hparam(0.1),
        "parts": Hparam(8),
        "by_domain": Hparam(False),
    }
    accumulates: ClassVar[bool] = False
    single_device: ClassVar[str | None] = "it compares the gradients of parts of a batch, of which a device holds some"

    def __init__(
        self, network: Network, num_domains: int, *, gamma: float = 0.1, parts: int = 8, by_domain: bool = False
    ) -> None:
        super().__init__(network, num_domains)
        if not 0 <= gamma <= 1:
            raise ValueError(f"Invalid gamma value: {gamma}; it must be in [0, 1]")
        if not isinstance(parts, int) or parts < 1:
            raise ValueError(f"Invalid parts value: {parts}; it must be a whole number, at least 1")
        self.gamma, self.parts, self.by_domain = gamma, parts, by_domain

    def backward(self, batches: Sequence[Batch], create_graph: bool = False) -> Tensor:
        """Leave the scaled gradients in the parameters and return the mean of the parts' losses, detached."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        means: list[Tensor | None] = [None] * len(parameters)
        variances: list[Tensor] = [p.new_zeros(()) for p in parameters]
        loss, weight = torch.zeros((), device=batches[0][1].device), 0.0
        for share, (inputs, targets) in self._parts(batches):
            of_part = self.network.loss(self.predict(inputs), targets)
            gradients = torch.autograd.grad(of_part, parameters, allow_unused=True, create_graph=create_graph)
            weight += share
            for i, gradient in enumerate(gradients):
                before = means[i]
                if gradient is None or before is None:
                    means[i] = before if gradient is None else gradient
                else:  # Welford's variance, which cannot fall below 0
                    mean = before + (gradient - before) * (share / weight)
                    variances[i] = variances[i] + share * ((gradient - before) * (gradient - mean)).detach()
                    means[i] = mean
            loss = loss + share * of_part.detach()
        for p, found, variance in zip(parameters, means, variances, strict=True):
            if found is not None:
                scaled = found * self._factor(found.detach(), variance)
                p.grad = scaled if p.grad is None else p.grad + scaled
        return loss

    def _parts(self, batches: Sequence[Batch]) -> list[tuple[float, Batch]]:
        """Return the parts, each with its share in the mean."""
        if self.by_domain:
            return [(1 / len(batches), batch) for batch in batches]
        inputs, targets = pooled(batches)
        count = min(self.parts, len(targets))
        parts = [(inputs[k::count], targets[k::count]) for k in range(count)]
        return [(len(part[1]) / len(targets), part) for part in parts]

    def _factor(self, mean: Tensor, variance: Tensor) -> Tensor:
        square = mean * mean
        floor = (square / _LARGEST_RATIO).clamp_min(torch.finfo(mean.dtype).tiny)
        ratio = square / torch.maximum(variance, floor)
        return (ratio / ratio.mean().clamp_min(torch.finfo(mean.dtype).tiny)).clamp(self.gamma, 1)


ALGORITHMS.register("vrgd", VRGD)
