"""What an algorithm gets of the run's optimizer."""

from dataclasses import replace

import pytest
import torch

from shiftproof.optim import OPTIMIZERS
from shiftproof.training.build import build_steps
from shiftproof.training.optimizer_factory import RunOptimizers


def _weights(count=3):
    return [torch.nn.Parameter(torch.zeros(4)) for _ in range(count)]


def _factory(optimizer, **hparams):
    entry = OPTIMIZERS[optimizer]
    defaults = {name: hparam.default for name, hparam in entry.hparams.items()}
    return RunOptimizers(optimizer, 5, {**defaults, "lr": 0.02, "weight_decay": 0.1, **hparams})


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_by_default_it_is_the_runs_optimizer(optimizer):
    built = _factory(optimizer)(iter(_weights()))
    entry = OPTIMIZERS[optimizer]
    plain = entry(_weights(), seed=5, lr=0.02, weight_decay=0.1, **{n: h.default for n, h in entry.hparams.items()})
    assert type(built) is type(plain)
    groups = [[{k: v for k, v in g.items() if k != "params"} for g in o.param_groups] for o in (built, plain)]
    assert groups[0] == groups[1]
    assert [len(group["params"]) for group in built.param_groups] == [3]


def test_learning_rates_are_ratios_and_weight_decay_may_differ():
    group = _factory("adam")(_weights(), lr_ratio=2.5, weight_decay=0.0).param_groups[0]
    assert group["lr"] == pytest.approx(0.05)
    assert group["weight_decay"] == 0.0


@pytest.mark.parametrize("ratios", [False, True])
def test_names_reach_the_optimizers_whose_rule_may_depend_on_them(ratios):
    weights = _weights()
    names = dict(zip(weights, ("a.weight", "b.bias", "c.weight"), strict=True))
    for optimizer in OPTIMIZERS:
        factory = replace(_factory(optimizer), names=names, ratios={weights[1]: 0.5} if ratios else {})
        groups = factory(weights).param_groups
        expected = [["a.weight", "c.weight"], ["b.bias"]] if ratios else [["a.weight", "b.bias", "c.weight"]]
        assert [group.get("param_names") for group in groups] == (
            expected if optimizer == "asam" else [None] * len(groups)
        )


def test_a_run_gives_asam_the_names_of_its_network(make_spec, digits):
    hparams = {"data.batch_size": 4, "model.dropout": 0.0, "optimizer.lr": 0.01, "optimizer.by_name": True}
    steps = build_steps(make_spec(optimizer="asam", hparams=hparams), digits, torch.device("cpu"), None)
    algorithm = steps.algorithm
    [group] = algorithm.optimizers["all"].param_groups
    assert dict(zip(group["param_names"], group["params"], strict=True)) == dict(algorithm.named_parameters())
    assert any(p.ndim == 1 and "weight" in name for name, p in algorithm.named_parameters())
    assert steps.take([(torch.randn(4, *digits.input_shape), torch.arange(4))] * algorithm.num_domains, 1).isfinite()


def test_every_name_draws_its_own_numbers():
    factory = _factory("genie")
    seeds = [factory(_weights(), name=name).param_groups[0]["seed"] for name in ("all", "first", "second", "first")]
    assert seeds[0] == 5
    assert len(set(seeds)) == 3
    assert seeds[1] == seeds[3]
    other = RunOptimizers("genie", 6, factory.hparams)(_weights(), name="first").param_groups[0]["seed"]
    assert other != seeds[1]


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize(
    ("options", "expected"),
    [({"beta1": 0.25}, (0.25, 0.999)), ({"beta2": 0.9}, (0.9, 0.9)), ({"beta1": 0.0, "beta2": 0.0}, (0.0, 0.0))],
)
def test_betas_are_for_optimizers_that_have_them(optimizer, options, expected):
    group = _factory(optimizer)(_weights(), **options).param_groups[0]
    if optimizer in ("sgd", "genie", "genie_released", "sign_genie", "signum", "m_svag"):
        assert "betas" not in group
        assert group.get("momentum", 0.9) == 0.9
    else:
        assert group["betas"] == expected


def test_beta2_acts():
    weights = _weights(1)
    optimizer = _factory("sam", weight_decay=0.0)(weights, beta2=0.0)

    def closure(size):
        weights[0].grad = torch.full((4,), size)
        return torch.zeros(())

    optimizer.step(lambda: closure(3.0))
    optimizer.step(lambda: closure(2.0))
    assert torch.equal(optimizer.state[weights[0]]["exp_avg_sq"], torch.full((4,), 4.0))  # of the last gradient alone


def test_beta1_acts():
    weights = _weights(1)
    optimizer = _factory("sam", weight_decay=0.0)(weights, beta1=0.0)

    def closure(sign):
        weights[0].grad = torch.full((4,), sign)
        return torch.zeros(())

    optimizer.step(lambda: closure(1.0))
    optimizer.step(lambda: closure(-1.0))
    moment = optimizer.state[weights[0]]["exp_avg"]
    assert torch.equal(moment, torch.full((4,), -1.0))  # nothing is left of the first gradient


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_ratio": 0.0}, "Invalid lr_ratio value: 0.0; it must be above 0"),
        ({"beta1": 1.0}, "Invalid beta1 value: 1.0; it must be in"),
        ({"beta1": -0.5}, "Invalid beta1 value: -0.5"),
        ({"beta2": 1.0}, "Invalid beta2 value: 1.0; it must be in"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _factory("adam")(_weights(), **options)
