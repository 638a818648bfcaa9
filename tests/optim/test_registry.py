"""The registry: names, ranges and what importing it loads; test_contract.py holds what every optimizer must do."""

import subprocess
import sys

import pytest

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
        assert {name: str(genie_adamw[name]) for name in adamw} == {name: str(hparam) for name, hparam in adamw.items()}


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
