"""How worker processes start and end, whatever they work on."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import wait

START_METHOD = "forkserver" if sys.platform == "linux" else "spawn"
"""Workers are forked from a server, a process of its own that has imported what they need and computed nothing: a start
takes milliseconds where the imports take seconds, and no thread of torch is copied half-way. Elsewhere than on Linux
forking is not safe once system libraries are loaded."""


def preload(module: str) -> None:
    """Let the server import a module when it starts, which is before the first worker; later it changes nothing."""
    if START_METHOD == "forkserver":
        multiprocessing.set_forkserver_preload([module])


def adopt(environment: Mapping[str, str]) -> None:
    """Take the environment variables of the process that asked for this one; the server's are those of its start."""
    if dict(os.environ) != environment:
        os.environ.clear()
        os.environ.update(environment)


def end_with_parent() -> None:
    """Let this process end with the one that started it, also one killed, and while it computes or waits for others."""
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(starter: int) -> None:
    parent = multiprocessing.parent_process()  # None where it was started by other means, as by torchrun
    while os.getppid() == starter:  # which is the server, if it was forked from one
        if parent is None:
            time.sleep(1)
        elif wait([parent.sentinel], timeout=1):
            break
    os._exit(1)
