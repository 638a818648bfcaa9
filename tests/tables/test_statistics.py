import itertools
import math

import numpy as np
import pytest
from scipy import stats

from shiftproof.tables.statistics import average_ranks, estimate, holm, indistinguishable, paired_difference, sign_count

DEMSARS_Q = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}  # table 5a


def test_standard_error_has_n_minus_1():
    """DomainBed's formula gives 0.47 for these; the error with n - 1 is 0.58 points."""
    result = estimate([0.86, 0.87, 0.85])
    assert result.mean == pytest.approx(0.86)
    assert 100 * result.error == pytest.approx(0.577, abs=1e-3)
    assert result.error == pytest.approx(stats.sem([0.86, 0.87, 0.85]))


def test_one_trial_has_no_error():
    assert estimate([0.5]) == (0.5, None)
    assert paired_difference([0.5], [0.25]) == (0.25, None, None, None)


def test_paired_interval_and_p_are_scipys():
    random = np.random.RandomState(0)
    a, b = random.rand(6), random.rand(6)
    result = paired_difference(a, b)
    test = stats.ttest_rel(a, b)
    interval = test.confidence_interval(0.95)
    assert result == pytest.approx((np.mean(a - b), interval.low, interval.high, test.pvalue))


def test_differences_that_are_all_equal_are_certain():
    assert paired_difference([0.75, 0.5, 1.0], [0.5, 0.25, 0.75]) == (0.25, None, None, None)
    assert paired_difference([0.3, 0.4], [0.2, 0.3]) == (pytest.approx(0.1), None, None, None)  # equal but for rounding
    assert paired_difference([0.7, 0.6], [0.7, 0.6]) == (0, None, None, None)


def test_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.RandomState(1)
    intervals = [paired_difference(random.randn(3) + 1, np.zeros(3)) for _ in range(2000)]
    covered = np.mean([low < 1 < high for _, low, high, _ in intervals])
    assert covered == pytest.approx(0.95, abs=0.02)


def test_pairs_must_match():
    with pytest.raises(ValueError, match="zip"):
        paired_difference([0.5, 0.6], [0.5])


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_the_closed_test_of_bonferroni(seed):
    """A hypothesis is rejected if every intersection that it is part of is."""
    p_values = np.random.RandomState(seed).beta(0.4, 2, size=6)
    subsets = [subset for size in range(1, 7) for subset in itertools.combinations(range(6), size)]
    expected = [
        max(min(1, len(subset) * min(p_values[j] for j in subset)) for subset in subsets if i in subset)
        for i in range(6)
    ]
    assert holm(p_values) == pytest.approx(expected)


def test_holm_passes_over_what_was_not_tested():
    assert holm([0.04, None, 0.01, 0.5, None]) == pytest.approx([0.08, None, 0.03, 0.5, None])
    assert holm([None]) == [None]
    assert holm([]) == []


def test_sign_test_is_the_binomial_sum():
    values = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
    baseline = [0.8, 0.7, 0.6, 0.5, 0.4, 0.5, 0.3, 0.2]
    tail = sum(math.comb(6, losses) for losses in (0, 1)) / 2**6
    assert sign_count(values, baseline) == (5, 1, 2, pytest.approx(2 * tail))
    assert sign_count(baseline, values) == (1, 5, 2, pytest.approx(2 * tail))


def test_sign_test_needs_a_cell_that_is_not_tied():
    assert sign_count([0.5, 0.6], [0.5, 0.6]) == (0, 0, 2, None)
    assert sign_count([], []) == (0, 0, 0, None)


def test_rounding_breaks_no_tie():
    assert 0.1 + 0.2 != 0.3
    assert sign_count([0.1 + 0.2], [0.3]) == (0, 0, 1, None)
    assert average_ranks([[0.1 + 0.2], [0.3]]).ranks == [1.5, 1.5]


def test_cells_must_match():
    with pytest.raises(ValueError, match="zip"):
        sign_count([0.5, 0.6], [0.5])
    with pytest.raises(ValueError, match="shape"):
        average_ranks([[0.5, 0.6], [0.5]])


def test_ranks_count_the_better_and_half_of_the_equal():
    scores = np.random.RandomState(0).randint(4, size=(5, 8)) / 10
    expected = [
        np.mean([1 + sum(cell > cell[method]) + (sum(cell == cell[method]) - 1) / 2 for cell in scores.T])
        for method in range(5)
    ]
    result = average_ranks(scores.tolist())
    assert result.ranks == pytest.approx(expected)
    assert result.cells == 8


@pytest.mark.parametrize("values", [3, 1000], ids=["with ties", "without ties"])
@pytest.mark.parametrize("methods", [3, 4, 12])
def test_friedman_is_scipys(methods, values):
    scores = np.random.RandomState(methods).randint(values, size=(methods, 7)) / values
    assert average_ranks(scores).friedman_p == pytest.approx(stats.friedmanchisquare(*scores).pvalue)


def test_friedman_of_two_methods_is_mcnemars():
    """Of 9 cells, 6 won, 1 lost and 2 tied: chi-square is (6 - 1)^2 / (6 + 1)."""
    scores = [[1, 1, 1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 0, 0]]
    assert average_ranks(scores).friedman_p == pytest.approx(math.erfc(math.sqrt(25 / 7 / 2)))


@pytest.mark.parametrize("methods", DEMSARS_Q)
def test_critical_difference_has_demsars_q(methods):
    scores = np.random.RandomState(0).rand(methods, 14)
    q = average_ranks(scores).critical_difference / math.sqrt(methods * (methods + 1) / (6 * 14))
    assert q == pytest.approx(DEMSARS_Q[methods], abs=1e-3)  # his for 3 is cut off, not rounded


def test_ranks_without_a_test():
    assert average_ranks([[0.5, 0.6]]) == ([1.0], 2, None, None)
    assert average_ranks([[0.5], [0.6]]) == ([2.0, 1.0], 1, None, None)
    tied = average_ranks([[0.5, 0.6], [0.5, 0.6], [0.5, 0.6]])
    assert tied == ([2.0, 2.0, 2.0], 2, None, pytest.approx(2.343, abs=1e-3))
    for empty in ([], [[]]):
        with pytest.raises(ValueError, match="at least one method and one cell"):
            average_ranks(empty)


@pytest.mark.parametrize("difference", [0.3, 1.0, 2.5, 20.0])
def test_groups_are_the_largest(difference):
    ranks = 1 + 9 * np.random.RandomState(3).rand(10)
    ordered = np.sort(ranks)
    alike = [(i, j) for i, j in itertools.combinations(range(10), 2) if ordered[j] - ordered[i] < difference]
    largest = [(i, j) for i, j in alike if not {(i - 1, j), (i, j + 1)} & set(alike)]
    assert indistinguishable(ranks, difference) == largest


def test_groups_have_two_methods_or_more():
    assert indistinguishable([3.0, 1.0, 2.0], 1.0) == []
    assert indistinguishable([3.0, 1.0, 2.0, 2.0], 1.0) == [(1, 2)]
    assert indistinguishable([3.0, 1.0, 2.0], 1.5) == [(0, 1), (1, 2)]
