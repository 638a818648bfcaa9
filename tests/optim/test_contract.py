"""Every registered optimizer is held to one contract."""

import copy
import inspect
import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn import functional as F

from shiftproof.optim import OPTIMIZERS, MultiPass

every_optimizer = pytest.mark.parametrize("name", list(OPTIMIZERS))


def _build(name, params, *, seed=0, **hparams):
    space = OPTIMIZERS[name].search_space(pretrained=False, search="short")
    defaults = {key: hparam.default for key, hparam in space.items()}
    return OPTIMIZERS[name](params, seed=seed, **(defaults | hparams))


class _Problem:
    """A small net, whose middle layer is frozen, an optimizer of the rest, and a closure over a fixed batch."""

    def __init__(self, name, params=None, **options):
        self.generator = torch.Generator().manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
        for p in self.model.parameters():
            p.data = 0.4 * torch.randn(p.shape, generator=self.generator)
        self.model[2].requires_grad_(False)
        self.inputs = torch.randn(64, 6, generator=self.generator)
        self.targets = self.inputs[:, :3].argmax(dim=1)
        params = params or (lambda model: model.parameters())
        self.create_graph = OPTIMIZERS[name].needs_graph
        self.optimizer = _build(name, params(self.model), **options)
        self.calls = 0

    def closure(self):
        self.calls += 1
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(self.inputs), self.targets)
        loss.backward(create_graph=self.create_graph)
        return loss.detach()

    def train(self, steps):
        return [float(self.optimizer.step(self.closure)) for _ in range(steps)]

    def weights(self):
        return [p.detach().clone() for p in self.model.parameters()]


def _equal(left, right):
    return [torch.equal(p, q) for p, q in zip(left, right, strict=True)]


@every_optimizer
def test_loss_falls_and_the_frozen_layer_stays(name):
    problem = _Problem(name)
    start = problem.weights()
    losses = problem.train(100)
    assert losses[-1] < 0.7 * losses[0]
    assert _equal(problem.weights(), start) == [False, False, True, True, False, False]


@every_optimizer
def test_closure_is_called_once_per_pass(name):
    problem = _Problem(name)
    problem.train(3)
    assert problem.calls == 3 * OPTIMIZERS[name].passes


@every_optimizer
def test_state_round_trip_continues_bit_equal(name, tmp_path):
    problem, loaded = _Problem(name), _Problem(name)
    problem.train(5)
    torch.save([problem.model.state_dict(), problem.optimizer.state_dict()], tmp_path / "state.pt")
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    loaded.model.load_state_dict(weights)
    loaded.optimizer.load_state_dict(state)
    assert problem.train(3) == loaded.train(3)
    assert all(_equal(problem.weights(), loaded.weights()))


@every_optimizer
def test_distributed_checkpoint_continues_bit_equal(name):
    problem, loaded = _Problem(name), _Problem(name)
    problem.train(5)
    weights, state = copy.deepcopy(get_state_dict(problem.model, problem.optimizer))
    set_state_dict(loaded.model, loaded.optimizer, model_state_dict=weights, optim_state_dict=state)
    assert problem.train(3) == loaded.train(3)
    assert all(_equal(problem.weights(), loaded.weights()))


@every_optimizer
def test_deepcopy_continues_bit_equal_and_apart(name):
    problem = _Problem(name)
    problem.train(5)
    copied = copy.deepcopy(problem)
    before = copied.weights()
    losses = problem.train(3)
    assert all(_equal(copied.weights(), before))
    assert copied.train(3) == losses
    assert all(_equal(problem.weights(), copied.weights()))


@every_optimizer
def test_groups_have_their_own_lr(name):
    def groups(model):
        return [{"params": model[0].parameters()}, {"params": model[4].parameters(), "lr": 0.0}]

    problem = _Problem(name, groups)
    start = problem.weights()
    problem.train(2)
    assert _equal(problem.weights(), start) == [False, False, True, True, True, True]


@every_optimizer
def test_weight_decay_shrinks_weights(name):
    plain, decayed = _Problem(name), _Problem(name, weight_decay=0.1)
    plain.train(100)
    decayed.train(100)
    norm, smaller = (nn.utils.get_total_norm(problem.weights()) for problem in (plain, decayed))
    assert smaller < norm


@every_optimizer
def test_parameters_without_gradient_are_skipped(name):
    problem = _Problem(name)
    start = problem.weights()

    def closure():
        loss = problem.closure()
        problem.model[0].bias.grad = None
        return loss

    problem.optimizer.step(closure)
    assert _equal(problem.weights(), start) == [False, True, True, True, False, False]
    problem.train(1)  # the state of one begins a step later
    assert not torch.equal(problem.model[0].bias, start[1])


