"""Bold is what the paired intervals of scipy tell apart from every other."""

import numpy as np
import pytest
from scipy import stats

from shiftproof.protocol import Unit
from shiftproof.tables import estimate, marks
from shiftproof.tables.table import Cell


def _cell(*scores, planned=None):
    """A cell with these scores by trial; None stands for a trial that has none."""
    known = {trial: score for trial, score in enumerate(scores) if score is not None}
    mean = estimate(list(known.values())) if known else None
    return Cell(mean, mean, None, len(known), planned or len(scores), False, scores=known)


APART = [_cell(0.50, 0.52, 0.51), _cell(0.70, 0.71, 0.73), _cell(0.60, 0.60, 0.62)]


@pytest.mark.parametrize(
    ("cells", "marked"),
    [
        (APART, [False, True, False]),
        ([*APART, _cell(0.90, 0.50, 0.60)], [False, False, False, False]),  # whose interval holds 0
        ([_cell(0.5), _cell(0.7)], [False, False]),  # one trial has no interval
        ([_cell(0.5, 0.5), _cell(0.7, 0.7)], [False, False]),  # nor have differences that are all equal
        ([*APART, _cell(0.9, None, None)], [False, False, False, False]),  # better in the only trial that it has
        ([*APART, _cell(0.10, 0.12, None)], [False, True, False, False]),
        ([*APART, _cell(None, None, None)], [False, True, False, False]),
        ([APART[0]], [False]),
        ([_cell(None, None), _cell(None, None)], [False, False]),
    ],
)
def test_the_best_is_marked_where_its_interval_excludes_zero(cells, marked):
    assert marks(cells, Unit()) == marked


def test_of_an_error_the_lowest_is_the_best():
    assert marks(APART, Unit.of("rmse")) == [True, False, False]


def test_marks_agree_with_the_paired_intervals_of_scipy():
    draws = np.random.default_rng(0).normal(0.7, 0.01, (200, 3, 5)) + np.array([0.0, 0.01, 0.02])[:, None]
    marked = 0
    for values in draws:
        best, *others = sorted(values, key=np.mean, reverse=True)
        lows = [stats.ttest_rel(best, other).confidence_interval().low for other in others]
        found = marks([_cell(*row) for row in values], Unit())
        assert found == [min(lows) > 0 and i == values.mean(axis=1).argmax() for i in range(3)]
        marked += any(found)
    assert 20 < marked < 180  # both happen
