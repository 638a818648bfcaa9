"""The AND-mask (Parascandolo et al., 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from shiftproof.algorithms.algorithm import ALGORITHMS
from shiftproof.algorithms.gradient_mask import GradientMask
from shiftproof.base.hparams import REFERENCE_DIALECTS, Hparam, uniform
from shiftproof.models import Network


class ANDMask(GradientMask):
    r"""AND-mask (Parascandolo et al., "Learning explanations that are hard to vary", ICLR 2021, section 3.3).

    .. math:: g = m \odot \frac{1}{E} \sum_e g_e, \quad
        m_j = \left[\, \left|\sum_e \operatorname{sign}(g_e)_j\right| \ge \tau E \,\right]

    with :math:`g_e` the gradients of the domains' losses: a weight moves only if enough domains agree on the sign. With
    ``rescale``, the gradient of every parameter tensor is divided by the share of its elements that the mask keeps, as
    in the released code and in DomainBed's. With one source domain this is ERM.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        tau: :math:`\tau`, in [0, 1]; at 1 all domains must agree.
        rescale: whether to divide by the kept share.

    Raises:
        ValueError: an argument is out of its range.
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {
        "tau": Hparam(1.0, uniform(0.5, 1.0)),
        "rescale": Hparam(False, in_dialects=dict.fromkeys(REFERENCE_DIALECTS, True)),
    }

    def __init__(self, network: Network, num_domains: int, *, tau: float = 1.0, rescale: bool = False) -> None:
        super().__init__(network, num_domains, rescale)
        if not 0 <= tau <= 1:
            raise ValueError(f"Invalid tau value: {tau}; it must be in [0, 1]")
        self.tau = tau

    def mask(self, agreement: Tensor, variance: Tensor) -> Tensor:
        """Return 1 where enough domains agree on the sign, and 0 elsewhere."""
        return agreement >= self.tau


ALGORITHMS.register("and_mask", ANDMask)