@every_optimizer
def test_zero_gradients_change_nothing(name):
    p = nn.Parameter(torch.ones(5))
    optimizer = _build(name, [p])

    def closure():
        optimizer.zero_grad()
        loss = (0 * p).sum()
        loss.backward(create_graph=OPTIMIZERS[name].needs_graph)
        return loss.detach()

    for _ in range(3):
        optimizer.step(closure)
    assert torch.equal(p, torch.ones(5))


@every_optimizer
def test_the_seed_alone_decides_random_numbers(name):
    draws = {"dropout": 0.4} if "dropout" in OPTIMIZERS[name].hparams else {}

    def trained(seed):
        torch.manual_seed(torch.seed())  # what is in torch's generator does not matter
        problem = _Problem(name, seed=seed, **draws)
        before = torch.get_rng_state()
        problem.train(3)
        assert torch.equal(torch.get_rng_state(), before)
        return problem.weights()

    assert all(_equal(trained(1), trained(1)))
    assert all(_equal(trained(1), trained(2))) != OPTIMIZERS[name].seeded


@every_optimizer
@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"weight_decay": -1.0}])
def test_out_of_range_hyperparameters_are_refused(name, bad):
    with pytest.raises(ValueError, match=r"-1\.0"):
        _build(name, [nn.Parameter(torch.ones(1))], **bad)


# --------------------------------------------------------------------------------- of those that are this package's

CLASSES = {name: type(_build(name, [nn.Parameter(torch.ones(1))])) for name in OPTIMIZERS}
OURS = [name for name, cls in CLASSES.items() if cls.__module__.startswith("shiftproof")]
WITH_MOMENTS = [name for name in OURS if not issubclass(CLASSES[name], MultiPass)]
every_one_of_ours = pytest.mark.parametrize("name", OURS)
with_moments = pytest.mark.parametrize("name", WITH_MOMENTS)


@every_one_of_ours
def test_numbers_of_numpy_are_stored_as_python_s(name):
    space = OPTIMIZERS[name].search_space(pretrained=False, search="short")
    options = {
        key: np.float32(hparam.default) for key, hparam in space.items() if isinstance(hparam.default, float)
    } | {"lr": np.float64(0.25)}
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = _build(name, [p], **options)
    optimizer.add_param_group({"params": [q], "lr": np.float32(0.5)})
    for group in optimizer.param_groups:
        for key, value in group.items():
            assert not isinstance(value, np.generic), key
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.5]
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    saved.seek(0)
    torch.load(saved, weights_only=True)


@every_one_of_ours
def test_a_pickle_from_before_an_option_was_added_loads(name):
    """The option then has its default."""
    options = {
        key: parameter.default
        for key, parameter in inspect.signature(type(_Problem(name).optimizer)).parameters.items()
        if parameter.default is not parameter.empty and key not in ("base", "no_sync")
    }
    for option in options:
        problem = _Problem(name)
        group = problem.optimizer.param_groups[0]
        key = option if option in group else f"{type(problem.optimizer).__name__.lower()}_{option}"
        state = copy.deepcopy(problem.optimizer.__getstate__())
        base = state.get("base")
        del state["defaults"][key]
        for groups in {
            id(groups): groups for groups in (state["param_groups"], base.param_groups if base else [])
        }.values():
            for each in groups:
                each.pop(key, None)
        if base is not None:
            if key in base.defaults:
                continue  # the base's own
            state["_own"].remove(key)
        old = type(problem.optimizer).__new__(type(problem.optimizer))
        old.__setstate__(state)
        assert old.defaults[key] is not None or options[option] is None
        assert all(key in each for each in old.param_groups)
        if base is not None:
            assert old.option(old.param_groups[0], option) == options[option]


@every_one_of_ours
def test_a_class_derived_elsewhere_keeps_its_own_arguments_to_itself(name):
    """What its constructor takes are no options; copying and loading leave the groups as they are."""
    cls = CLASSES[name]

    class Derived(cls):
        def __init__(self, params, tag=None, log_dir="x", **options):
            super().__init__(params, **options)

    optimizer = Derived([nn.Parameter(torch.ones(2))])
    options = set(optimizer.param_groups[0])
    copied = copy.deepcopy(optimizer)
    copied.load_state_dict(optimizer.state_dict())
    assert set(copied.param_groups[0]) == options
    copied.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    assert set(copied.param_groups[1]) - {"differentiable"} == options - {"differentiable"}  # which torch adds itself


