"""The interval of a ratio of means, against its definition, by simulation, and where there is none."""

import math

import pytest
import torch
from scipy import stats

from shiftproof.diagnostics.ratio import FEWEST_PAIRS, _student_quantile, ratio_of_means


def _pairs(n, mean, noise, generator):
    """Correlated normal pairs with means 0.8 * mean and mean."""
    shared, own = torch.randn(2, n, dtype=torch.float64, generator=generator)
    return 0.8 * mean + noise * (0.6 * shared + 0.8 * own), mean + noise * shared


@pytest.mark.parametrize(("n", "noise"), [(6, 0.3), (20, 1.0), (20, 6.0), (200, 0.1)])
def test_the_interval_covers_the_ratio_as_often_as_it_says(n, noise):
    generator = torch.Generator().manual_seed(n)
    trials = 2000
    ratios = [ratio_of_means(*_pairs(n, 1.0, noise, generator)) for _ in range(trials)]
    covered = sum(low <= 0.8 <= high for _, low, high in ratios) / trials
    unbounded = sum(math.isinf(low) for _, low, _ in ratios) / trials
    error = math.sqrt(0.05 * 0.95 / trials)
    if noise == 6:  # the denominator's mean is 0.75 standard errors from 0
        assert unbounded > 0.8
        assert covered >= 0.95 - 3 * error
    else:
        assert unbounded < 0.05
        assert abs(covered - 0.95) < 3 * error


def test_bounds_are_where_students_test_begins_to_reject():
    numerators, denominators = _pairs(12, 1.0, 0.5, torch.Generator().manual_seed(0))
    value, low, high = ratio_of_means(numerators, denominators)
    assert value == pytest.approx(float(numerators.mean() / denominators.mean()), rel=1e-14)
    for bound in (low, high):
        p = stats.ttest_1samp((numerators - bound * denominators).numpy(), 0).pvalue
        assert p == pytest.approx(0.05, rel=2e-3)
    assert low < value < high


def test_bounds_do_not_depend_on_units():
    numerators, denominators = _pairs(30, 1.0, 0.5, torch.Generator().manual_seed(1))
    here = ratio_of_means(numerators, denominators)
    there = ratio_of_means(numerators * 1e-12, denominators * 1e-9)
    assert there == pytest.approx([1e-3 * bound for bound in here], rel=1e-9)
    assert ratio_of_means(-numerators, -denominators) == pytest.approx(here, rel=1e-12)


def test_pairs_that_hardly_differ_have_bounds_that_do_not_cancel():
    denominators = 1 + 1e-10 * torch.arange(10.0, dtype=torch.float64)
    value, low, high = ratio_of_means(denominators * 0.5 + 1e-12 * (-1.0) ** torch.arange(10), denominators)
    half = 2.262157 * 1e-12 * math.sqrt(10 / 9) / math.sqrt(10)
    assert (high - value, value - low) == pytest.approx((half, half), rel=1e-2)


@pytest.mark.parametrize("freedom", [4, 5, 7, 10, 30, 1000])
def test_students_quantile(freedom):
    assert _student_quantile(freedom) == pytest.approx(float(stats.t.ppf(0.975, freedom)), rel=1e-3)


def test_where_there_is_no_ratio_or_no_bound():
    nothing = torch.zeros(8)
    assert all(map(math.isnan, ratio_of_means(torch.ones(8), nothing)))
    assert all(map(math.isnan, ratio_of_means(torch.full((8,), math.nan), torch.ones(8))))
    few = torch.arange(1.0, FEWEST_PAIRS)
    assert ratio_of_means(few, 2 * few) == (0.5, -math.inf, math.inf)
    more = torch.arange(1.0, FEWEST_PAIRS + 1)
    assert ratio_of_means(more, 2 * more) == pytest.approx((0.5, 0.5, 0.5))
    for numerators, denominators in ((torch.ones(0), torch.ones(0)), (torch.ones(3), torch.ones(2))):
        with pytest.raises(ValueError, match="a ratio needs pairs"):
            ratio_of_means(numerators, denominators)
