"""What a process does once, at its first run, is not in that run's seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shiftproof.optim.genie import build
from training.one_off_worker import ONE_OFF

WORKER = Path(__file__).with_name("one_off_worker.py")


def _measured(folder, what, **fields):
    """Return the seconds of a study's runs in a process of their own, and what took long there."""
    if build.kernel_error() is not None:
        pytest.skip(f"no CPU kernel: {build.kernel_error()}")
    kernel = build.PREBUILT if build.PREBUILT.exists() else build._cached()
    done = subprocess.run(
        [sys.executable, WORKER, folder, kernel, what, json.dumps(fields)],
        env={**os.environ, "SHIFTPROOF_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("what", ["train", "plan"])
def test_compiling_the_kernel_and_importing_are_in_no_seconds(what, tmp_path):
    methods = {"algorithms": ["erm", "dann"], "optimizers": ["genie", "adahessian", "sam"]}
    seconds, causes = _measured(tmp_path, what, **methods, annealers=["none", "gga_l"])
    assert causes.count("genie") == 1
    assert len(set(causes)) > 1  # some modules too
    assert max(seconds) < ONE_OFF


@pytest.mark.parametrize("what", ["train", "plan"])
def test_compiling_the_model_is_in_no_seconds(what, tmp_path):
    fixed = {"annealer.start": 2, "annealer.end": 4, "annealer.candidates": 2}
    options = {"annealers": ["gga", "gga_l"], "compile": True, "precision": "bf16", "fixed": fixed}
    seconds, causes = _measured(tmp_path, what, optimizers=["sgd"], **options)
    assert causes.count("torch.compile") >= 2
    assert max(seconds) < ONE_OFF
