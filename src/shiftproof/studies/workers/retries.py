"""Tasks that are done again where they failed, wherever they are done."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

Task = TypeVar("Task")


class TaskOutcome(NamedTuple):
    """How a task ended: its number and its value, or the error that it raised or that ended its worker."""

    task: int
    value: Any
    error: str | None


class NodeError(OSError):
    """The machine that a task came to can do none: it is not the task's fault, and ends them all."""


class Retries:
    """The tasks that wait to be done, among them those that failed and are done again after the others.

    Args:
        tasks: how many there are; they are known by their number.
        attempts: how often a task may fail before that is its outcome.

    Attributes:
        waiting: the numbers of the tasks that wait.
    """

    def __init__(self, tasks: int, attempts: int) -> None:
        self.waiting = deque(range(tasks))
        self._attempts = attempts
        self._failures: Counter[int] = Counter()

    def final(self, outcome: TaskOutcome, *, counts: bool = True) -> TaskOutcome | None:
        """Return the outcome of a task if it is its last; None if the task waits to be done again.

        Args:
            outcome: of one attempt.
            counts: whether a failure says something of the task; one that does not is followed by another attempt.
        """
        if outcome.error is None:
            return outcome
        self._failures[outcome.task] += counts
        if self._failures[outcome.task] < self._attempts:
            self.waiting.append(outcome.task)
            return None
        return outcome._replace(error=f"{outcome.error} (tried {self._attempts} times)")


def attempt(work: Callable[[Task], Any], task: Task, where: str = "") -> tuple[Any, str | NodeError | None]:
    """Do a task and return its value, or its error as text; of a `NodeError`, the error itself.

    Args:
        work: does the task.
        task: what it takes.
        where: what is said of the place after an error.
    """
    try:
        return work(task), None
    except NodeError as error:
        return None, error
    except Exception as error:  # whatever a task raises is its outcome; the others go on
        return None, f"{type(error).__name__}: {error}{where}"
