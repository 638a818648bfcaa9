"""What the differences of a table tell, in one plain sentence per method."""

from __future__ import annotations

import math

from scipy import special

from shiftproof.tables.statistics import SIGNIFICANCE
from shiftproof.tables.table import MethodRow, Table

POWER = 0.8
"""How often as many trials as are named would tell the difference."""
MOST_TRIALS = 1000


def verdicts(table: Table) -> list[str]:
    """Say of every method whether it is told apart from the baseline, and how many trials would tell a point.

    Better is greater or less, as the measure has it. A method is told apart if its p-value, corrected for the number
    of methods, is below 5 %. Bounds are those of the 95 % interval, which is not corrected; the number of trials is
    that which would pass the strictest correction.
    """
    baseline = next(row for row in table.rows if row.method == table.baseline)
    return [_verdict(table, row, baseline) for row in table.rows if row.method != table.baseline]


def trials_to_tell(difference: float, spread: float, compared: int = 1) -> int | None:
    r"""Return how many trials a paired t-test needs to tell a difference at the 5 % level in 80 % of studies.

    Args:
        difference: the true difference, above 0.
        spread: standard deviation of the difference between trials.
        compared: number of differences that are tested together, by which the level is divided (Bonferroni).

    Returns:
        None for more than `MOST_TRIALS`. The power is that of the t-test's usual approximation,
        :math:`(t_{1-\alpha/2} + t_{1-\beta})^2 s^2 / \delta^2 \le n` (Cohen, "Statistical Power Analysis", 1988).
    """
    for n in range(2, MOST_TRIALS + 1):
        quantiles = special.stdtrit(n - 1, 1 - SIGNIFICANCE / compared / 2) + special.stdtrit(n - 1, POWER)
        if quantiles * spread <= difference * math.sqrt(n):
            return n
    return None


def _verdict(table: Table, row: MethodRow, baseline: MethodRow) -> str:
    difference, pair = row.mean.difference, f"{row.method} and {table.baseline}"
    if difference is None or baseline.mean.score is None:
        return f"{pair}: not compared yet; no trial of both is complete."
    if difference.low is None or difference.high is None or row.mean.spread is None:
        same = "the same in every trial" if row.mean.trials > 1 else "compared in one trial, which tells nothing"
        return f"{pair} are {same}."
    unit = table.unit
    step = 0.01 if unit.percent else 0.01 * abs(baseline.mean.score.mean)
    needed = trials_to_tell(step, row.mean.spread, max(table.compared, 1))
    trials = f"more than {MOST_TRIALS:,}" if needed is None else f"about {needed}"
    small = "1 point" if unit.percent else f"1 % of {table.baseline}'s {unit.metric}"
    more = f"{trials} trials would tell a difference of {small}"
    gain = unit.sign * difference.mean
    low, high = sorted(unit.sign * bound for bound in (difference.low, difference.high))
    if row.adjusted_p is not None and row.adjusted_p < SIGNIFICANCE:
        side = "better" if gain > 0 else "worse"
        least, most = sorted((abs(low), abs(high)))
        return (
            f"{pair} are told apart: the first is {unit.text(abs(gain))} {unit.step} {side}, between "
            f"{unit.text(least)} and {unit.text(most)}; {more}."
        )
    corrected = " once corrected for several comparisons" if low > 0 or high < 0 else ""
    return (
        f"{pair} are not told apart{corrected}: the first is at most {unit.text(max(high, 0.0))} {unit.step} better "
        f"and {unit.text(max(-low, 0.0))} worse; {more}."
    )
