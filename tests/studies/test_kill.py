"""A study whose driver and workers are killed with -9, again and again, ends as an undisturbed one, on any data."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.resources import files
from itertools import count
from pathlib import Path

import pytest

from processes import wait_until
from shiftproof.cli import main
from shiftproof.studies import read_study, run_study
from studies.outputs import state_of

STUDY = """
name: killed
optimizers: [sam, genie]
averaging: [none, ema]
targets: ["0", "45"]
trials: 1
steps: 40
checkpoint_freq: 4
"""
RUNS = 2 * 2 * 2
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def _run(file, output, jobs):
    return ["study", "run", str(file), "--output", str(output), "--jobs", str(jobs)]


def _driver(file, output, **options):
    return subprocess.Popen([sys.executable, "-m", "shiftproof", *_run(file, output, 2)], **options)


def _workers(driver):
    """The pids of a driver's training processes, which are forked from its server; none if it has ended."""
    return [int(worker) for child in _children(driver) for worker in _children(child)]


def _children(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return []


def _evaluations(output):
    """How often a run has been evaluated so far: what is lost by a kill counts no more."""
    return sum(file.read_bytes().count(b"\n") for file in output.glob("runs/*/metrics.jsonl"))


def _disturb(file, output, rng):
    """Start a driver, kill one of its workers and then itself; return the kills that met a living process."""
    kills = 0
    with _driver(file, output, **QUIET) as driver:
        for victims in (_workers, lambda pid: [pid]):
            reached = _evaluations(output) + rng.randint(1, 4)  # moments of the work, whatever the speed
            wait_until(lambda reached=reached: _evaluations(output) >= reached, driver)
            time.sleep(rng.uniform(0, 0.2))  # so that not all kills come just after an evaluation; none is wrong
            if driver.poll() is None and (found := victims(driver.pid)):
                with suppress(ProcessLookupError):  # it has ended since
                    os.kill(rng.choice(found), signal.SIGKILL)
                    kills += 1
    assert driver.returncode in (0, -signal.SIGKILL)  # one that fails would be started for ever
    return kills


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")
def test_killed_again_and_again_it_ends_as_an_undisturbed_one(tmp_path):
    file = tmp_path / "killed.yaml"
    file.write_text(STUDY)
    study, _ = read_study(file)
    run_study(study, tmp_path / "undisturbed", 1)
    expected = state_of(tmp_path / "undisturbed")
    rng, kills = random.Random(0), 0
    for number in count():  # once, unless the study ends before so many kills
        output = tmp_path / str(number)
        while kills < 4 and len(list(output.glob("runs/*/result.json"))) < RUNS:
            kills += _disturb(file, output, rng)
        run_study(study, output, 1)
        rows, results = state_of(output)
        assert len(rows) == len({row["run"] for row in rows}) == len(results) == RUNS
        assert (rows, results) == expected
        if kills >= 4:
            return


def test_two_drivers_on_one_output_do_not_run_the_same_run_twice(tmp_path, capsys):
    file, output = tmp_path / "shared.yaml", tmp_path / "out"
    file.write_text(STUDY.replace("40", "4"))
    with _driver(file, output, **QUIET) as first:
        wait_until((output / "study.json").exists, first)
        first.send_signal(signal.SIGSTOP)  # so that it has not ended when the second begins
        try:
            assert main(_run(file, output, 2)) == 1
            assert "another process is working on" in capsys.readouterr().err
            begun = {folder.name for folder in (output / "runs").glob("*")}
        finally:
            first.send_signal(signal.SIGCONT)  # its end is waited for, also where this fails
    assert first.returncode == 0
    assert begun <= {folder.name for folder in (output / "runs").iterdir()}
    assert len(state_of(output)[0]) == RUNS


KILLER = """
import os
import signal

from shiftproof.training.tracking import TRACKERS, TrackerEntry


class Killer:
    '''Kills its process group in the middle of a run: an evaluation is in the file of metrics, in no checkpoint yet.'''

    def __init__(self, run):
        pass

    def write(self, scalars, step):
        if step == 4:
            os.killpg(0, signal.SIGKILL)


TRACKERS.register("killer", TrackerEntry("a killer", (), Killer))
"""
HEART = files("shiftproof.data") / "embedded" / "heart_disease.csv"
PATIENTS = ["table", "--metadata", str(HEART), "--domain", "domain", "--missing-labels", "drop"]
PATIENTS += ["--features", "age", "chol", "cp:category", "thal:category", "--label"]
BALANCED = ["--sampling", "balanced", "--class-weights", "balanced"]


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="there are no process groups")
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(["vowels", "--targets", "speaker03"], id="vectors"),
        pytest.param([*PATIENTS, "y", "--targets", "cleveland", *BALANCED], id="balanced classes"),
        pytest.param([*PATIENTS, "sex", "y", "--targets", "cleveland"], id="several labels", marks=pytest.mark.slow),
        pytest.param(
            [*PATIENTS, "thalach", "--targets", "cleveland", "--task", "regression"],
            id="a quantity",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_killed_in_the_middle_of_a_run_it_ends_as_an_undisturbed_one(data, tmp_path):
    (tmp_path / "killer.py").write_text(KILLER)
    options = ["--optimizers", "adam", "genie", "--trials", "1", "--steps", "6", "--checkpoint-freq", "2"]
    command = ["compare", "--dataset", *data, *options, "--jobs", "1", "--output"]
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    killing = ["--import", str(tmp_path / "killer.py"), "--track", "killer"]
    start = [sys.executable, "-m", "shiftproof", *command, str(killed), *killing]
    assert subprocess.run(start, start_new_session=True, **QUIET).returncode == -signal.SIGKILL
    [begun] = (killed / "runs").iterdir()
    left = {file.name for file in begun.iterdir()}
    assert {"checkpoint.pt", "metrics.jsonl"} <= left
    assert not {"result.json", "model.json"} & left
    assert [json.loads(line)["step"] for line in (begun / "metrics.jsonl").open()] == [2, 4]
    for output in (killed, undisturbed):
        assert main([*command, str(output)]) == 0
    rows, results = state_of(killed)
    assert len(rows) == len(results) == 2
    assert (rows, results) == state_of(undisturbed)
