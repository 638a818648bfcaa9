"""Ray trains what the processes of one machine train, and loses nothing when a worker, a node or the driver dies."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shiftproof.cli import main
from shiftproof.studies import RayCluster, Study, run_study
from shiftproof.studies.workers import run_on_ray

pytest.importorskip("ray", reason="Ray is not installed")

STUDY = """
name: two nodes
optimizers: [sgd, genie]
targets: ["0", "45"]
trials: 1
steps: 120
checkpoint_freq: 10
"""
RUNS = 2 * 2


def act(task):
    """Do what a task says, the first time; each has a file that says whether it is."""
    action, file = task
    first = not file.exists()
    file.touch()
    if action == "die" and first:
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "raise always" or (action == "raise" and first):
        raise OSError("the disk is away")
    return action


def test_tasks_that_raise_or_kill_their_worker_are_done_again(tmp_path):
    actions = ("go", "raise", "die", "raise always")
    tasks = [(action, tmp_path / action.replace(" ", "_")) for action in actions]
    # one at a time: every process that works takes seconds to start
    outcomes = sorted(run_on_ray(act, tasks, RayCluster(jobs=1), attempts=2))
    assert [outcome.value for outcome in outcomes] == ["go", "raise", "die", None]
    assert [outcome.error for outcome in outcomes][:3] == [None] * 3
    assert outcomes[3].error.startswith("OSError: the disk is away (on node ")
    assert outcomes[3].error.endswith(") (tried 2 times)")


@pytest.mark.slow
def test_a_task_that_keeps_killing_workers_fails_with_its_reason(tmp_path):
    [outcome] = run_on_ray(os._exit, [7], RayCluster(), attempts=2)
    assert "The worker died unexpectedly" in outcome.error
    assert outcome.error.endswith("(tried 2 times)")


@pytest.mark.slow
def test_a_cluster_without_what_a_run_reserves_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no node of the cluster has 4096 CPUs and 0 GPUs for a run"):
        list(run_on_ray(act, [("go", tmp_path / "a")], RayCluster(cpus_per_run=4096)))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--cpus-per-run", "2"], "--cpus-per-run needs --backend ray"),
        (["--address", "auto"], "--address needs --backend ray"),
        (["--backend", "rya"], "unknown backend 'rya'. Did you mean ray"),
        (["--backend", "ray", "--gpus-per-run", "2"], "GPUs per run must be between 0 and 1"),
        (["--backend", "ray", "--gpus-per-run", "0.5"], "runs on the CPU use no GPU"),
        (["--backend", "ray", "--cpus-per-run", "0"], "CPUs per run must be a whole number above 0, not 0"),
        (["--backend", "ray", "--jobs", "0"], "jobs must be a whole number above 0, not 0"),
    ],
)
def test_bad_options_are_refused(options, reason, tmp_path, capsys):
    assert main(["compare", "--dataset", "rotated_digits", "--steps", "2", "--output", str(tmp_path), *options]) == 1
    assert reason in capsys.readouterr().err


def test_a_device_that_ray_cannot_give_is_refused(tmp_path):
    with pytest.raises(ValueError, match="give the kind alone, cuda, not cuda:1"):
        RayCluster(gpus_per_run=1).check("cuda:1")
    with pytest.raises(ValueError, match="must reserve a GPU"):
        RayCluster().check("cuda")


def test_without_ray_the_error_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'shiftproof\[ray\]'"):
        run_study(Study(steps=2), tmp_path, RayCluster())


def _command(file, output, *options):
    return [sys.executable, "-m", "shiftproof", "study", "run", str(file), "--output", str(output), *options]


def _alone(command):
    """Return a command that runs it with no network but the machine's own, where both nodes have one address."""
    inner = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh", *map(str, command)]
    for unshare in (["unshare", "-n"], ["unshare", "-rn"]):
        try:
            if subprocess.run([*unshare, "ip", "link", "set", "lo", "up"], capture_output=True).returncode == 0:
                return [*unshare, *inner]
        except FileNotFoundError:
            break
    reason = "this machine allows no network namespace (unshare -n, ip link)"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    return pytest.skip(reason)


@pytest.mark.slow
def test_a_study_on_two_nodes_one_of_which_is_killed_ends_as_an_undisturbed_one(tmp_path):
    from processes import HANG  # Ray's workers import this file, and have no folder of tests
    from studies.outputs import state_of

    file, output = tmp_path / "two.yaml", tmp_path / "ray"
    file.write_text(STUDY)
    command = _alone([sys.executable, Path(__file__).with_name("two_nodes.py"), file, output])
    ended = subprocess.run(
        command, env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}, capture_output=True, text=True, timeout=HANG
    )
    assert ended.returncode == 0, ended.stderr
    happened = json.loads(ended.stdout.splitlines()[-1])
    assert len(happened["begun"]) == 2
    begun_at = {run: (output / "runs" / run / "spec.json").stat().st_mtime for run in happened["begun"]}
    again = [run for run, moment in begun_at.items() if moment > happened["killed"]]
    assert len(again) == 1  # the other node's run was left alone
    subprocess.run(_command(file, tmp_path / "local", "--jobs", "2"), check=True, capture_output=True)
    rows, results = state_of(output)
    assert len(rows) == len(results) == RUNS
    assert (rows, results) == state_of(tmp_path / "local")


def _training(output):
    """Return how many processes have a run's lock, one for each that trains."""
    held = 0
    for lock in output.glob("runs/*/.lock"):
        inode = f":{lock.stat().st_ino} "
        held += any(inode in line for line in Path("/proc/locks").read_text().splitlines())
    return held


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="locks are found in /proc")
@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGINT])
def test_a_driver_that_is_ended_ends_its_runs_and_the_same_command_continues(signal_, tmp_path):
    # not above: Ray's workers import this file, and have no folder of tests
    from processes import HANG, heed_interrupts, wait_until
    from studies.outputs import state_of

    file, output = tmp_path / "killed.yaml", tmp_path / "out"
    file.write_text(STUDY)
    command = _command(file, output, "--backend", "ray")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet, preexec_fn=heed_interrupts) as driver:
        assert wait_until(lambda: any(file.stat().st_size for file in output.glob("runs/*/metrics.jsonl")), driver)
        assert wait_until(lambda: _training(output), driver)
        driver.send_signal(signal_)
        assert driver.wait(HANG) == (130 if signal_ == signal.SIGINT else -signal.SIGKILL)
    wait_until(lambda: not _training(output))
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run(_command(file, tmp_path / "local", "--jobs", "2"), check=True, capture_output=True)
    assert state_of(output) == state_of(tmp_path / "local")
