"""What a table tells, in a sentence or two, and in one plain sentence per method."""

from __future__ import annotations

import math

from scipy import special

from shiftproof.tables.marks import marks
from shiftproof.tables.statistics import DECIMALS, SIGNIFICANCE
from shiftproof.tables.table import MethodRow, Table

POWER = 0.8
"""How often as many trials as are named would tell the difference."""
MOST_TRIALS = 1000


MOST_NAMES = 4
"""Most methods that a finding names; of more it gives the number."""


def finding(table: Table) -> str:
    """Say which method has the best mean, and how many methods are told apart from the baseline.

    A method is told apart as in `verdicts`; the best from every other as in `marks`, if the correction of `verdicts`
    does not deny that of the baseline.
    """
    unit, rows = table.unit, table.rows
    means = [row.mean for row in rows]
    scored = [row for row in rows if row.mean.score]
    finished = [row for row in scored if row.mean.trials == row.mean.planned] or scored
    if not finished:
        return "No method has a score on every unseen domain yet."
    best = max(finished, key=lambda row: unit.sign * row.mean.score.mean if row.mean.score else 0)
    assert best.mean.score is not None  # noqa: S101  (it is scored)
    error = "" if best.mean.score.error is None else f" ± {unit.text(best.mean.score.error)}"
    score = f"{unit.text(best.mean.score.mean)}{error}{' %' if unit.percent else ''}"
    if len(rows) == 1:
        return f"{best.method}: {unit.metric} {score} on average over unseen domains."
    corrected = [best] if best.method != table.baseline else [row for row in scored if row is not best]
    apart = any(marks(means, unit)) and all(map(_is_told_apart, corrected))
    alone = ", told apart from every other" if apart else ""
    first = f"{best.method} has the {'highest' if unit.sign > 0 else 'lowest'} mean {unit.metric}, {score}{alone}."
    return f"{first} {_told_apart(table)}"


def _told_apart(table: Table) -> str:
    if table.compared == 0:
        one = all(row.mean.planned == 1 for row in table.rows)
        return "One trial does not tell methods apart." if one else "No difference has an interval yet."
    told = [row for row in table.rows if _is_told_apart(row)]
    if not told:
        return f"These trials tell no method apart from {table.baseline}."
    gains = {row.method: table.unit.sign * row.mean.difference.mean for row in told if row.mean.difference}
    sides = {
        "better": [str(method) for method, gain in gains.items() if gain > 0],
        "worse": [str(method) for method, gain in gains.items() if gain <= 0],
    }
    parts = [
        f"{', '.join(names) if len(names) <= MOST_NAMES else len(names)} ({side})"
        for side, names in sides.items()
        if names
    ]
    rest = len(table.rows) - 1 - len(told)
    others = f"; {rest} other{' is' if rest == 1 else 's are'} not" if rest else ""
    return f"Told apart from {table.baseline}: {', '.join(parts)}{others}."


def _is_told_apart(row: MethodRow) -> bool:
    return row.adjusted_p is not None and row.adjusted_p < SIGNIFICANCE


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

    Examples:
        >>> trials_to_tell(0.01, spread=0.01), trials_to_tell(0.01, spread=0.02)
        (10, 34)
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
    unit = table.unit
    if row.mean.spread is None or difference.low is None or difference.high is None:
        if row.mean.spread is None:  # of one trial of both
            return f"{pair} are compared in one trial, which tells nothing."
        if round(difference.mean, DECIMALS) == 0:
            return f"{pair} are the same in every trial."
        side = "better" if unit.sign * difference.mean > 0 else "worse"
        return (
            f"{pair} differ by as much in every trial, the first {unit.text(abs(difference.mean))} {unit.step} {side}: "
            "without a spread there is no interval."
        )
    step = 0.01 if unit.percent else 0.01 * abs(baseline.mean.score.mean)
    needed = trials_to_tell(step, row.mean.spread, max(table.compared, 1))
    trials = f"more than {MOST_TRIALS:,}" if needed is None else f"about {needed}"
    small = "1 point" if unit.percent else f"1 % of {table.baseline}'s {unit.metric}"
    more = f"{trials} trials would tell a difference of {small}"
    gain = unit.sign * difference.mean
    low, high = sorted(unit.sign * bound for bound in (difference.low, difference.high))
    if _is_told_apart(row):
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
