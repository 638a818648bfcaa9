"""SWAD, in both forms, against its definition on lists of all weights; the other averages in closed form."""

import numpy as np
import pytest
import torch
from scipy.stats import beta

from shiftproof.training.averaging import BMA, EMA, PATIENCE, SMA, SWAD, TOLERANCE, ReleasedSWAD, WiSEFT, build_average

CASES = {
    "never converges": [5.0, 4.0, 3.0, 2.0, 1.0, 0.5],
    "too short to converge": [1.0, 2.0],
    "converges at once and never dies": [1.0, 1.1, 1.2, 1.0, 1.1, 1.2, 1.0, 1.1, 1.2],
    "converges and dies": [3.0, 2.0, 1.0, 1.1, 1.2, 2.0, 2.1, 2.2, 2.3, 2.4, 2.5, 2.6, 2.7],
    "revives before it dies": [3.0, 1.0, 1.1, 1.2, 2.0, 2.1, 2.2, 2.3, 2.4, 1.2, 2.5, 2.6, 2.7, 2.8],
    "ends above the threshold": [3.0, 1.0, 1.1, 1.2, 1.0, 2.1, 2.2, 2.3],
    "ends within, after a rise": [3.0, 1.0, 1.1, 1.2, 2.0, 2.1, 1.3],
    "plateau": [1.0] * 9,
    "plateau after a fall": [2.0, 1.0, 1.0, 1.0, 1.0],
    "ties converge": [2.0, 1.0, 1.5, 1.0],
    "infinite at first": [np.inf, np.inf, np.inf, 2.0, 3.0, 4.0],
    "dies at the first chance": [1.0, 1.0, 1.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 1.0],
}


def _weights(count):
    random = np.random.default_rng(0)
    return 3 + random.standard_normal((count, 4))


def _reference(weights, steps, losses, ratio=1.3, converge=3, patience=6):
    """Return mean, first and last step, and where training stops, from all weights and losses.

    Args:
        weights: after every update.
        steps: numbers (from 1) of the updates that an evaluation follows.
        losses: validation losses of the evaluations.
        ratio: r.
        converge: N_s.
        patience: N_e.
    """
    windows = (losses[i : i + converge] for i in range(len(losses) - converge + 1))
    start = next((i for i, w in enumerate(windows) if w[0] == min(w) and np.isfinite(sum(w))), None)
    if start is None:
        return None, None, None, steps[-1]
    threshold = ratio * np.mean(losses[start : start + converge])
    stop = next(
        (
            i
            for i in range(start + patience - 1, len(losses))
            if all(loss > threshold for loss in losses[i - patience + 1 : i + 1])
        ),
        None,
    )
    if stop is None:
        end = max(i for i, loss in enumerate(losses) if loss <= threshold)
        stopped = steps[-1]
    else:
        end, stopped = stop - patience, steps[stop]
    first = 1 + (steps[start - 1] if start else 0)
    return weights[first - 1 : steps[end]].mean(axis=0), first, steps[end], stopped


def _feed(swad, weights, steps, losses, after=lambda swad: swad):
    """Give SWAD what a run would; return it, and the step where training stops."""
    for step, weight in enumerate(weights, start=1):
        state = {"w": torch.tensor(weight, dtype=torch.float32), "n": torch.tensor(step)}
        swad.update(state, step)
        if step in steps:
            swad.evaluated(losses[steps.index(step)])
        swad = after(swad)
        if swad.dead:
            return swad, step
    return swad, len(weights)


def _assert_is_the_definition(swad, stopped, weights, steps, losses):
    mean, first, last, expected_stop = _reference(weights, steps, losses)
    average = swad.finish()
    assert stopped == expected_stop
    if mean is None:
        assert average is None
        return
    assert (average.first, average.last) == (first, last)
    np.testing.assert_allclose(average.average["w"], mean, rtol=2e-6)
    assert average.average["n"] == last


@pytest.mark.parametrize("freq", [1, 4])
@pytest.mark.parametrize("losses", CASES.values(), ids=CASES)
def test_swad_is_its_definition(losses, freq):
    steps = [1 + freq * i for i in range(len(losses))]  # counted from zero, so the first segment is one update
    weights = _weights(steps[-1])
    swad, stopped = _feed(SWAD(TOLERANCE), weights, steps, losses)
    _assert_is_the_definition(swad, stopped, weights, steps, losses)


def test_the_cases_are_what_they_are_called():
    def outcome(name):
        losses = CASES[name]
        _, first, last, stopped = _reference(_weights(len(losses)), list(range(1, 1 + len(losses))), losses)
        return first, last, stopped

    assert outcome("never converges") == (None, None, 6)
    assert outcome("converges and dies") == (3, 5, 11)
    assert outcome("revives before it dies") == (2, 10, 14)
    assert outcome("ends above the threshold") == (2, 5, 8)
    assert outcome("ends within, after a rise") == (2, 7, 7)
    assert outcome("plateau") == (1, 9, 9)
    assert outcome("infinite at first") == (4, 5, 6)
    assert outcome("dies at the first chance") == (1, 3, 9)


