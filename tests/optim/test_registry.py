"""Every registered optimizer is held to the same contract."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shiftproof.optim import OPTIMIZERS
from shiftproof.registry import UnknownNameError

every_optimizer = pytest.mark.parametrize("name", list(OPTIMIZERS))


def _defaults(name):
    space = OPTIMIZERS[name].search_space(photographs=False, search="short")
    return {key: hparam.default for key, hparam in space.items()}


def _problem():
    """Return a small net with a frozen layer and a closure factory over a fixed batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
    model[2].requires_grad_(False)
    inputs = torch.randn(64, 6)
    targets = inputs[:, :3].argmax(dim=1)

    def closure_for(model, optimizer):
        def closure():
            closure.calls += 1
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward(create_graph=OPTIMIZERS[closure.name].needs_graph)
            return loss.detach()

        closure.calls = 0
        return closure

    return model, closure_for


def _trained(name, steps):
    model, closure_for = _problem()
    optimizer = OPTIMIZERS[name]([p for p in model.parameters() if p.requires_grad], **_defaults(name))
    closure = closure_for(model, optimizer)
    closure.name = name
    losses = [float(optimizer.step(closure)) for _ in range(steps)]
    return model, optimizer, closure, closure_for, losses


@every_optimizer
def test_loss_falls_and_the_frozen_layer_stays(name):
    start = copy.deepcopy(_problem()[0].state_dict())
    model, _, _, _, losses = _trained(name, 100)
    assert losses[-1] < 0.7 * losses[0]
    for key, value in model.state_dict().items():
        assert torch.equal(value, start[key]) == key.startswith("2.")


@every_optimizer
def test_closure_is_called_once_per_pass(name):
    *_, closure, _, _ = _trained(name, 3)
    assert closure.calls == 3 * OPTIMIZERS[name].passes


@every_optimizer
def test_state_round_trip_and_deepcopy_continue_bit_equal(name):
    model, optimizer, closure, closure_for, _ = _trained(name, 5)
    loaded_model = copy.deepcopy(model)
    loaded = OPTIMIZERS[name]([p for p in loaded_model.parameters() if p.requires_grad], **_defaults(name))
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    copied_model, copied = copy.deepcopy((model, optimizer))
    optimizer.step(closure)
    for other_model, other in ((loaded_model, loaded), (copied_model, copied)):
        other_closure = closure_for(other_model, other)
        other_closure.name = name
        other.step(other_closure)
        for p, q in zip(model.parameters(), other_model.parameters(), strict=True):
            assert torch.equal(p, q)


@every_optimizer
def test_groups_have_their_own_lr(name):
    model, closure_for = _problem()
    start = [p.clone() for p in model.parameters()]
    options = _defaults(name) | {"weight_decay": 0.0}
    optimizer = OPTIMIZERS[name](
        [{"params": model[0].parameters()}, {"params": model[4].parameters(), "lr": 0.0}], **options
    )
    closure = closure_for(model, optimizer)
    closure.name = name
    optimizer.step(closure)
    moved = [not torch.equal(p, q) for p, q in zip(model.parameters(), start, strict=True)]
    assert moved == [True, True, False, False, False, False]


@every_optimizer
def test_zero_gradients_keep_weights_finite(name):
    p = nn.Parameter(torch.ones(5))
    optimizer = OPTIMIZERS[name]([p], **_defaults(name))

    def closure():
        optimizer.zero_grad()
        loss = (0 * p).sum()
        loss.backward(create_graph=OPTIMIZERS[name].needs_graph)
        return loss.detach()

    for _ in range(3):
        optimizer.step(closure)
    assert torch.equal(p, torch.ones(5))


@every_optimizer
@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"weight_decay": -1.0}])
def test_out_of_range_hyperparameters_are_refused(name, bad):
    with pytest.raises(ValueError, match=r"-1\.0"):
        OPTIMIZERS[name]([nn.Parameter(torch.ones(1))], **(_defaults(name) | bad))


def test_only_what_is_seeded_depends_on_the_seed():
    def trajectory(name, seed):
        p = nn.Parameter(torch.ones(64))
        optimizer = OPTIMIZERS[name]([p], seed=seed, **_defaults(name))
        p.grad = torch.ones(64)
        optimizer.step(lambda: torch.tensor(0.0))
        return p.detach().clone()

    for name in OPTIMIZERS:
        assert torch.equal(trajectory(name, 1), trajectory(name, 2)) != OPTIMIZERS[name].seeded


def test_protocol_ranges():
    space = OPTIMIZERS["adam"].search_space(photographs=True, search="protocol")
    assert (space["lr"].default, space["weight_decay"].default) == (5e-5, 0.0)
    small = OPTIMIZERS["adam"].search_space(photographs=False, search="protocol")
    assert small["lr"].default == 1e-3
    assert small["weight_decay"].draw is None
    genie = OPTIMIZERS["genie"].search_space(photographs=True, search="protocol")
    assert (genie["lr"].default, genie["beta"].default, genie["dropout"].default) == (0.1, 0.95, 0.4)
    assert OPTIMIZERS["genie_released"].search_space(True, "protocol")["lr"].default == 0.015


def test_unknown_optimizer_lists_near_matches():
    with pytest.raises(UnknownNameError, match=r"unknown optimizer 'geni'\. Did you mean genie"):
        OPTIMIZERS["geni"]


def test_importing_the_optimizers_needs_torch_and_numpy_only():
    heavy = {"timm", "torchvision", "sklearn", "scipy", "PIL", "safetensors", "filelock.asyncio", "tqdm"}
    code = "import sys; import shiftproof.optim, shiftproof.annealing; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    plain = subprocess.run(
        [sys.executable, "-c", "import sys; import torch, numpy, torch.optim; print(*sys.modules)"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert not heavy & (set(loaded) - set(plain))
    assert "shiftproof.training" not in loaded
