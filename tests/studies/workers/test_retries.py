from shiftproof.studies.workers import NodeError
from shiftproof.studies.workers.retries import Retries, TaskOutcome, attempt


def test_a_task_that_fails_waits_behind_the_others_and_fails_for_good_at_last():
    retries = Retries(3, attempts=2)
    first = retries.waiting.popleft()
    assert retries.final(TaskOutcome(first, None, "no luck")) is None
    assert list(retries.waiting) == [1, 2, 0]
    assert retries.final(TaskOutcome(first, None, "again")) == TaskOutcome(0, None, "again (tried 2 times)")
    assert list(retries.waiting) == [1, 2, 0]


def test_each_task_has_attempts_of_its_own_and_a_value_ends_it():
    retries = Retries(2, attempts=2)
    assert retries.final(TaskOutcome(0, None, "no luck")) is None
    assert retries.final(TaskOutcome(1, None, "no luck")) is None
    assert retries.final(TaskOutcome(0, "done", None)) == TaskOutcome(0, "done", None)


def test_a_failure_that_says_nothing_of_its_task_does_not_count():
    retries = Retries(1, attempts=1)
    for _ in range(3):
        assert retries.final(TaskOutcome(0, None, "its worker could not start"), counts=False) is None
    assert retries.final(TaskOutcome(0, None, "no luck")) == TaskOutcome(0, None, "no luck (tried 1 times)")


def test_an_attempt_gives_a_value_an_error_as_text_or_a_node_error():
    def fail(error):
        raise error

    assert attempt(len, "abc") == (3, None)
    assert attempt(fail, ValueError("unlucky"), " (on node a)") == (None, "ValueError: unlucky (on node a)")
    _, error = attempt(fail, NodeError("no disk"))
    assert isinstance(error, NodeError)
