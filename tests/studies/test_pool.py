import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from shiftproof.studies.pool import NodeError, run_tasks


def double(value):
    if value == 13:
        raise ValueError("unlucky")
    return 2 * value, os.getpid()


def die_once(path):
    """Kill the own process at the first call."""
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def die(code):
    os._exit(code)


def test_values_and_errors_come_with_their_task_and_workers_stay():
    outcomes = sorted(run_tasks(double, [1, 13, 3, 4, 5], jobs=2))
    assert [outcome.task for outcome in outcomes] == [0, 1, 2, 3, 4]
    assert [outcome.error for outcome in outcomes] == [None, "ValueError: unlucky (tried 3 times)", None, None, None]
    assert [outcome.value[0] for outcome in outcomes if outcome.value] == [2, 6, 8, 10]
    assert len({outcome.value[1] for outcome in outcomes if outcome.value}) <= 2


def break_once(path):
    """Raise at the first call."""
    if not path.exists():
        path.touch()
        raise OSError("the disk is away")
    return "done"


def test_a_task_that_raises_is_done_again_after_the_others(tmp_path):
    outcomes = list(run_tasks(break_once, [tmp_path / "a", tmp_path / "b"], jobs=1))
    assert [(outcome.value, outcome.error) for outcome in outcomes] == [("done", None)] * 2


def lack(path):
    """Raise what says that this machine can do no task."""
    with path.open("a") as file:
        file.write("tried\n")
    raise NodeError(f"node a does not reach {path}")


def test_a_machine_that_can_do_no_task_ends_them_all_at_once(tmp_path):
    with pytest.raises(NodeError, match=f"node a does not reach {tmp_path / 'a'}"):
        list(run_tasks(lack, [tmp_path / "a", tmp_path / "b"], jobs=1))
    assert (tmp_path / "a").read_text() == "tried\n"
    assert not (tmp_path / "b").exists()


def test_a_task_whose_worker_dies_is_done_again(tmp_path):
    outcomes = list(run_tasks(die_once, [tmp_path / "a", tmp_path / "b"], jobs=2))
    assert [(outcome.value, outcome.error) for outcome in outcomes] == [("done", None)] * 2


def test_a_task_that_keeps_killing_workers_fails_with_its_reason():
    outcomes = list(run_tasks(die, [7], jobs=1, attempts=2))
    assert [outcome.error for outcome in outcomes] == ["its worker process ended with exit code 7 (tried 2 times)"]


def test_workers_that_cannot_start_end_it_with_the_reason(tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(
        "import time\nfrom shiftproof.studies.pool import run_tasks\nlist(run_tasks(time.sleep, [0], 1))\n"
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert ended.returncode != 0
    assert 'a script that runs a study must do so under `if __name__ == "__main__":`' in ended.stderr


def kill_itself_after(seconds):
    """End with a value, and die a moment later, between tasks."""
    threading.Timer(seconds, os._exit, [9]).start()
    return seconds


def test_a_worker_that_dies_between_tasks_is_replaced():
    outcomes = []
    for outcome in run_tasks(kill_itself_after, [0.05, 0.05, 0.05], jobs=1):
        outcomes.append(outcome)
        time.sleep(0.3)
    assert [(outcome.value, outcome.error) for outcome in outcomes] == [(0.05, None)] * 3


def test_no_tasks_need_no_workers():
    assert list(run_tasks(double, [], jobs=2)) == []


def test_workers_end_with_their_parent():
    code = """
import time
from shiftproof.studies.pool import run_tasks
if __name__ == "__main__":
    list(run_tasks(time.sleep, [600, 600], jobs=2))
"""
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        children = []
        deadline = time.monotonic() + 60
        while len(children) < 3 and time.monotonic() < deadline:  # two workers and multiprocessing's tracker
            with open(f"/proc/{parent.pid}/task/{parent.pid}/children") as file:
                children = file.read().split()
            time.sleep(0.05)
        time.sleep(1)
        parent.kill()
    deadline = time.monotonic() + 30
    while any(_running(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_running(child) for child in children)


def _running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Scripted:
    """Work whose starts and tries end one after another as its script says, and are written down in a file."""

    def __init__(self, record, script):
        self.record, self.script = record, script

    def __setstate__(self, state):  # in the worker, while it starts
        self.__dict__ = state
        self._next()

    def __call__(self, name):
        return self._next(name)

    def _next(self, name="start"):
        with self.record.open("a") as file:
            file.write(f"{name}\n")
        match self.script[len(self.record.read_text().splitlines()) - 1]:
            case "die":
                os._exit(3)
            case "raise":
                raise ValueError("unlucky")


def test_a_task_has_as_many_tries_as_it_may_and_pays_for_no_start(tmp_path):
    """Two starts fail too, but not in a row."""
    work = Scripted(tmp_path / "record", ["die", "go on", "die", "die", "go on", "raise", "go on"])
    outcomes = list(run_tasks(work, ["a"], jobs=1, attempts=2))
    assert [outcome.error for outcome in outcomes] == ["ValueError: unlucky (tried 2 times)"]
    assert work.record.read_text().split() == ["start", "start", "a", "start", "start", "a"]
