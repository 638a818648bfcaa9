"""The registry: names, ranges and what importing it loads; test_contract.py holds what every optimizer must do."""

import subprocess
import sys

import pytest

from shiftproof.base.hparams import Hparam, decades
from shiftproof.base.registry import RemovedNameError, UnknownNameError
from shiftproof.optim import OPTIMIZERS


def test_protocol_ranges():
    space = OPTIMIZERS["adam"].search_space(pretrained=True, search="protocol")
    assert (space["lr"].default, space["weight_decay"].default) == (5e-5, 0.0)
    small = OPTIMIZERS["adam"].search_space(pretrained=False, search="protocol")
    assert small["lr"].default == 1e-3
    assert small["weight_decay"].draw is None
    genie = OPTIMIZERS["genie"].search_space(pretrained=True, search="protocol")
    assert (genie["lr"].default, genie["beta"].default, genie["dropout"].default) == (0.1, 0.95, 0.4)
    assert OPTIMIZERS["genie_released"].search_space(True, "protocol")["lr"].default == 0.015
    for pretrained in (True, False):
        genie_adamw, adamw = (
            OPTIMIZERS[name].search_space(pretrained, "protocol") for name in ("genie_adamw", "adamw")
        )
        for name, hparam in adamw.items():
            assert (genie_adamw[name].default, genie_adamw[name].range) == (hparam.default, hparam.range)


def test_a_part_of_given_weights_has_a_rate_of_its_own_in_the_short_search_only():
    of_weights = {name: OPTIMIZERS[name].lr_pretrained for name in OPTIMIZERS}
    rates = {name: (rates.short, rates.short_part or rates.short) for name, rates in of_weights.items()}
    assert rates["adam"] == rates["genie_adamw"] == (1e-4, 3e-4)
    assert rates["adahessian"] == (0.015, 0.015)
    assert (rates["sgd"], rates["genie_released"], rates["genie"]) == ((3e-4, 1e-3), (0.003, 0.01), (0.1, 0.03))
    for name, (whole, part) in rates.items():
        for default, part_alone in ((whole, False), (part, True)):
            lr = OPTIMIZERS[name].search_space(True, "short", part=part_alone)["lr"]
            assert (lr.default, lr.range) == (default, Hparam(default, decades(default)).range)
        for pretrained, search in ((True, "protocol"), (False, "protocol"), (False, "short")):
            of_part, of_all = (OPTIMIZERS[name].search_space(pretrained, search, part=p)["lr"] for p in (True, False))
            assert (of_part.default, of_part.range) == (of_all.default, of_all.range)


@pytest.mark.parametrize("name", ["sam", "gsam", "sagm", "fad"])
@pytest.mark.parametrize("pretrained", [False, True])
def test_the_short_search_has_the_relative_radius_and_the_protocol_the_published_one(name, pretrained):
    protocol, short = (OPTIMIZERS[name].search_space(pretrained, search) for search in ("protocol", "short"))
    assert (protocol["rho"].default, protocol["rho"].range) == (0.05, "one of 0.01, 0.02, 0.05, 0.1")
    assert protocol.keys() - short.keys() == {"rho"}
    assert short.keys() - protocol.keys() == {"relative_rho"}
    assert all(protocol[each] == short[each] for each in protocol.keys() & short.keys() - {"lr", "weight_decay"})


@pytest.mark.parametrize(
    ("search", "fixed", "radii"),
    [
        ("short", {"rho"}, ["rho"]),
        ("short", {"relative_rho", "alpha"}, ["relative_rho"]),
        ("short", {"rho", "relative_rho"}, ["rho", "relative_rho"]),
        ("protocol", {"relative_rho", "lr"}, ["relative_rho"]),
        ("protocol", {"rho", "momentum"}, ["rho"]),
        ("protocol", {"rho", "relative_rho"}, ["relative_rho", "rho"]),
    ],
)
def test_a_radius_fixed_by_hand_takes_the_place_of_the_search_s(search, fixed, radii):
    space = OPTIMIZERS["gsam"].search_space(False, search, fixed)
    assert [name for name in space if name.endswith("rho")] == radii
    assert space.keys() - set(radii) == {"lr", "weight_decay", "alpha"}


def test_unknown_optimizer_lists_near_matches():
    with pytest.raises(UnknownNameError, match=r"unknown optimizer 'geni'\. Did you mean genie"):
        OPTIMIZERS["geni"]


def test_the_invariant_form_was_removed():
    message = (
        r"'genie_invariant' was removed: .* Use genie_adamw, .* or genie and genie_released to reproduce the paper"
    )
    with pytest.raises(RemovedNameError, match=message):
        OPTIMIZERS["genie_invariant"]
    with pytest.raises(UnknownNameError) as error:
        OPTIMIZERS["genie_invarian"]
    assert "genie_invariant" not in str(error.value)


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