def test_swad_is_its_definition_on_random_curves_with_bounded_memory_and_when_killed():
    random = np.random.default_rng(1)
    outcomes = []

    def reload(swad):
        content = swad.state_dict()
        assert len(content["pending"]) <= PATIENCE
        fresh = SWAD(TOLERANCE)
        fresh.load_state_dict(content, {"w": torch.zeros(4), "n": torch.tensor(0)})
        return fresh

    for _ in range(100):
        evaluations = random.integers(3, 25)
        steps = np.cumsum(random.integers(1, 4, evaluations)).tolist()
        losses = np.exp(
            random.normal(0, 0.3, evaluations) + np.linspace(0, random.uniform(-1, 1), evaluations)
        ).tolist()
        weights = _weights(steps[-1])
        swad, stopped = _feed(SWAD(TOLERANCE), weights, steps, losses, after=reload)
        outcomes.append((stopped < steps[-1], _reference(weights, steps, losses)[0] is None))
        _assert_is_the_definition(swad, stopped, weights, steps, losses)
    assert {(True, False), (False, False), (False, True)} == set(outcomes)


def _counted(losses, ratio=1.3):
    """Return the segments that the released code counts, each as often as it does, and whether the valley is dead.

    Segment i is that of evaluation i; the window after it holds the segments from ``max(0, i - 5)`` on.
    """
    converged = next((i for i in range(2, len(losses)) if losses[i - 2] == min(losses[i - 2 : i + 1])), None)
    if converged is None:
        return None, False
    threshold, lowest = ratio * np.mean(losses[converged - 2 : converged + 1]), converged - 2
    first = max(0, converged - 5)
    above = [i for i in range(first, min(first + 4, converged + 1)) if losses[i] > threshold]
    counted = list(range(above[-1] + 2 if above else first + 1, min(first + 4, converged + 1)))
    for i in range(converged + 1, len(losses)):
        first = max(0, i - 5)
        if first >= lowest and min(losses[first : i + 1]) > threshold:
            return counted, True
        counted += [first] if first >= lowest else []
    low = [i for i, loss in enumerate(losses) if loss <= threshold]
    return counted + list(range(max(0, len(losses) - 6) + 1, low[-1] + 1)), False


def test_the_released_code_counts_these_segments():
    assert _counted([3, 2, 1, 2, 3, 4, 5, 6, 7, 8]) == ([2, 3, 2, 3], True)  # of another transcription of the code
    assert _counted([1.0, 1.0, 1.0]) == ([1, 2, 1, 2], False)  # a window that is not full
    assert _counted([1.0, 1.0, 1.0, 1.0, 1.0]) == ([1, 2, 0, 0, 1, 2, 3, 4], False)
    assert _counted([3.0, 2.0, 1.0]) == (None, False)


@pytest.mark.parametrize("losses", [one for one in CASES.values() if np.isfinite(one).all()])
@pytest.mark.parametrize("reload", [False, True])
def test_released_swad_counts_what_the_code_counts_and_stops_where_swad_does(losses, reload):
    steps = [1 + 4 * i for i in range(len(losses))]
    weights = _weights(steps[-1])

    def saved(swad):
        if not reload:
            return swad
        fresh, content = ReleasedSWAD(TOLERANCE), swad.state_dict()
        assert len(content["pending"]) <= PATIENCE
        fresh.load_state_dict(content, {"w": torch.zeros(4), "n": torch.tensor(0)})
        return fresh

    swad, stopped = _feed(ReleasedSWAD(TOLERANCE), weights, steps, losses, after=saved)
    assert stopped == _feed(SWAD(TOLERANCE), weights, steps, losses)[1]
    segments = [weights[first:last].mean(axis=0) for first, last in zip([0, *steps], steps, strict=False)]
    counted, dead = _counted(losses)
    assert swad.dead == dead
    counted = counted or [steps.index(stopped)]  # the last segment of a loss that never converged
    average = swad.finish()
    np.testing.assert_allclose(average.average["w"], np.mean([segments[i] for i in counted], axis=0), rtol=2e-6)
    assert (average.first, average.last) == (([0, *steps])[counted[0]] + 1, steps[counted[-1]])


def test_the_simple_moving_average_is_the_mean_from_its_first_update_on():
    weights = _weights(400)
    sma = SMA({"w": torch.tensor(weights[0]), "n": torch.tensor(0)}, steps=400)
    for step, weight in enumerate(weights, start=1):
        sma.update({"w": torch.tensor(weight), "n": torch.tensor(step)}, step)
        if step <= 8:  # a fiftieth of the steps, as 100 of 5,000
            assert sma.average["w"].tolist() == weight.tolist()
        else:
            np.testing.assert_allclose(sma.average["w"], weights[7:step].mean(axis=0), rtol=1e-12)
        sma, content = SMA({"w": torch.zeros(4)}, steps=400), sma.state_dict()
        sma.load_state_dict(content, {"w": torch.zeros(4), "n": torch.tensor(0)})
    assert sma.average["n"] == 400


