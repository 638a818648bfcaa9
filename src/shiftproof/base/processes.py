"""Starting and ending worker processes, whatever work they do."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import wait

START_METHOD = "forkserver" if sys.platform == "linux" else "spawn"
"""On Linux, workers are forked from a server process that has imported their modules but computed nothing. A start then
takes milliseconds instead of the seconds that the imports take, and no running thread of torch is copied. On other
systems forking is not safe once system libraries are loaded."""


def preload(module: str) -> None:
    """Make the server import a module when it starts; this has no effect once the first worker has started."""
    if START_METHOD == "forkserver":
        multiprocessing.set_forkserver_preload([module])


def adopt(environment: Mapping[str, str]) -> None:
    """Take over the environment variables of the process that asked for this one; the server's may be out of date."""
    if dict(os.environ) != environment:
        os.environ.clear()
        os.environ.update(environment)


def end_with_parent() -> None:
    """End this process when its parent ends, even if the parent is killed or this process is busy or waiting."""
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(starter: int) -> None:
    parent = multiprocessing.parent_process()  # None if multiprocessing did not start it, as under torchrun
    while os.getppid() == starter:  # under the fork server, the starter is the server, not the parent
        if parent is None:
            time.sleep(1)
        elif wait([parent.sentinel], timeout=1):
            break
    os._exit(1)
