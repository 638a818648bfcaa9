"""Statistics of a GENIE step: how strongly it preconditioned, where noise acted and how much the mask kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shiftproof.base.sharding import sum_over_shards
from shiftproof.optim.genie.eager import arithmetic_dtype
from shiftproof.optim.genie.rule import Options, Row, Terms, row_terms, spread_sums
from shiftproof.optim.stream import draw_masks

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_BINS = 2048


@dataclass(frozen=True)
class GroupStatistics:
    """Statistics of a group's last step.

    Attributes:
        factor_mean: mean of the preconditioner's factor, in [0, 1]: near 0 the step uses little of the mean gradient,
            near 1 it is plain momentum.
        factor_quantiles: quantiles of the factor by probability, to a resolution of 1 / 2048.
        noisy_fraction: share of the elements on which noise acts; at 0 the noise has no effect.
        noise_to_update: r.m.s. noise over r.m.s. update on these elements; None if there are none.
        kept_fraction: share of the elements that the mask kept.
        update_magnitude: mean absolute change of a parameter, in its own units, noise excluded.
    """

    factor_mean: float
    factor_quantiles: dict[float, float]
    noisy_fraction: float
    noise_to_update: float | None
    kept_fraction: float
    update_magnitude: float


def group_statistics(rows: Sequence[Row], options: Options) -> GroupStatistics | None:
    """Recompute a step from the moving averages that it left, tensor by tensor, and return its statistics.

    Args:
        rows: parameters that took a step; their gradients are not read.
        options: options of the step.

    Returns:
        The statistics, or None if other processes hold all elements of the rows.
    """
    histogram = torch.zeros(_BINS, dtype=torch.float64, device="cpu")
    elements = factors = noisy = kept = noise_square = update_square = moved = 0.0
    for row in rows:
        dtype = arithmetic_dtype(row.exp_avg.dtype)
        m, v = row.exp_avg.to(dtype), row.exp_avg_sq.to(dtype)
        terms = row_terms(row, options, m, v)
        update = terms.mean * terms.factor if options.precondition else terms.mean
        deviation = options.noise * _spread(row, terms) * (1 - terms.certainty)
        acted = (terms.certainty < 1) & bool(options.noise)
        mask = torch.ones_like(m, dtype=torch.bool)
        if options.threshold:
            [mask] = draw_masks([row.place], options.seed, row.step, options.threshold, m.device)
        elements += m.numel()
        factors += _sum(terms.factor)
        for part in torch.split(terms.factor.float().flatten(), 2**23):  # histc counts in float32
            histogram += torch.histc(part, _BINS, 0, 1).double().cpu()
        noisy += _sum(acted)
        kept += _sum(mask)
        noise_square += _sum(deviation[acted].square())
        update_square += _sum(update[acted].square())
        moved += _sum((update * mask).abs()) / options.kept_share * float(options.lr)
    if not elements:
        return None
    return GroupStatistics(
        factors / elements,
        _quantiles(histogram) if math.isfinite(factors) else dict.fromkeys(QUANTILES, math.nan),
        noisy / elements,
        math.sqrt(noise_square / update_square) if update_square else None,
        kept / elements,
        moved / elements,
    )


def _spread(row: Row, terms: Terms) -> Tensor:
    """Return the standard deviation of the noise before certainty scales it down, per element or for the tensor."""
    if terms.spread is not None:
        return terms.spread
    num, den = sum_over_shards(spread_sums(terms)[None], [row.shard])[0]
    spread: Tensor = num / den
    return spread.to(terms.mean.dtype)


def _sum(values: Tensor) -> float:
    return float(values.sum(dtype=torch.float64))


def _quantiles(histogram: Tensor) -> dict[float, float]:
    """Return quantiles of values in [0, 1], each as the middle of its bin."""
    cumulative = histogram.cumsum(0) / histogram.sum()
    return {q: (int((cumulative < q).sum()) + 0.5) / _BINS for q in QUANTILES}
