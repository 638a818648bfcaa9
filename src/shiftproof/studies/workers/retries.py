"""Retries of failed tasks, for processes and for Ray."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

Task = TypeVar("Task")


class TaskOutcome(NamedTuple):
    """The end of a task: its number and its value, or the error that it raised or that killed its worker."""

    task: int
    value: Any
    error: str | None


class NodeError(OSError):
    """A machine cannot do any task. This is not the task's fault, so it is not retried and stops all tasks."""


class Retries:
    """The queue of waiting tasks, to whose end failed tasks return.

    Args:
        tasks: number of tasks; each is identified by its number.
        attempts: how often a task may fail before the failure is its outcome.

    Attributes:
        waiting: the numbers of the waiting tasks.
    """

    def __init__(self, tasks: int, attempts: int) -> None:
        self.waiting = deque(range(tasks))
        self._attempts = attempts
        self._failures: Counter[int] = Counter()

    def final(self, outcome: TaskOutcome, *, counts: bool = True) -> TaskOutcome | None:
        """Return the outcome of a task if it is final; None if the task waits for another attempt.

        Args:
            outcome: the outcome of one attempt.
            counts: whether a failure counts as one of the task's attempts.
        """
        if outcome.error is None:
            return outcome
        self._failures[outcome.task] += counts
        if self._failures[outcome.task] < self._attempts:
            self.waiting.append(outcome.task)
            return None
        return outcome._replace(error=f"{outcome.error} (tried {self._attempts} times)")


def attempt(work: Callable[[Task], Any], task: Task, where: str = "") -> tuple[Any, str | NodeError | None]:
    """Do a task and return its value, or its error as text; a `NodeError` is returned itself.

    Args:
        work: does the task.
        task: its argument.
        where: a text appended to an error, to name the place.
    """
    try:
        return work(task), None
    except NodeError as error:
        return None, error
    except Exception as error:  # becomes the task's outcome, while other tasks go on
        return None, f"{type(error).__name__}: {error}{where}"
