"""A study whose driver and workers are killed with -9, again and again, ends as an undisturbed one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from studies.outputs import state_of

STUDY = """
name: killed
optimizers: [sgd, sam, genie]
targets: ["0", "45"]
trials: 2
steps: 80
checkpoint_freq: 8
"""
RUNS = 3 * 2 * 2


def _command(file, output):
    return [sys.executable, "-m", "shiftproof", "study", "run", str(file), "--output", str(output), "--jobs", "2"]


def _workers(driver):
    """The pids of a driver's training processes; none if it has ended."""
    found = []
    try:
        for pid in Path(f"/proc/{driver}/task/{driver}/children").read_text().split():
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
    except OSError:
        pass
    return found


def _ended(output):
    return len(list(output.glob("runs/*/result.json")))


def _kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return 0
    return 1


def _disturb(command, output, rng):
    """Start a driver, kill some of its workers and then itself; return the kills that met a living process."""
    kills = 0
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as driver:
        begin, ended = time.monotonic(), _ended(output)
        # from the first work of this driver on, kills are at random moments
        while driver.poll() is None and _ended(output) == ended and time.monotonic() - begin < 60:
            time.sleep(0.05)
        for _ in range(2):
            time.sleep(rng.uniform(0, 0.6))
            if workers := _workers(driver.pid):
                kills += _kill(rng.choice(workers))
        time.sleep(rng.uniform(0, 1.5))
        if driver.poll() is None:
            kills += _kill(driver.pid)
    return kills


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")
def test_killed_again_and_again_it_ends_as_an_undisturbed_one(tmp_path):
    file = tmp_path / "killed.yaml"
    file.write_text(STUDY)
    subprocess.run(_command(file, tmp_path / "a"), check=True, capture_output=True)
    rng, kills, drivers = random.Random(0), 0, 0
    while drivers < 4 and _ended(tmp_path / "b") < RUNS:
        kills += _disturb(_command(file, tmp_path / "b"), tmp_path / "b", rng)
        drivers += 1
    assert kills >= 3
    subprocess.run(_command(file, tmp_path / "b"), check=True, capture_output=True)
    rows, results = state_of(tmp_path / "b")
    assert len(rows) == len({row["run"] for row in rows}) == len(results) == RUNS
    assert (rows, results) == state_of(tmp_path / "a")


def test_two_drivers_on_one_output_do_not_run_the_same_run_twice(tmp_path):
    file, output = tmp_path / "shared.yaml", tmp_path / "out"
    file.write_text(STUDY)
    with subprocess.Popen(_command(file, output), stderr=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        while first.poll() is None and not (output / "study.json").exists():
            time.sleep(0.02)
        second = subprocess.run(_command(file, output), capture_output=True, text=True, check=False)
        begun = {folder.name for folder in (output / "runs").glob("*")}
        first.communicate()
    assert first.returncode == 0
    assert second.returncode == 1
    assert "another process is working on" in second.stderr
    assert begun <= {folder.name for folder in (output / "runs").iterdir()}
    assert len(state_of(output)[0]) == RUNS
