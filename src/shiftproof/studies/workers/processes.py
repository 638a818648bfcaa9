"""A pool of worker processes that survives the death of a worker and ends with its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Generic

from tqdm import tqdm

from shiftproof.base.processes import START_METHOD, adopt, end_with_parent
from shiftproof.studies.workers.retries import NodeError, Retries, Task, TaskOutcome, attempt


class WorkerStartError(ChildProcessError):
    """Worker processes die before they can take a task."""

    def __init__(self, exit_code: int | None) -> None:
        super().__init__(
            f"worker processes die while starting (exit code {exit_code}); a script that runs a study must do so "
            'under `if __name__ == "__main__":`, because workers import it too'
        )


class _Worker(Generic[Task]):
    """A process that does one task at a time."""

    def __init__(self, work: Callable[[Task], Any]) -> None:
        context: Any = multiprocessing.get_context(START_METHOD)
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work, dict(os.environ)), daemon=True)
        with _interrupts_ignored():  # the process inherits this, because the parent handles interrupts
            self.process.start()
        theirs.close()
        self.index: int | None = None
        self.ready = False

    def start(self, index: int, task: Task) -> None:
        self.index = index
        with suppress(OSError):  # if the worker has just died, outcome() will notice
            self.connection.send(task)

    def outcome(self) -> TaskOutcome | None:
        """Return the outcome of the current task, None while there is none.

        Raises:
            EOFError: the process ended without an outcome.
            NodeError: the task raised it.
        """
        alive = self.process.is_alive()  # checked before polling, so that a dead worker's last message is not missed
        if not self.connection.poll():
            if alive:
                return None
            raise EOFError
        message = self.connection.recv()
        if message is None:
            self.ready = True
            return None
        value, error = message
        if isinstance(error, NodeError):
            raise error
        index, self.index = self.index, None
        assert index is not None  # noqa: S101  (an outcome answers a task)
        return TaskOutcome(index, value, error)

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()
        self.connection.close()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # others get no signals and cannot set handlers
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _serve(connection: Connection, work: Callable[[Any], Any], environment: Mapping[str, str]) -> None:
    end_with_parent()
    adopt(environment)
    tqdm.set_lock(threading.RLock())  # its own has a semaphore, which is reported as leaked if `stop` ends the process
    connection.send(None)  # ready
    while True:
        connection.send(attempt(work, connection.recv()))


def run_tasks(
    work: Callable[[Task], Any], tasks: Sequence[Task], jobs: int, attempts: int = 3
) -> Generator[TaskOutcome, None, None]:
    """Do the tasks in parallel processes and yield their outcomes as they come.

    Workers stay alive between tasks. A task that raises or whose worker dies is retried after the others.

    Args:
        work: a function at the top level of a module; an exception that it raises becomes the task's error.
        tasks: picklable values.
        jobs: number of processes.
        attempts: how often a task may raise or kill its worker before it counts as failed.

    Raises:
        WorkerStartError: ``attempts`` workers in a row died while starting.
        NodeError: a task raised it.
    """
    retries = Retries(len(tasks), attempts)
    failed_starts = 0
    workers: list[_Worker[Task]] = [_Worker(work) for _ in range(min(jobs, len(tasks)))]
    try:
        remaining = len(tasks)
        while remaining:
            for i, worker in enumerate(workers):
                if worker.index is None and retries.waiting:
                    if not worker.process.is_alive():  # it died between tasks, through no fault of theirs
                        worker.stop()
                        workers[i] = worker = _Worker(work)
                    index = retries.waiting.popleft()
                    worker.start(index, tasks[index])
            busy = [worker for worker in workers if worker.index is not None]
            wait([source for worker in busy for source in (worker.connection, worker.process.sentinel)])
            for worker in busy:
                try:
                    outcome = worker.outcome()
                except NodeError:
                    raise
                except (EOFError, OSError):
                    worker.process.join(1)  # its end of the pipe closes a moment before the process ends
                    worker.stop()
                    failed_starts = 0 if worker.ready else failed_starts + 1
                    if failed_starts == attempts:
                        raise WorkerStartError(worker.process.exitcode) from None
                    outcome = _death(worker)
                    workers[workers.index(worker)] = _Worker(work)
                # a worker that dies while starting has not seen its task
                if outcome is None or (final := retries.final(outcome, counts=worker.ready)) is None:
                    continue
                remaining -= 1
                yield final
    finally:
        for worker in workers:
            worker.stop()


def _death(worker: _Worker[Any]) -> TaskOutcome:
    assert worker.index is not None  # noqa: S101  (only busy workers are looked at)
    return TaskOutcome(worker.index, None, f"its worker process ended with exit code {worker.process.exitcode}")
