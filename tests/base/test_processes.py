"""Workers start cheaply, know what their parent knows, and end with it and with the server they are forked from."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from processes import is_running, wait_until
from shiftproof.base.processes import START_METHOD
from shiftproof.studies.workers.processes import run_tasks

pytestmark = pytest.mark.skipif(START_METHOD != "forkserver", reason="workers are forked from a server on Linux only")

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}


def variables(_):
    return {name: value for name, value in os.environ.items() if name.startswith("SHIFTPROOF_TEST_")}


def test_a_worker_has_the_environment_of_the_moment_and_not_of_the_servers_start(monkeypatch):
    for value in ("one", "two"):
        monkeypatch.setenv(f"SHIFTPROOF_TEST_{value}", value)
        [outcome] = run_tasks(variables, [0], jobs=1)
        assert outcome.value == variables(0)
    monkeypatch.delenv("SHIFTPROOF_TEST_one")
    [outcome] = run_tasks(variables, [0], jobs=1)
    assert "SHIFTPROOF_TEST_one" not in outcome.value


STAY = """
import multiprocessing, os, signal, sys
from shiftproof.base.processes import START_METHOD, end_with_parent

def stay(connection):
    end_with_parent()
    connection.send((os.getpid(), os.getppid()))
    signal.pause()

if __name__ == "__main__":
    context = multiprocessing.get_context(START_METHOD)
    ours, theirs = context.Pipe()
    context.Process(target=stay, args=(theirs,), daemon=True).start()
    print(*ours.recv(), flush=True)
    sys.stdin.read()
"""


def test_a_worker_ends_with_its_server(tmp_path):
    """Else whoever started it would take it for dead while it works on."""
    file = tmp_path / "starter.py"
    file.write_text(STAY)
    with subprocess.Popen([sys.executable, file], env=ENVIRONMENT, stdin=-1, stdout=-1, text=True) as starter:
        worker, server = map(int, starter.stdout.readline().split())
        assert len({worker, server, starter.pid}) == 3
        assert is_running(worker)
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: not is_running(worker))
        assert starter.poll() is None
        starter.stdin.close()


SEEN = """
import sys, torch
def looked(*_):
    raise SystemExit("it looked for GPUs")
torch._C._cuda_getDeviceCount = torch._C._cuda_init = looked
import shiftproof.training.preload
assert {"torch._dynamo", "torchvision", "shiftproof.training.run"} <= sys.modules.keys()
"""


def test_what_the_server_imports_looks_for_no_gpu():
    """A process that is forked from one that has cannot use them."""
    done = subprocess.run([sys.executable, "-c", SEEN], env=ENVIRONMENT, text=True, stderr=-1)
    assert (done.returncode, done.stderr) == (0, "")
