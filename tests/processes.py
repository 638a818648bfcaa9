"""Starts the processes of a distributed test, and ends them when they are stuck."""

import os
import signal
import subprocess
import sys


def run_processes(file, *arguments, limit):
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
        return process.communicate(timeout=limit)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return f"stuck after {limit} s\n{process.communicate()[0]}"
