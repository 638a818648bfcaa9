"""Statistics of a comparison: errors and paired differences over trials, tests and ranks over cells of a table."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

DECIMALS = 12  # accuracies that differ by less differ only by rounding, and count as tied
SIGNIFICANCE = 0.05  # level of the critical difference


class Estimate(NamedTuple):
    """A mean over trials and its standard error, which is None with one trial."""

    mean: float
    error: float | None


class Difference(NamedTuple):
    """A mean paired difference; its confidence interval and p-value are None with one trial or equal differences."""

    mean: float
    low: float | None
    high: float | None
    p: float | None


class SignCount(NamedTuple):
    """How many cells one method wins against another, and the sign test's p-value, None if all cells are tied."""

    wins: int
    losses: int
    ties: int
    p: float | None


class AverageRanks(NamedTuple):
    """Methods ranked over the cells of a table.

    Attributes:
        ranks: the mean rank of each method, 1 the best.
        cells: number of cells that the mean is over.
        friedman_p: p-value of the hypothesis that all methods are equally good; None with one method or cell, or
            if all are tied.
        critical_difference: mean ranks at least this far apart differ at the 5 % level; None with one method or cell.
    """

    ranks: list[float]
    cells: int
    friedman_p: float | None
    critical_difference: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean and standard error (n - 1) of one or more independent values.

    Examples:
        >>> from shiftproof.tables import estimate
        >>> estimate([0.5, 0.75])
        Estimate(mean=0.625, error=0.125)
        >>> estimate([0.5])  # one trial has no error
        Estimate(mean=0.5, error=None)
    """
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Estimate(mean, None)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Estimate(mean, math.sqrt(variance / len(values)))


def paired_difference(values: Sequence[float], baseline: Sequence[float], confidence: float = 0.95) -> Difference:
    """Return the mean of values minus baseline, pair by pair, with Student's t interval and two-sided paired t-test.

    Differences that are all equal get no interval and no p-value: they do not show how far differences spread, and
    with few trials on small sets of images they are a coincidence, not certainty.

    Args:
        values: one per trial.
        baseline: the baseline's values for the same trials, in the same order.
        confidence: coverage of the interval.

    Examples:
        >>> difference = paired_difference([0.72, 0.75, 0.71], [0.70, 0.71, 0.70])
        >>> round(difference.mean, 4), round(difference.low, 4), round(difference.high, 4)
        (0.0233, -0.0146, 0.0613)
    """
    mean, error = estimate([a - b for a, b in zip(values, baseline, strict=True)])
    if error is None or round(error, DECIMALS) == 0:
        return Difference(mean, None, None, None)
    freedom = len(values) - 1
    # Student's t without the checks of scipy.stats, which take most of a table's time
    half = float(special.stdtrit(freedom, (1 + confidence) / 2)) * error
    p = 2 * float(special.stdtr(freedom, -abs(mean) / error))
    return Difference(mean, mean - half, mean + half, p)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return the p-values adjusted for their number, so that they bound the chance of any false discovery.

    A None stays None and is not counted. Holm, "A simple sequentially rejective multiple test procedure",
    Scandinavian Journal of Statistics 1979.

    Examples:
        >>> holm([0.01, 0.04, None])
        [0.02, 0.04, None]
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    least = 0.0
    for step, (p, index) in enumerate(known):
        least = max(least, min(1.0, (len(known) - step) * p))
        adjusted[index] = least
    return adjusted


def sign_count(values: Sequence[float], baseline: Sequence[float]) -> SignCount:
    """Count the cells above and below the baseline, with the exact two-sided sign test, which drops ties.

    Args:
        values: one per cell.
        baseline: the baseline's values for the same cells, in the same order.

    Examples:
        >>> sign_count([0.7, 0.8, 0.9], [0.6, 0.8, 0.7])
        SignCount(wins=2, losses=0, ties=1, p=0.5)
    """
    from scipy import stats  # here and below, because importing it would cost every training process a second

    gains = [round(a - b, DECIMALS) for a, b in zip(values, baseline, strict=True)]
    wins, losses = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    p = float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else None
    return SignCount(wins, losses, len(gains) - wins - losses, p)


def average_ranks(scores: Sequence[Sequence[float]]) -> AverageRanks:
    """Rank methods in every cell and average, with Friedman's test and Nemenyi's critical difference.

    Demsar, "Statistical comparisons of classifiers over multiple data sets", JMLR 2006.

    Args:
        scores: by method, then by cell; higher is better, and ties share their mean rank.

    Raises:
        ValueError: there is no cell, or methods differ in their number of cells.

    Examples:
        >>> average_ranks([[0.9, 0.8], [0.7, 0.6]]).ranks
        [1.0, 2.0]
    """
    from scipy import stats

    table = np.round(np.array(scores, dtype=float), DECIMALS)
    if table.ndim != 2 or table.size == 0:
        raise ValueError("ranks need at least one method and one cell")
    ranks = stats.rankdata(-table, axis=0)
    methods, cells = ranks.shape
    testable = methods > 1 and cells > 1
    return AverageRanks(
        ranks.mean(axis=1).tolist(),
        cells,
        _friedman_p(ranks) if testable else None,
        _critical_difference(methods, cells) if testable else None,
    )


def indistinguishable(ranks: Sequence[float], critical_difference: float) -> list[tuple[int, int]]:
    """Return the largest groups of two or more methods whose mean ranks differ by less than the critical difference.

    Returns:
        The positions of the first and last method of each group, in order of ascending ranks.

    Examples:
        >>> from shiftproof.tables import indistinguishable
        >>> indistinguishable([1.0, 1.5, 3.0], critical_difference=1.0)
        [(0, 1)]
    """
    ordered = sorted(ranks)
    groups: list[tuple[int, int]] = []
    for first, rank in enumerate(ordered):
        last = bisect_left(ordered, rank + critical_difference) - 1
        if last > max(first, groups[-1][1] if groups else 0):
            groups.append((first, last))
    return groups


def _friedman_p(ranks: np.ndarray) -> float | None:
    """Return the p-value of the chi-square test on mean ranks, corrected for ties by the ranks' actual variance."""
    from scipy import stats

    methods, cells = ranks.shape
    deviations = ranks - (methods + 1) / 2
    if not deviations.any():
        return None
    variance = (deviations**2).sum() / (cells * (methods - 1))
    statistic = cells * (deviations.mean(axis=1) ** 2).sum() / variance
    return float(stats.chi2.sf(statistic, methods - 1))


def _critical_difference(methods: int, cells: int) -> float:
    """Return Nemenyi's critical difference, from the studentized range with infinite degrees of freedom."""
    from scipy import stats

    q = float(stats.studentized_range.ppf(1 - SIGNIFICANCE, methods, np.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * cells))
