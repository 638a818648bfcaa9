import numpy as np
import pytest
from scipy import stats

from shiftproof.studies.statistics import estimate, paired_difference


def test_standard_error_has_n_minus_1():
    """DomainBed's formula gives 0.47 for these; the error with n - 1 is 0.58 points."""
    result = estimate([0.86, 0.87, 0.85])
    assert result.mean == pytest.approx(0.86)
    assert 100 * result.error == pytest.approx(0.577, abs=1e-3)
    assert result.error == pytest.approx(stats.sem([0.86, 0.87, 0.85]))


def test_one_trial_has_no_error():
    assert estimate([0.5]) == (0.5, None)
    assert paired_difference([0.5], [0.25]) == (0.25, None, None)


def test_paired_interval_is_scipys():
    random = np.random.RandomState(0)
    a, b = random.rand(6), random.rand(6)
    result = paired_difference(a, b)
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert result == pytest.approx((np.mean(a - b), expected.low, expected.high))


def test_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.RandomState(1)
    intervals = [paired_difference(random.randn(3) + 1, np.zeros(3)) for _ in range(2000)]
    covered = np.mean([low < 1 < high for _, low, high in intervals])
    assert covered == pytest.approx(0.95, abs=0.02)


def test_pairs_must_match():
    with pytest.raises(ValueError, match="zip"):
        paired_difference([0.5, 0.6], [0.5])
