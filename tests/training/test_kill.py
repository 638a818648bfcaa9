"""A run killed with -9 at random moments ends as an undisturbed one, through the command line."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest


def _command(output):
    options = "--steps 60 --checkpoint-freq 6 --batch-size 16 --target 45 --optimizer genie"
    return [sys.executable, "-m", "shiftproof", "train", *options.split(), "--output", str(output)]


def _wait_for_progress(process):
    """Read standard error until the progress line shows a step."""
    text = b""
    while b"loss" not in text:
        chunk = os.read(process.stderr.fileno(), 4096)
        if not chunk:
            return
        text += chunk


@pytest.mark.parametrize("seed", [0, 1])
def test_kill_9_at_random_moments(seed, tmp_path):
    rng = random.Random(seed)
    subprocess.run(_command(tmp_path / "a"), check=True, capture_output=True)
    kills = 0
    for _ in range(4):
        with subprocess.Popen(_command(tmp_path / "b"), stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            _wait_for_progress(process)
            time.sleep(rng.uniform(0, 0.4))
            process.send_signal(signal.SIGKILL)
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 1
    subprocess.run(_command(tmp_path / "b"), check=True, capture_output=True)
    results = [json.loads((tmp_path / run / "result.json").read_text()) for run in "ab"]
    for result in results:
        del result["seconds"]
    assert results[0] == results[1]
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
