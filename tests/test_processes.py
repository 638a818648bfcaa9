"""Killing pytest leaves no process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import processes
from processes import is_running, wait_until

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc")

# In the place of pytest: starts a process that starts another, both in sessions of their own, and tells their numbers.
STARTER = """
import subprocess, sys, time
sys.path.append(sys.argv[1])
from processes import end_what_is_left
end_what_is_left()
child = "import subprocess; print(subprocess.Popen(['sleep', '1000'], start_new_session=True).pid, flush=True); input()"
pipes = {"stdout": subprocess.PIPE, "stdin": subprocess.PIPE}
started = subprocess.Popen([sys.executable, "-c", child], start_new_session=True, **pipes)
print(started.pid, started.stdout.readline().decode(), flush=True)
time.sleep(1000)
"""


def test_what_a_killed_process_has_started_is_ended():
    command = [sys.executable, "-c", STARTER, Path(__file__).parent]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        left = [int(pid) for pid in process.stdout.readline().split()]
        assert len(left) == 2
        assert all(map(is_running, left))
        process.kill()
    wait_until(lambda: not any(map(is_running, left)))


def test_that_holds_for_these_tests():
    assert any(name.startswith("SHIFTPROOF_TESTS_") for name in os.environ)


def test_a_process_beside_which_nothing_happens_is_killed(monkeypatch):
    monkeypatch.setattr(processes, "HANG", 0)
    with subprocess.Popen(["sleep", "1000"]) as process, pytest.raises(AssertionError, match="nothing happened in 0 s"):
        wait_until(lambda: False, process)
    assert process.returncode == -signal.SIGKILL
