"""Mean and variance of per-sample gradients, within and between domains, and their signal-to-noise ratio (GSNR)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from shiftproof.base.drawing import COLUMN, STYLE, line_style
from shiftproof.gradients import Loss, PerSampleGradients

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batches = Iterable[tuple[Tensor, Tensor]]
"""Batches of one domain: inputs (n, ...) and targets (n, ...), of any size."""

Quantity = Literal["mean", "within", "between", "mean_error", "mean_square", "gsnr", "noise"]

_CONFIDENT = 1.96  # standard errors: 95 % of a normal distribution


@dataclass(frozen=True)
class GradientMoments:
    r"""Moments of the gradient of one sample, for every element of every parameter.

    There are :math:`K` domains. The :math:`N_k` samples of domain :math:`k` have the mean gradient :math:`\bar g_k` and
    the unbiased variance :math:`s_k^2`. All tensors are float64, by name of the parameter and in its shape.

    Attributes:
        counts: the numbers of samples :math:`N_k`.
        mean: :math:`\bar g = \frac1K \sum_k \bar g_k`, an estimate of the expected gradient :math:`\mu` of a batch
            stratified by domain.
        within: :math:`s^2 = \frac1K \sum_k s_k^2`, the mean variance within a domain.
        between: the variance between the domains' true means: the variance of the :math:`\bar g_k` (with
            :math:`K - 1`) minus the part due to sampling, :math:`\frac1K \sum_k s_k^2 / N_k`. It is unbiased, so it may
            be negative; NaN for one domain.
        mean_error: variance of `mean` as an estimate for these domains, :math:`\frac1{K^2} \sum_k s_k^2 / N_k`.
    """

    counts: tuple[int, ...]
    mean: dict[str, Tensor]
    within: dict[str, Tensor]
    between: dict[str, Tensor]
    mean_error: dict[str, Tensor]

    @property
    def mean_square(self) -> dict[str, Tensor]:
        r"""Unbiased estimate of :math:`\mu^2`: :math:`\bar g^2` minus `mean_error`; may be negative."""
        return {name: mean.square() - self.mean_error[name] for name, mean in self.mean.items()}

    @property
    def gsnr(self) -> dict[str, Tensor]:
        r"""The gradient signal-to-noise ratio :math:`r = \mu^2 / s^2` (Liu et al., ICLR 2020, arXiv 2001.07384).

        It is `mean_square` divided by `within`; NaN where no sample has a gradient.
        """
        return {name: square / self.within[name] for name, square in self.mean_square.items()}

    @property
    def noise(self) -> dict[str, Tensor]:
        """Whether the mean is within 1.96 standard errors of zero, so that its GSNR may be noise; bool."""
        return {name: mean.abs() < _CONFIDENT * self.mean_error[name].sqrt() for name, mean in self.mean.items()}

    def flat(self, quantity: Quantity) -> Tensor:
        """Return a quantity for all elements of all parameters, flattened in order."""
        by_name: dict[str, Tensor] = getattr(self, quantity)
        return torch.cat([values.flatten() for values in by_name.values()])

    def plot(self) -> Figure:
        """Draw the distribution of the GSNR over the elements, marking those that may be noise; needs matplotlib.

        Elements whose corrected GSNR is not above zero have no logarithm; the legend gives their share.
        """
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        gsnr, noise = self.flat("gsnr"), self.flat("noise")
        drawn = (gsnr > 0) & gsnr.isfinite()
        parts = ((drawn & ~noise, "distinguishable from zero"), (drawn & noise, "may be noise"))
        hidden = int((gsnr <= 0).sum()) / gsnr.numel()
        edges = torch.histogram(gsnr[drawn].log10().cpu(), 60).bin_edges.tolist() if drawn.any() else 60
        with rc_context(STYLE):
            figure = Figure(figsize=(COLUMN, 0.75 * COLUMN), layout="constrained")
            figure.suptitle("GSNR of the gradient's elements")
            axes = figure.add_subplot()
            axes.hist(
                [gsnr[part].log10().cpu().numpy() for part, _ in parts],
                bins=edges,
                stacked=True,
                color=[line_style(0).color, line_style(4).color],
                label=[f"{name} ({float(part.double().mean()):.1%})" for part, name in parts],
            )
            axes.plot([], [], " ", label=f"not above zero, not drawn ({hidden:.1%})")
            axes.set_xlabel("GSNR of an element, power of ten")
            axes.set_ylabel("elements")
            figure.legend(loc="outside upper left")
        return figure


class _RunningMoments:
    """Running mean and sum of squared deviations, merged from parts.

    Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.deviations = torch.zeros((), device="cpu")

    def add_sums(self, count: int, sums: Tensor, squares: Tensor) -> None:
        """Merge ``count`` values, given their sum and sum of squares; overwrites both tensors."""
        mean = sums.div_(count)
        self.add(count, mean, squares.addcmul_(mean, mean, value=-count).clamp_(min=0))  # rounding may give less

    def add(self, count: int, mean: Tensor, deviations: Tensor) -> None:
        """Merge ``count`` values, given their mean and sum of squared deviations; keeps or overwrites both tensors."""
        if self.count == 0:
            self.count, self.mean, self.deviations = count, mean, deviations
            return
        total = self.count + count
        difference = mean.sub_(self.mean)
        self.deviations += deviations.addcmul_(difference, difference, value=self.count * count / total)
        self.mean.add_(difference, alpha=count / total)
        self.count = total


