"""How evenly updates are spread, against closed forms and brute force, and what the figures show."""

import math

import numpy as np
import pytest
import torch

from shiftproof.diagnostics.balance import (
    BALANCE_HEADER,
    FAINTEST,
    Balance,
    BalanceHistory,
    UpdateBalance,
    balance,
    balance_curves,
    balance_rows,
    heat_map,
)


def _brute_force(update: np.ndarray) -> Balance:
    """The definitions as written, all pairs and all logarithms; the top share from the interpolated Lorenz curve."""
    u = np.abs(update.astype(np.float64))
    n, p = len(u), u / u.sum()
    gini = np.abs(u[:, None] - u[None, :]).sum() / (2 * n * u.sum())
    entropy = -sum(share * math.log(share) for share in p if share > 0) / math.log(n)
    lorenz = np.concatenate([[0.0], np.cumsum(np.sort(p))])
    return Balance(gini, entropy, 1 - np.interp(0.99 * n, np.arange(n + 1), lorenz), u.max())


@pytest.mark.parametrize("n", [2, 7, 100, 250, 1999])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_equal_brute_force(n, dtype):
    update = np.random.default_rng(n).standard_normal(n).astype(dtype) ** 3
    update[: n // 3] = 0
    update.flat[-1] = 2.0
    assert balance(np.abs(update)) == pytest.approx(_brute_force(update), rel=1e-11, abs=1e-12)


@pytest.mark.parametrize("n", [2, 99, 100, 12_345, 3_000_000])  # the last takes several blocks
def test_equal_updates_are_in_balance(n):
    found = balance(np.full(n, 3e-7, dtype=np.float32))
    assert found == pytest.approx((0, 1, 0.01, 3e-7), rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("n", [100, 1000, 2_500_000])
def test_one_element_that_takes_all(n):
    update = np.zeros(n)
    update[n // 2] = 5.0
    assert balance(update) == pytest.approx((1 - 1 / n, 0, 1, 5.0), abs=1e-12)


@pytest.mark.parametrize("n", [100, 5000, 1_200_000])
def test_a_linear_ramp(n):
    found = balance(np.arange(n, 0, -1, dtype=np.float64))
    top = n // 100
    assert found.gini == pytest.approx((n - 1) / (3 * n), rel=1e-10)
    assert found.top_share == pytest.approx(top * (2 * n - top + 1) / (n * (n + 1)), rel=1e-10)


def test_normally_distributed_updates():
    update = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    found = UpdateBalance({"w": update}).numbers([update])
    assert found.gini == pytest.approx(math.sqrt(2) - 1, abs=1e-3)  # of a half-normal distribution
    # the density at the 99.5 % quantile over that at 0 is the share of the sum beyond it
    quantile = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(0.995)).item()
    assert found.top_share == pytest.approx(math.exp(-(quantile**2) / 2), abs=2e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e4])
def test_the_scale_of_an_update_does_not_matter(scale):
    update = np.random.default_rng(0).random(777)
    assert balance(scale * update)[:3] == pytest.approx(balance(update)[:3], rel=1e-12)


def test_an_update_that_says_nothing_is_nan():
    assert all(math.isnan(number) for number in balance(np.zeros(10))[:3])
    for value in (np.nan, np.inf):
        assert all(math.isnan(number) for number in balance(np.array([1.0, value, 2.0]))[:3])


def test_negative_bfloat16_and_channels_last_updates():
    random = torch.Generator().manual_seed(3)
    update = [
        torch.randn(4, 3, 5, 5, generator=random).contiguous(memory_format=torch.channels_last),
        -torch.rand(7, generator=random).bfloat16(),
    ]
    measured = UpdateBalance({"a": update[0], "b": update[1]})
    flat = torch.cat([part.contiguous().flatten().float() for part in update])
    before = [part.clone() for part in update]
    assert measured.numbers(update) == pytest.approx(_brute_force(flat.numpy()), rel=1e-10)
    torch.testing.assert_close(measured.sampled(update), flat.abs(), rtol=0, atol=0)  # all elements, for they are few
    assert all(torch.equal(part, old) for part, old in zip(update, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_the_magnitude_of_a_complex_update_is_its_absolute_value(dtype):
    update = [torch.tensor([3 + 4j, 0.5j], dtype=dtype), torch.tensor([-1.0], dtype=dtype.to_real())]
    measured = UpdateBalance({"a": update[0], "b": update[1]})
    assert measured.numbers(update) == pytest.approx(_brute_force(np.array([5, 0.5, 1])), rel=1e-7)
    assert measured.sampled(update).tolist() == [5, 0.5, 1]


def test_elements_are_sampled_evenly_over_all_parameters():
    sizes = {"first": 30_000, "tiny": 3, "second": 60_000, "bias": 10}
    parameters = {name: torch.zeros(size) for name, size in sizes.items()}
    measured = UpdateBalance(parameters, sample=1000)
    flat = torch.arange(1.0, 90_014.0)
    update = [-part for part in flat.split(list(sizes.values()))]
    found = measured.sampled(update)
    torch.testing.assert_close(found, measured.positions.float() + 1, rtol=0, atol=0)
    gaps = measured.positions.diff()
    assert set(gaps.tolist()) <= {90, 91}
    assert abs(int(measured.positions[0]) - (90_012 - int(measured.positions[-1]))) <= 1  # centred
    assert measured.layers == {"first": 0, "second": 333}  # the others are too small to be met
    assert found[333] > 30_003 >= found[332]


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="at least two, not 4096 of 1"):
        UpdateBalance({"w": torch.zeros(1)})
    with pytest.raises(ValueError, match="at least two, not 1 of 5"):
        UpdateBalance({"w": torch.zeros(5)}, sample=1)
    with pytest.raises(ValueError, match="at least two, not 4096 of 0"):
        UpdateBalance({})
    measured = UpdateBalance({"w": torch.zeros(2, 3)})
    for method in (measured.numbers, measured.sampled):
        with pytest.raises(ValueError, match=r"the shapes \[\(3, 2\)\]"):
            method([torch.zeros(3, 2)])


def _history(steps, update_of_step):
    parameters = {"weight": torch.zeros(40, 10), "bias": torch.zeros(100)}
    measured = UpdateBalance(parameters, sample=50)
    updates = [list(update_of_step(step).split([400, 100])) for step in steps]
    updates = [[w.view(40, 10), b] for w, b in updates]
    return BalanceHistory(
        steps, [measured.numbers(u) for u in updates], [measured.sampled(u) for u in updates], measured.layers
    )


def _histories():
    ramp = torch.arange(500.0) / 499
    return {
        "equal": _history([1, 10, 40], lambda step: torch.full((500,), float(step))),
        "ramp": _history([1, 10, 40], lambda step: ramp if step > 1 else torch.zeros(500)),
    }


def test_the_heat_map_shows_magnitudes_relative_to_the_largest_of_their_step():
    pytest.importorskip("matplotlib")
    histories = _histories()
    figure = heat_map(histories)
    equal, ramp = (axes.images[0].get_array() for axes in figure.axes[:2])
    np.testing.assert_array_equal(equal, np.ones((50, 3)))
    assert np.ma.getmaskarray(ramp)[:, 0].all()  # no update, no colour
    positions = UpdateBalance({"w": torch.zeros(500)}, sample=50).positions.numpy()
    np.testing.assert_allclose(ramp[:, 1], np.maximum(positions / 499, FAINTEST), rtol=1e-6)
    assert (ramp[:, 1] == ramp[:, 2]).all()
    norms = [axes.images[0].norm for axes in figure.axes[:2]]
    assert [(norm.vmin, norm.vmax) for norm in norms] == [(FAINTEST, 1.0)] * 2
    assert "Gini 0.00\nentropy 1.00\ntop 1 % hold 1.0 %" in figure.axes[0].get_xlabel()
    assert f"Gini {499 / 1500 * 500 / 499:.2f}" in figure.axes[1].get_xlabel()
    boundaries = [line.get_ydata()[0] for line in figure.axes[0].lines]
    assert boundaries == [0, 40]  # of 50, as 400 of 500 elements are the weight's


def test_unevenly_spaced_steps_are_drawn_where_they_are():
    pytest.importorskip("matplotlib")
    image = heat_map(_histories()).axes[0].images[0]
    assert image.get_extent()[:2] == [-3.5, 55.0]
    np.testing.assert_array_equal(image._Ax, [-3.5, 5.5, 25.0, 55.0])


def test_curves_and_rows_hold_the_numbers_of_every_step():
    pytest.importorskip("matplotlib")
    histories = _histories()
    lines = [axes.lines for axes in balance_curves(histories).axes]
    for panel, field in zip(lines, ("gini", "entropy", "top_share"), strict=True):
        for line, history in zip(panel, histories.values(), strict=True):
            assert line.get_xdata().tolist() == [1, 10, 40]
            np.testing.assert_array_equal(line.get_ydata(), [getattr(n, field) for n in history.numbers])
    rows = balance_rows(histories)
    assert [len(row) for row in rows] == [len(BALANCE_HEADER)] * 6
    assert rows[2] == ("equal", 40, *histories["equal"].numbers[2])


def test_the_mean_is_over_the_steps_that_have_an_update():
    history = _histories()["ramp"]
    assert history.mean()[:3] == pytest.approx(history.numbers[1][:3])
    assert history.mean().largest == pytest.approx(2 / 3)  # an update of zero is one of largest magnitude zero
    assert math.isnan(_history([3], lambda step: torch.zeros(500)).mean().gini)


def test_figures_of_nothing_are_refused():
    empty = BalanceHistory([], [], [], {})
    for draw in (heat_map, balance_curves):
        with pytest.raises(ValueError, match="no optimizer"):
            draw({})
        with pytest.raises(ValueError, match="no step of SGD"):
            draw({"SGD": empty})
