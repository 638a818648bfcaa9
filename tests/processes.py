"""Starts the processes of tests, waits for what they do, and ends those that are stuck or left."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

HANG = 1500  # seconds after which what is waited for is taken not to come, on the slowest machine


def wait_until(happened, process=None):
    """Wait until a function returns something true, and return it; false if a process ended first.

    A process beside which nothing happens is killed, so that nobody waits for its end.
    """
    deadline = time.monotonic() + HANG
    while not (result := happened()):
        if process is not None and _has_ended(process):
            return happened()  # it may have happened at the end
        if time.monotonic() >= deadline:
            if process is not None:
                process.kill()
            raise AssertionError(f"nothing happened in {HANG} s")
        time.sleep(0.01)
    return result


def _has_ended(process):
    return (process.poll() if isinstance(process, subprocess.Popen) else process.exitcode) is not None


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def heed_interrupts():
    """Let a process, before it is begun, end by interrupts: what a shell runs in the background ignores them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


REAPER = """
import os, signal, sys
mark = sys.argv[1].encode() + b"="
sys.stdin.read()  # until the other end is closed, by whatever
found = True
while found:
    found = False
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                marked = mark in file.read()
            if marked and int(pid) != os.getpid():
                os.kill(int(pid), signal.SIGKILL)
                found = True
        except OSError:
            pass
"""


def end_what_is_left():
    """Let all processes that this one starts from now on, and theirs, be killed when it ends, however that is.

    They are found by a variable of their environment. Linux only.
    """
    if not Path("/proc/self/environ").exists():
        return
    mark = f"SHIFTPROOF_TESTS_{uuid.uuid4().hex}"
    command = [sys.executable, "-S", "-c", REAPER, mark]
    # the variable is set after: not the reaper's
    reaper = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    end_what_is_left.reapers.append(reaper)  # open as long as this process runs
    os.environ[mark] = "1"


end_what_is_left.reapers = []


def run_processes(file, *arguments):
    """Run a worker's file and return what it printed, after a line that says so where it was stuck."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    process = subprocess.Popen(
        [sys.executable, file, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        return process.communicate(timeout=HANG)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return f"stuck after {HANG} s\n{process.communicate()[0]}"
