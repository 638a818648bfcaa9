"""A run killed with -9 at random moments ends as an undisturbed one, through the command line."""

import json
import multiprocessing
import random
import signal
import time
from itertools import count

from processes import wait_until
from shiftproof.base.processes import START_METHOD
from shiftproof.cli import main


def _command(output):
    options = "--steps 60 --checkpoint-freq 6 --batch-size 16 --target 45 --optimizer genie"
    return ["train", *options.split(), "--output", str(output)]


def _evaluations(output):
    metrics = output / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def _kill(output, rng):
    """Start or continue a run and kill it; return whether it was still running."""
    reached = _evaluations(output) + rng.randint(1, 4)  # a moment of the work, whatever the speed
    process = multiprocessing.get_context(START_METHOD).Process(target=main, args=(_command(output),))
    process.start()
    wait_until(lambda: _evaluations(output) >= reached, process)
    time.sleep(rng.uniform(0, 0.2))  # so that not all kills come just after an evaluation; none is wrong
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)  # one that fails would be started for ever
    return process.exitcode == -signal.SIGKILL


def test_kill_9_at_random_moments(tmp_path):
    rng, kills = random.Random(0), 0
    assert main(_command(tmp_path / "undisturbed")) == 0
    for number in count():  # once, unless the run ends before so many kills
        output = tmp_path / str(number)
        while kills < 2 and not (output / "result.json").exists():
            kills += _kill(output, rng)
        assert main(_command(output)) == 0
        results = [json.loads((folder / "result.json").read_text()) for folder in (tmp_path / "undisturbed", output)]
        assert {**results[0], "seconds": None} == {**results[1], "seconds": None}
        for name in ("metrics.jsonl", "model.safetensors", "predictions.npz"):
            assert (tmp_path / "undisturbed" / name).read_bytes() == (output / name).read_bytes()
        if kills == 2:
            return
