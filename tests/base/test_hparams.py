import math

import numpy as np
import pytest

from draws import draw
from shiftproof.base.field_error import FieldError
from shiftproof.base.hparams import (
    Hparam,
    choice,
    decades,
    log2_int,
    log10_int,
    log10_uniform,
    option,
    uniform,
    uniform_int,
    unused,
)
from shiftproof.base.randomness import seed_hash
from shiftproof.protocol.settings import search_space, setting

GOLDEN = {  # DomainBed's draws for PACS, trial 0
    1: {"lr": 2.7028930742148706e-05, "weight_decay": 0.00044832883881609976, "batch_size": 39, "dropout": 0.5},
    2: {"lr": 5.6841898471378446e-05, "weight_decay": 0.005100223533962902, "batch_size": 25, "dropout": 0.5},
}


@pytest.mark.parametrize("hparam_seed", GOLDEN)
def test_draws_are_domainbeds(hparam_seed):
    space = search_space("PACS", "photographs", True, "erm", "adam", "none", "protocol")
    drawn = setting(space, {}, hparam_seed, trial_seed=0)
    assert drawn == {
        "data.batch_size": GOLDEN[hparam_seed]["batch_size"],
        "model.dropout": GOLDEN[hparam_seed]["dropout"],
        "optimizer.lr": GOLDEN[hparam_seed]["lr"],
        "optimizer.weight_decay": GOLDEN[hparam_seed]["weight_decay"],
    }


@pytest.mark.parametrize(("penalty", "expected"), [(1, (65030.52212762795, 2)), (2, (15.27125896858225, None))])
def test_draws_of_an_algorithm_are_domainbeds(penalty, expected):
    hparams = {
        "irm_lambda": Hparam(100.0, log10_uniform(-1, 5)),
        "irm_penalty_anneal_iters": Hparam(500, lambda random: int(10 ** random.uniform(0, 4))),
    }
    drawn = draw(hparams, penalty, 0)
    assert drawn["irm_lambda"] == expected[0]
    assert expected[1] is None or drawn["irm_penalty_anneal_iters"] == expected[1]


def test_setting_0_is_the_defaults_and_other_names_disturb_no_draw():
    lr = Hparam(1e-3, log10_uniform(-4, -2))
    assert draw({"lr": lr}, 0, 5) == {"lr": 1e-3}
    assert draw({"beta": Hparam(0.9, uniform(0, 1)), "lr": lr}, 3, 5)["lr"] == draw({"lr": lr}, 3, 5)["lr"]
    assert draw({"lr": Hparam(1e-3)}, 3, 5) == {"lr": 1e-3}
    assert draw({"rate": Hparam(1e-3, log10_uniform(-4, -2), "lr")}, 3, 5)["rate"] == draw({"lr": lr}, 3, 5)["lr"]


def _state(hparam_seed, trial_seed):
    return np.random.RandomState(seed_hash(hparam_seed, trial_seed))


@pytest.mark.parametrize("dialect", ["domainbed", "swad"])
def test_older_dialects_draw_all_names_from_one_generator(dialect):
    random = _state(1, 0)
    transcribed = {
        "model.dropout": random.choice([0.0, 0.1, 0.5]),
        "optimizer.lr": 10 ** random.uniform(-5, -3.5),
        "data.batch_size": int(2 ** random.uniform(3, 5.5)),
        "optimizer.weight_decay": 10 ** random.uniform(-6, -2),
    }
    space = search_space("PACS", "photographs", True, "erm", "adam", "none", "protocol")
    drawn = setting(space, {}, 1, 0, dialect)
    assert drawn == transcribed
    assert drawn != setting(space, {}, 1, 0)
    assert setting(space, {}, 0, 0, dialect) == setting(space, {}, 0, 0)


def test_in_order_small_images_draw_a_dropout_that_they_do_not_use():
    random = _state(2, 1)
    random.choice([0.0, 0.1, 0.5])
    transcribed = {
        "model.dropout": 0.0,
        "optimizer.lr": 10 ** random.uniform(-4.5, -2.5),
        "data.batch_size": int(2 ** random.uniform(3, 9)),
        "optimizer.weight_decay": 0.0,
    }
    space = search_space("rotated_digits", "small_images", False, "erm", "adam", "none", "protocol")
    assert setting(space, {}, 2, 1, "domainbed") == transcribed


