"""The SAND-mask (Shahtalebi et al., 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from shiftproof.algorithms.algorithm import ALGORITHMS
from shiftproof.algorithms.gradient_mask import GradientMask
from shiftproof.base.hparams import Hparam, log10_uniform, option, uniform
from shiftproof.models import Network


class SANDMask(GradientMask):
    r"""SAND-mask, a smoothed AND-mask (Shahtalebi et al., arXiv 2106.02266).

    .. math:: g = m \odot \frac{1}{E} \sum_e g_e, \quad m_j = \max\left(0, \tanh\left( \frac{k}{\sigma_j^2} \left(
        \left| \frac{1}{E} \sum_e \operatorname{sign}(g_e)_j \right| - \tau \right) \right) \right)

    with :math:`g_e` the gradients of the domains' losses and :math:`\sigma^2` their variance (divided by E - 1): a
    weight moves the more, the more domains agree on the sign and the closer their gradients are. With ``rescale``, the
    gradient of every parameter tensor is divided by the mean of its mask, as in DomainBed. With one source domain
    nothing varies, and this is ERM.

    At :math:`\tau = 1`, which is DomainBed's default, the mask is 0 even where all domains agree, so that nothing is
    learned; it is refused here, and the default is the mean of DomainBed's distribution.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        tau: :math:`\tau`, in [0, 1).
        k: :math:`k`, above 0; a large one leaves only 0 and 1.
        rescale: whether to divide by the mask's mean.

    Raises:
        ValueError: an argument is out of its range.
    """

    reads_variances: ClassVar[bool] = True
    hparams: ClassVar[Mapping[str, Hparam]] = {
        "tau": Hparam(0.5, uniform(0.0, 1.0)),
        "k": Hparam(10.0, log10_uniform(-3, 5)),
        "rescale": option(False, True, ("domainbed-head",)),
    }

    def __init__(
        self, network: Network, num_domains: int, *, tau: float = 0.5, k: float = 10.0, rescale: bool = False
    ) -> None:
        super().__init__(network, num_domains, rescale)
        if not 0 <= tau < 1:
            raise ValueError(f"Invalid tau value: {tau}; it must be in [0, 1): at 1 nothing is learned")
        if not 0 < k < math.inf:
            raise ValueError(f"Invalid k value: {k}; it must be above 0")
        self.tau, self.k = tau, k

    def mask(self, agreement: Tensor, variance: Tensor) -> Tensor:
        """Return the factors of one parameter's gradient."""
        excess = (agreement - self.tau).clamp_min(0)  # tanh keeps the sign
        return torch.tanh(self.k * excess / variance.clamp_min(torch.finfo(variance.dtype).tiny))


ALGORITHMS.register("sand_mask", SANDMask)
