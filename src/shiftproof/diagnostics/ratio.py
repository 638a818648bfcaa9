"""The ratio of two means, with its confidence interval."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

FEWEST_PAIRS = 5
"""Fewer pairs say too little about their spread, so they give a ratio without bounds."""
_NORMAL = 1.959963984540054  # the normal distribution's 97.5 % quantile


class Ratio(NamedTuple):
    """A ratio of means and its 95 % interval.

    Attributes:
        value: the ratio; nan if the denominators sum to 0 or a number is not finite.
        low: lower bound; -inf if the interval is not bounded.
        high: upper bound; inf if the interval is not bounded.
    """

    value: float
    low: float
    high: float


def ratio_of_means(numerators: Tensor, denominators: Tensor) -> Ratio:
    r"""Return mean(numerators) / mean(denominators) with Fieller's interval.

    The interval holds all :math:`x` for which Student's t-test does not reject :math:`E[a - x b] = 0`. Unlike the delta
    method's interval, it is exact for normal pairs, however close to 0 the mean denominator is. If the mean denominator
    does not differ from 0 at the 5 % level, the bounds are infinite, because large ratios cannot be excluded. (Fieller,
    "Some Problems in Interval Estimation", Journal of the Royal Statistical Society B, 1954.)

    Args:
        numerators: a of each pair, (n,).
        denominators: b of each pair, (n,). Pairs are assumed independent.

    Raises:
        ValueError: there are no pairs, or the shapes differ.

    Examples:
        >>> import torch
        >>> from shiftproof.diagnostics import ratio_of_means
        >>> ratio = ratio_of_means(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), torch.tensor([2.0, 4.1, 5.9, 8.0, 10.0]))
        >>> round(ratio.value, 2), ratio.low < ratio.value < ratio.high
        (0.5, True)
    """
    if numerators.dim() != 1 or numerators.shape != denominators.shape or not len(numerators):
        raise ValueError(f"a ratio needs pairs, not {tuple(numerators.shape)} over {tuple(denominators.shape)}")
    a, b = numerators.detach().double(), denominators.detach().double()
    n, mean = len(b), float(b.mean())
    value = float(a.mean()) / mean if mean else math.nan
    if not math.isfinite(value):
        return Ratio(math.nan, math.nan, math.nan)
    if n < FEWEST_PAIRS:
        return Ratio(value, -math.inf, math.inf)
    # With x = value + d, the test's limit is quadratic in d; the residuals a - value b have mean 0, so nothing cancels
    residuals, deviations = a - value * b, b - mean
    scale = _student_quantile(n - 1) ** 2 / (n * (n - 1))
    spread = scale * float(residuals @ residuals)
    shared = scale * float(residuals @ deviations)
    leading = mean**2 - scale * float(deviations @ deviations)
    if leading <= 0:
        return Ratio(value, -math.inf, math.inf)
    root = math.sqrt(shared**2 + leading * spread)
    return Ratio(value, value + (-shared - root) / leading, value + (-shared + root) / leading)


def _student_quantile(freedom: int) -> float:
    """Return Student's 97.5 % quantile for 4 degrees of freedom or more, to 0.1 % (Abramowitz and Stegun, 26.7.5)."""
    z = _NORMAL  # by hand: scipy has it, but what measures in training needs torch and numpy only
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))