def test_in_order_the_algorithm_draws_before_the_rest_of_the_optimizer_and_the_annealer_last():
    random = _state(3, 0)
    dropout = random.choice([0.0, 0.1, 0.5])
    _, batch_size, decay = random.uniform(-5, -3.5), random.uniform(3, 5.5), random.uniform(-6, -2)
    penalty, rho, radius = random.uniform(-1, 5), random.choice([0.01, 0.02, 0.05, 0.1]), random.uniform(0, 1)
    space = search_space("PACS", "photographs", True, "erm", "sam", "none", "protocol")
    space["algorithm"]["penalty"] = Hparam(100.0, log10_uniform(-1, 5))
    space["annealer"]["radius"] = Hparam(0.5, uniform(0, 1))
    fixed = {"optimizer.lr": 1e-3}  # a name that is fixed draws too
    assert setting(space, fixed, 3, 0, "domainbed") == {
        "model.dropout": dropout,
        "optimizer.lr": 1e-3,
        "data.batch_size": int(2**batch_size),
        "optimizer.weight_decay": 10**decay,
        "algorithm.penalty": 10**penalty,
        "optimizer.rho": rho,
        "annealer.radius": radius,
    }


def test_a_draw_relative_to_another_is_a_draw_of_the_same_distribution_divided_by_its_value():
    space = {
        "optimizer": {"lr": Hparam(0.1, log10_uniform(-4, -2))},
        "algorithm": {"lr_ratio": Hparam(1.0, relative_to="optimizer.lr", seed_name="lr_d")},
    }
    rate = draw({"lr_d": Hparam(0.1, log10_uniform(-4, -2))}, 3, 5)["lr_d"]
    drawn = setting(space, {}, 3, 5)
    assert drawn["algorithm.lr_ratio"] == rate / drawn["optimizer.lr"]
    assert setting(space, {"optimizer.lr": 0.5}, 3, 5)["algorithm.lr_ratio"] == rate / 0.5
    assert setting(space, {"optimizer.lr": 0}, 3, 5)["algorithm.lr_ratio"] == 1.0
    assert setting(space, {"algorithm.lr_ratio": 2.0}, 3, 5)["algorithm.lr_ratio"] == 2.0
    assert setting(space, {}, 0, 5) == {"optimizer.lr": 0.1, "algorithm.lr_ratio": 1.0}


def test_an_option_is_recorded_only_where_it_differs_from_our_default():
    space = {"algorithm": {"fixed_order": option(False, True, ("swad",))}}
    for hparam_seed in (0, 3):
        assert setting(space, {}, hparam_seed, 0) == {}
        assert setting(space, {}, hparam_seed, 0, "domainbed") == {}
        assert setting(space, {}, hparam_seed, 0, "swad") == {"algorithm.fixed_order": True}
    assert setting(space, {"algorithm.fixed_order": True}, 0, 0) == {"algorithm.fixed_order": True}
    assert setting(space, {"algorithm.fixed_order": False}, 0, 0, "swad") == {}


def test_names_without_a_distribution_draw_nothing_in_order():
    lr, momentum = Hparam(1e-3, log10_uniform(-4, -2)), Hparam(0.9)
    assert draw({"momentum": momentum, "lr": lr}, 3, 5, "domainbed")["lr"] == draw({"lr": lr}, 3, 5, "domainbed")["lr"]
    moved = draw({"beta": Hparam(0.9, unused(uniform(0, 1), 0.9)), "lr": lr}, 3, 5, "domainbed")
    assert moved["beta"] == 0.9
    assert moved["lr"] != draw({"lr": lr}, 3, 5, "domainbed")["lr"]


def test_distributions_stay_in_their_ranges_and_have_python_types():
    random = np.random.RandomState(0)
    samples = {
        float: [log10_uniform(-3, -1)(random) for _ in range(500)],
        int: [log2_int(3, 5)(random) for _ in range(500)],
        str: [choice("a", "b")(random) for _ in range(500)],
    }
    for kind, values in samples.items():
        assert {type(value) for value in values} == {kind}
    assert min(samples[float]) >= 1e-3
    assert max(samples[float]) < 1e-1
    assert np.mean(np.log10(samples[float])) == pytest.approx(-2, abs=0.1)
    assert set(samples[int]) == set(range(8, 32))
    assert set(samples[str]) == {"a", "b"}


def test_two_decades_are_centred_on_the_default():
    logs = np.log10([decades(0.03)(np.random.RandomState(seed)) for seed in range(2000)])
    assert logs.min() >= math.log10(0.03) - 1
    assert logs.max() < math.log10(0.03) + 1
    assert logs.mean() == pytest.approx(math.log10(0.03), abs=0.05)


@pytest.mark.parametrize(
    "distribution", [log2_int(0, 3), log2_int(3, 5.5), log10_int(0, 1), log10_int(0, 1.5), uniform_int(0, 7.5)]
)
def test_the_range_of_whole_numbers_names_the_first_and_the_last_one(distribution):
    random = np.random.RandomState(0)
    drawn = [distribution(random) for _ in range(5000)]
    assert str(distribution).startswith(f"{min(drawn)} to {max(drawn)}, whole")


def test_a_default_of_a_dialect_is_of_the_type_of_ours():
    with pytest.raises(FieldError, match="the default in swad must be true or false, not 'yes'"):
        option(False, "yes", ("swad",))
