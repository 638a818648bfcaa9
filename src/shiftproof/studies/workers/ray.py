"""Tasks on a Ray cluster, like `processes.run_tasks` in processes on this machine."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from shiftproof.base.extras import require
from shiftproof.studies.workers.retries import NodeError, Retries, Task, TaskOutcome, attempt

LOOK_SECONDS = 10
"""Time in seconds between looks at the nodes while no task ends."""


@dataclass(frozen=True)
class RayCluster:
    """A Ray cluster that trains runs, and the resources that each run reserves.

    Attributes:
        address: address of a running cluster, as ``ray.init`` takes it; None for one on this machine alone, which is
            started for the study and ends with it.
        cpus_per_run: CPUs that a run reserves.
        gpus_per_run: GPUs that a run reserves, at most one; with a fraction, several runs share a GPU.
        jobs: number of runs trained at a time; None for as many as the resources allow.

    Raises:
        ValueError: a number is out of its range.
    """

    address: str | None = None
    cpus_per_run: int = 1
    gpus_per_run: float = 0.0
    jobs: int | None = None

    def __post_init__(self) -> None:
        if not _is_count(self.cpus_per_run):
            raise ValueError(f"CPUs per run must be a whole number above 0, not {self.cpus_per_run!r}")
        if not isinstance(self.gpus_per_run, (int, float)) or not 0 <= self.gpus_per_run <= 1:
            raise ValueError(f"GPUs per run must be between 0 and 1, because a run has one, not {self.gpus_per_run!r}")
        if self.jobs is not None and not _is_count(self.jobs):
            raise ValueError(f"jobs must be a whole number above 0, not {self.jobs!r}")

    def check(self, device: str) -> None:
        """Raise ValueError unless Ray is installed and can give a run this device."""
        require("ray", "ray", "Ray")
        kind, _, number = device.partition(":")
        if number:
            raise ValueError(f"Ray chooses the device of a run: give the kind alone, {kind}, not {device}")
        if kind == "cuda" and self.gpus_per_run == 0:
            raise ValueError("runs on cuda must reserve a GPU or a part of one, not 0")
        if kind == "cpu" and self.gpus_per_run > 0:
            raise ValueError(f"runs on the CPU use no GPU: leave out the {self.gpus_per_run:g} GPUs per run")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def run_on_ray(
    work: Callable[[Task], Any], tasks: Sequence[Task], cluster: RayCluster, attempts: int = 3
) -> Generator[TaskOutcome, None, None]:
    """Do the tasks on a cluster and yield their outcomes as they come.

    A task that raises or whose worker dies is retried after the others. So is a task whose node dies, but that does
    not count as an attempt, because it was not the task's fault. Tasks wait until a node has the resources for them.

    Args:
        work: a function at the top level of a module that every node can import; an exception that it raises becomes
            the task's error, with the node's name.
        tasks: picklable values.
        cluster: the cluster, and the resources that a task reserves.
        attempts: how often a task may raise or kill its worker before it counts as failed.

    Raises:
        OSError: there is no connection to the cluster.
        NodeError: a task raised it, or a node cannot import the work.
        ValueError: the cluster started here lacks the resources that a task reserves.
    """
    if not tasks:
        return
    import ray

    retries, running = Retries(len(tasks), attempts), dict[Any, int]()
    with _connected(cluster.address):
        lack = f"no node of the cluster has {cluster.cpus_per_run} CPUs and {cluster.gpus_per_run:g} GPUs for a run"
        if cluster.address is None and not _places(cluster):
            raise ValueError(lack)
        remote: Any = ray.remote(_attempt).options(
            num_cpus=cluster.cpus_per_run, num_gpus=cluster.gpus_per_run, max_retries=0, name=work.__name__
        )
        told = False
        try:
            while retries.waiting or running:
                places = _places(cluster)
                if not places and not told:
                    print(f"{lack} now; waiting for one", file=sys.stderr)
                told = not places
                # more tasks than places, so that new nodes find work and autoscaling clusters see demand
                limit = 2 * max(places, 1) if cluster.jobs is None else cluster.jobs
                while retries.waiting and len(running) < limit:
                    index = retries.waiting.popleft()
                    running[remote.remote(work, tasks[index])] = index
                done, _ = ray.wait(list(running), num_returns=1, timeout=LOOK_SECONDS)
                if not done:
                    continue
                index = running.pop(done[0])
                try:
                    value, error = ray.get(done[0])
                except (ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError):  # the node took the value along
                    retries.waiting.append(index)
                    continue
                except ray.exceptions.RayTaskError as crash:  # not from `work`, whose errors `attempt` catches
                    raise NodeError(f"a node cannot begin a task: {_reason(crash)}") from crash
                except ray.exceptions.RayError as crash:
                    value, error = None, str(crash).partition("\n")[0]
                if isinstance(error, NodeError):
                    raise error
                if (final := retries.final(TaskOutcome(index, value, error))) is not None:
                    yield final
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _attempt(work: Callable[[Task], Any], task: Task) -> tuple[Any, str | NodeError | None]:
    return attempt(work, task, f" (on node {socket.gethostname()})")


def _reason(crash: Exception) -> str:
    """Return the last line of a traceback as Ray prints it, the cause, followed by the first, the place."""
    lines = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", str(crash)).splitlines() if line.strip()]
    return f"{lines[-1]}, in {lines[0]}"


def _places(cluster: RayCluster) -> int:
    """Return how many tasks the living nodes can do at a time."""
    import ray

    places = 0
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            has = node["Resources"]
            here = int(has.get("CPU", 0) // cluster.cpus_per_run)
            if cluster.gpus_per_run > 0:
                here = min(here, int(has.get("GPU", 0)) * int(1 / cluster.gpus_per_run))  # no task spans two GPUs
            places += here
    return places


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one here that ends with the connection."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report usage by default
    import ray

    try:
        # without "local", Ray would join a cluster that an earlier process left behind, dead or alive
        ray.init(address or "local", include_dashboard=None if address else False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        where = "start Ray" if address is None else f"connect to the Ray cluster at {address}"
        raise OSError(f"cannot {where}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()