@every_one_of_ours
def test_a_group_that_is_no_dictionary_is_told(name):
    optimizer = _build(name, [nn.Parameter(torch.ones(1))])
    with pytest.raises(TypeError, match="param_group must be a dict, not list"):
        optimizer.add_param_group([nn.Parameter(torch.ones(1))])


@every_one_of_ours
def test_the_default_device_does_not_matter(name):
    def trained():
        problem = _Problem(name) if name in WITH_MOMENTS else _Problem(name, base=torch.optim.SGD)
        with default():
            problem.train(3)
            saved = problem.optimizer.state_dict()
            problem.optimizer.load_state_dict(saved)
            problem.train(2)
        return problem.weights()

    def default():
        return torch.device("meta") if elsewhere else torch.device("cpu")

    results = []
    for elsewhere in (False, True):  # noqa: B007
        results.append(trained())
    assert all(_equal(*results))


@with_moments
def test_a_state_of_other_shapes_is_refused_with_both(name):
    problem, other = _Problem(name), _Problem(name)
    problem.train(2)
    other.train(1)
    saved = copy.deepcopy(problem.optimizer.state_dict())
    before = copy.deepcopy(other.optimizer.state_dict())
    order = saved["param_groups"][0]["params"]
    swapped = {**saved, "state": {order[0]: saved["state"][order[1]], order[1]: saved["state"][order[0]]}}
    with pytest.raises(
        ValueError, match=r"exp_avg of parameter 0 is of shape \(16,\), .* shape \(16, 6\).*another order"
    ):
        other.optimizer.load_state_dict(swapped)
    for moment in saved["state"][order[0]].keys() - {"step"}:
        changed = copy.deepcopy(saved)
        changed["state"][order[1]][moment] = torch.zeros(1)  # would broadcast
        with pytest.raises(ValueError, match=rf"{moment} of parameter 1 is of shape \(1,\), .* shape \(16,\)"):
            other.optimizer.load_state_dict(changed)
        del changed["state"][order[1]][moment]
        with pytest.raises(ValueError, match=f"{moment} of parameter 1 is missing"):
            other.optimizer.load_state_dict(changed)
        changed["state"][order[1]][moment] = torch.zeros(16, dtype=torch.complex64)
        with pytest.raises(ValueError, match=f"{moment} of parameter 1 is complex"):
            other.optimizer.load_state_dict(changed)
        changed["state"][order[1]][moment] = torch.zeros(16).to_sparse()
        with pytest.raises(ValueError, match=f"{moment} of parameter 1 is of layout torch.sparse"):
            other.optimizer.load_state_dict(changed)
    for step in (-1, float("nan"), torch.zeros(2), None):
        changed = copy.deepcopy(saved)
        changed["state"][order[0]]["step"] = step
        with pytest.raises(ValueError, match="the step count of parameter 0 is"):
            other.optimizer.load_state_dict(changed)
    after = other.optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    torch.testing.assert_close(after["state"], before["state"], rtol=0, atol=0)
    named = _Problem(name, lambda model: model.named_parameters())
    with pytest.raises(ValueError, match=r"exp_avg of parameter '0\.weight' is of shape"):
        named.optimizer.load_state_dict(swapped)


@with_moments
def test_a_parameter_appended_to_a_named_group_has_no_name_and_is_stepped(name):
    problem = _Problem(name, lambda model: list(model[0].named_parameters()))
    problem.optimizer.param_groups[0]["params"] += problem.model[4].parameters()
    start = problem.weights()
    problem.train(2)
    assert _equal(problem.weights(), start) == [False, False, True, True, False, False]


@with_moments
def test_a_parameter_that_has_grown_is_an_error_and_nothing_is_counted(name):
    problem = _Problem(name)
    problem.train(2)
    bias = problem.model[4].bias
    bias.data = torch.zeros(5)
    for p in (p for p in problem.model.parameters() if p.requires_grad):
        p.grad = torch.zeros_like(p)  # which the averages would still move
    start = [p.detach().clone() for p in problem.model.parameters()]
    with pytest.raises(RuntimeError, match=r"exp_avg of parameter 5 is of shape \(3,\), .* shape \(5,\)"):
        problem.optimizer.step()
    assert all(_equal(problem.weights(), start))
    assert {float(state["step"]) for state in problem.optimizer.state.values()} == {2.0}
    bias.data = torch.zeros(3)  # the gradient stays
    with pytest.raises(RuntimeError, match=r"the gradient of parameter 5 is of shape \(5,\)"):
        problem.optimizer.step()
    assert {float(state["step"]) for state in problem.optimizer.state.values()} == {2.0}
