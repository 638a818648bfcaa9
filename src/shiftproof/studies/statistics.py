"""Standard errors and paired differences over trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import t as student_t


class Estimate(NamedTuple):
    """A mean over trials and its standard error, None with one trial."""

    mean: float
    error: float | None


class Difference(NamedTuple):
    """A mean paired difference and its confidence interval, None with one trial."""

    mean: float
    low: float | None
    high: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean and standard error (n - 1) of independent values, at least one."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Estimate(mean, None)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Estimate(mean, math.sqrt(variance / len(values)))


def paired_difference(values: Sequence[float], baseline: Sequence[float], confidence: float = 0.95) -> Difference:
    """Return the mean of values minus baseline, pair by pair, with Student's t interval.

    Args:
        values: one per trial.
        baseline: of the same trials, in the same order.
        confidence: coverage of the interval.
    """
    mean, error = estimate([a - b for a, b in zip(values, baseline, strict=True)])
    if error is None:
        return Difference(mean, None, None)
    half = float(student_t.ppf((1 + confidence) / 2, len(values) - 1)) * error
    return Difference(mean, mean - half, mean + half)