@pytest.mark.parametrize(("steps", "first"), [(5000, 100), (300, 6), (75, 2), (12, 1)])
def test_the_first_update_of_the_simple_moving_average_is_a_share_of_the_steps(steps, first):
    sma = SMA({"w": torch.zeros(1)}, steps)
    assert [sma.share(step) for step in (first, first + 1, first + 2)] == [1, 1 / 2, 1 / 3]


@pytest.mark.parametrize("steps", [1, 2, 40])
def test_the_beta_moving_average_is_the_sum_of_all_weights_by_the_density(steps):
    weights = _weights(steps + 1)  # with those before the first update
    bma = BMA({"w": torch.tensor(weights[0]), "n": torch.tensor(0)}, steps)
    densities = beta(0.5, 0.5).pdf((np.arange(steps + 1) + 0.5) / (steps + 1))
    for step in range(1, steps + 1):
        bma.update({"w": torch.tensor(weights[step]), "n": torch.tensor(step)}, step)
        so_far = densities[: step + 1]
        np.testing.assert_allclose(bma.average["w"], so_far @ weights[: step + 1] / so_far.sum(), rtol=1e-12)
        bma, content = BMA({"w": torch.zeros(4)}, steps), bma.state_dict()
        bma.load_state_dict(content, {"w": torch.zeros(4), "n": torch.tensor(0)})
    assert bma.average["n"] == steps
    assert densities[0] == pytest.approx(densities[-1])


def test_wise_ft_is_on_the_line_from_the_first_to_the_last_weights():
    start, end = (
        {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(0)},
        {"w": torch.tensor([3.0, -2.0]), "n": torch.tensor(9)},
    )
    wise = WiSEFT(start)
    start["w"] += 1
    assert wise.between(end, 0.0)["w"].tolist() == [1, 2]
    assert wise.between(end, 0.25)["w"].tolist() == [1.5, 1]
    assert wise.between(end, 1.0)["w"].tolist() == [3, -2]
    assert wise.between(end, 0.25)["n"] == 9
    assert end["w"].tolist() == [3, -2]


def test_averages_do_not_alias_the_weights():
    weight = torch.ones(2)
    swad, ema = SWAD(TOLERANCE), EMA({"w": weight})
    swad.update({"w": weight}, 1)
    weight.zero_()
    assert swad.state_dict()["running"]["average"]["w"].tolist() == [1, 1]
    assert ema.average["w"].tolist() == [1, 1]


def test_the_moving_average_is_the_weighted_sum_of_all_weights():
    weights, start = _weights(9100), np.array([7.0, -7.0, 0.0, 1.0])
    ema = EMA({"w": torch.tensor(start), "n": torch.tensor(0)})
    for step, weight in enumerate(weights, start=1):
        ema.update({"w": torch.tensor(weight), "n": torch.tensor(step)}, step)
    decays = np.array([min(0.999, (1 + t) / (10 + t)) for t in range(1, 9101)])
    assert (decays[:3] == [2 / 11, 3 / 12, 4 / 13]).all()
    assert decays[8988] < decays[8989] == 0.999
    shares = (1 - decays) * np.append(np.cumprod(decays[::-1])[::-1][1:], 1)
    expected = start * decays.prod() + shares @ weights
    np.testing.assert_allclose(ema.average["w"], expected, rtol=1e-10)
    assert ema.average["n"] == 9100


def test_the_moving_average_continues_from_its_state():
    weights = torch.from_numpy(_weights(6)).float()
    whole, part = EMA({"w": weights[0]}), EMA({"w": weights[0]})
    for step in range(1, 6):
        whole.update({"w": weights[step]}, step)
        part.update({"w": weights[step]}, step)
        content, part = part.state_dict(), EMA({"w": weights[0]})
        part.load_state_dict(content, {"w": weights[0]})
    assert torch.equal(part.average["w"], whole.average["w"])
    assert not torch.equal(whole.average["w"], weights[0])


def test_the_tolerance_is_the_published_one(make_spec):
    assert build_average(make_spec(averaging="swad"), {}).tolerance == 1.3
    assert build_average(make_spec(averaging="swad", dataset="VLCS"), {}).tolerance == 1.2
    assert build_average(make_spec(averaging="swad_released", dataset="VLCS"), {}).tolerance == 1.2
    assert build_average(make_spec(), {}) is None
    assert build_average(make_spec(averaging="bma", steps=7), {}).share(7) == pytest.approx(BMA({}, 7).share(7))


def test_averages_are_restored_on_the_device_of_the_weights():
    like = {"w": torch.zeros(2, device="meta")}
    swad, ema = SWAD(TOLERANCE), EMA({"w": torch.zeros(2)})
    swad.update({"w": torch.zeros(2)}, 1)
    for average in (swad, ema):
        average.load_state_dict(average.state_dict(), like)
    assert ema.average["w"].device.type == "meta"
    assert swad.state_dict()["running"]["average"]["w"].device.type == "meta"