def gradient_moments(
    model: nn.Module, domains: Sequence[Batches], loss: Loss, *, chunk_size: int = 64
) -> GradientMoments:
    """Return the moments of per-sample gradients over the samples of some domains.

    The model is in evaluation mode meanwhile and is restored afterwards (see `PerSampleGradients`). Memory holds about
    ten float64 copies of the weights and a chunk of samples. Sums over a chunk are in float32, or in float64 for a
    float64 model; all other sums are in float64.

    Args:
        model: maps inputs (n, ...) to outputs (n, ...).
        domains: the batches of each domain, each read once. To pool domains, pass them as one.
        loss: mean loss of a batch, such as ``F.cross_entropy``.
        chunk_size: number of samples to evaluate at once, at least 1; larger batches are split.

    Raises:
        ValueError: there is no domain, one has fewer than two samples, ``chunk_size`` is below 1, or no parameter
            requires a gradient.

    Examples:
        >>> import torch
        >>> from shiftproof.diagnostics import gradient_moments
        >>> model = torch.nn.Linear(2, 1)
        >>> domains = [[(torch.randn(8, 2), torch.randn(8, 1))] for _ in range(2)]
        >>> moments = gradient_moments(model, domains, torch.nn.functional.mse_loss)
        >>> moments.counts, tuple(moments.mean["weight"].shape)
        ((8, 8), (1, 2))
    """
    if chunk_size < 1:
        raise ValueError(f"Invalid chunk_size value: {chunk_size}; it must be at least 1")
    if not domains:
        raise ValueError("there is no domain to measure gradients on")
    per_sample = PerSampleGradients(model, loss)
    counts: list[int] = []
    means = _RunningMoments()
    variances = errors = torch.zeros((), dtype=torch.float64, device="cpu")
    for index, batches in enumerate(domains):
        moments = _RunningMoments()
        for inputs, targets in batches:
            for x, y in zip(torch.split(inputs, chunk_size), torch.split(targets, chunk_size), strict=True):
                chunk = per_sample(x, y)
                moments.add_sums(len(x), _flat(chunk.sums), _flat(chunk.squares))
        if moments.count < 2:
            raise ValueError(f"domain {index} has {moments.count} samples: a variance needs at least two")
        counts.append(moments.count)
        variance = moments.deviations.div_(moments.count - 1)
        errors = errors + variance / moments.count
        variances = variances + variance
        means.add(1, moments.mean, torch.zeros_like(moments.mean))

    def by_name(values: Tensor) -> dict[str, Tensor]:
        parts = torch.split(values, [part.numel() for part in chunk.sums.values()])
        return {name: part.view_as(chunk.sums[name]) for name, part in zip(chunk.sums, parts, strict=True)}

    number = len(counts)
    spread = means.deviations / (number - 1)  # NaN (0 / 0) for one domain
    return GradientMoments(
        tuple(counts),
        by_name(means.mean),
        by_name(variances / number),
        by_name(spread - errors / number),
        by_name(errors / number**2),
    )


def _flat(by_name: dict[str, Tensor]) -> Tensor:
    return torch.cat([values.flatten() for values in by_name.values()]).double()
