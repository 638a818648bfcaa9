"""Short runs on the digits, specified without a study."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shiftproof.cli import main
from shiftproof.data import DATASETS, DomainDataset
from shiftproof.training import RunSpec


@pytest.fixture(scope="session")
def digits() -> DomainDataset:
    return DATASETS["rotated_digits"].open(None, None)


@pytest.fixture(scope="session")
def make_spec(digits: DomainDataset) -> Callable[..., RunSpec]:
    """A function that gives the spec of a run of 12 steps with an evaluation after every fourth, changed as told."""

    def make(lr: float = 0.01, **changes: Any) -> RunSpec:
        facts: dict[str, Any] = {
            "dataset": digits.name,
            "data_fingerprint": digits.fingerprint,
            "algorithm": "erm",
            "optimizer": "adam",
            "annealer": "none",
            "targets": ("30",),
            "trial_seed": 0,
            "hparam_seed": 0,
            "hparams": {"data.batch_size": 4, "model.dropout": 0.2, "optimizer.lr": lr},
            "steps": 12,
            "checkpoint_freq": 4,
            "model": "small_conv",
        }
        return RunSpec(**{**facts, **changes})

    return make


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with a model, which a module's tests may change."""
    folder = tmp_path_factory.mktemp("run")
    options = ["--target", "75", "--steps", "60", "--optimizer", "adam", "--checkpoint-freq", "60"]
    assert main(["train", *options, "--output", str(folder)]) == 0
    return folder
