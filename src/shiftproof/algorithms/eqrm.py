"""Quantile risk minimization (Eastwood et al., 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import ClassVar

import torch
from torch import Tensor
from torch.special import ndtr

from shiftproof.algorithms.algorithm import ALGORITHMS
from shiftproof.algorithms.domain_loss import losses_by_domain, passed
from shiftproof.algorithms.two_phases import TwoPhases
from shiftproof.base.batch import Batch
from shiftproof.base.hparams import Hparam, log10_int, log10_uniform, option, uniform
from shiftproof.models import Network

_HALVINGS = 32


class EQRM(TwoPhases):
    r"""Empirical quantile risk minimization (Eastwood et al., NeurIPS 2022, arXiv 2207.09944, algorithm 1).

    .. math:: L = \hat F^{-1}(\alpha), \quad \hat F(r) = \frac{1}{E} \sum_e \Phi\left(\frac{r - R_e}{h}\right),
        \quad h = 1.06 \, s \, E^{-1/5}

    is the quantile of a kernel density estimate of the domains' risks :math:`R_e`, with the Gaussian distribution
    function :math:`\Phi` and the Gauss-optimal bandwidth, :math:`s` being the standard deviation of the risks (divided
    by E - 1). The first ``anneal_steps`` steps minimise the mean of the risks; then the optimizer starts anew, with a
    learning rate of its own. With one source domain this is ERM.

    The gradient is that of the quantile, by the implicit function theorem. DomainBed differentiates a bisection, whose
    gradient reaches only the lowest and the highest risk and the bandwidth, as does ``bisected`` here. Its searches
    draw a number of steps that is not whole, so that they never start the optimizer anew, as with ``keeps_optimizer``.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        quantile: :math:`\alpha`, in (0, 1).
        anneal_steps: number of steps before the quantile is minimised, at least 0.
        lr_ratio: the learning rate from then on, divided by the run's; above 0.
        bisected: whether the gradient is that of a bisection between the lowest and the highest risk.
        keeps_optimizer: whether the optimizer goes on instead of starting anew, at the run's learning rate.
        separate_passes: whether every domain passes through the network on its own, as in DomainBed, so that batch
            norms that are not frozen see one domain at a time.

    Raises:
        ValueError: an argument is out of its range.
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {
        "quantile": Hparam(0.75, uniform(0.5, 0.99), seed_name="eqrm_quantile"),
        "anneal_steps": Hparam(2500, log10_int(2.5, 3.5), seed_name="eqrm_burnin_iters"),
        "lr_ratio": Hparam(
            0.02, log10_uniform(math.log10(0.002), math.log10(0.2)), seed_name="eqrm_lr", relative_to="optimizer.lr"
        ),
        "bisected": option(False, True, ("domainbed-head",)),
        "keeps_optimizer": Hparam(False, later=True),
        "separate_passes": option(False, True),
    }
    hparams_on: ClassVar[Mapping[str, Mapping[str, Hparam]]] = {
        "small_images": {
            "lr_ratio": Hparam(0.001, log10_uniform(-4, -2), seed_name="eqrm_lr", relative_to="optimizer.lr"),
        },
    }
    short_hparams: ClassVar[Mapping[str, Hparam]] = {
        "anneal_steps": Hparam(150, log10_int(1.28, 2.28), seed_name="eqrm_burnin_iters"),
    }

    def __init__(
        self,
        network: Network,
        num_domains: int,
        quantile: float = 0.75,
        anneal_steps: int = 2500,
        lr_ratio: float = 0.02,
        bisected: bool = False,
        keeps_optimizer: bool = False,
        separate_passes: bool = False,
    ) -> None:
        super().__init__(network, num_domains, anneal_steps, lr_ratio)
        if not 0 < quantile < 1:
            raise ValueError(f"Invalid quantile value: {quantile}; it must be above 0 and below 1")
        self.quantile, self.bisected, self.separate_passes = quantile, bisected, separate_passes
        self.renews = not keeps_optimizer

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the mean of the domains' risks in the first phase, and then their quantile."""
        logits = passed(self.network, self.predict, batches, self.separate_passes)
        risks = losses_by_domain(logits, batches, self.network.loss)
        if self.beginning or len(batches) == 1:
            return risks.mean()
        return kernel_quantile(risks, self.quantile, self.bisected)


def kernel_quantile(risks: Tensor, quantile: float, bisected: bool = False) -> Tensor:
    """Return a quantile of a Gaussian kernel density estimate of at least two risks.

    Equal risks have a density without width, whose quantiles are all equal to them.

    Args:
        risks: the risks (n,).
        quantile: in (0, 1).
        bisected: whether the gradient is that of a bisection: of the lowest and the highest risk and the bandwidth.
    """
    lowest = risks.detach().min()
    above = risks - lowest  # which keeps the digits of risks that are nearly equal
    rounding = torch.finfo(risks.dtype).eps * (1 + lowest)
    width: Tensor = 1.06 * len(risks) ** -0.2 * above.var().clamp_min(rounding.square()).sqrt()
    shift = width * NormalDist().inv_cdf(quantile)
    low, high = above.min() + shift, above.max() + shift
    with torch.no_grad():
        left, right = low.clone(), high.clone()
        for _ in range(_HALVINGS):
            middle = (left + right) / 2
            beyond = ndtr((middle - above) / width).mean() > quantile
            left, right = torch.where(beyond, left, middle), torch.where(beyond, middle, right)
        point = (left + right) / 2
    if bisected:
        share = ((point - low) / (high - low).clamp_min(rounding)).detach()
        return lowest + low + share * (high - low)
    for _ in range(2):  # a step of Newton's method has the first derivative of the root, and two have the second
        distances = (point - above) / width
        density = (-distances.square() / 2).exp().mean() / (width * math.sqrt(2 * math.pi))
        point = point - (ndtr(distances).mean() - quantile) / density
    return lowest + point


ALGORITHMS.register("eqrm", EQRM)
