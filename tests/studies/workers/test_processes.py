import os
import signal
import subprocess
import sys

import pytest

from processes import is_running, wait_until
from shiftproof.studies.workers import NodeError, run_tasks


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


_COUNTS_WITH_A_BAR = """
import io
from shiftproof.studies.workers import run_tasks
from tqdm import tqdm

def count(number):
    return sum(tqdm(range(number), file=io.StringIO()))

if __name__ == "__main__":
    print(sorted(outcome.value for outcome in run_tasks(count, [3, 4], jobs=2)))
"""


def test_nothing_is_said_of_workers_that_had_a_progress_bar(tmp_path):
    script = tmp_path / "count.py"
    script.write_text(_COUNTS_WITH_A_BAR)
    found = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert (found.stdout, found.stderr) == ("[3, 6]\n", "")


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
        "import time\nfrom shiftproof.studies.workers import run_tasks\n"
        "list(run_tasks(time.sleep, [0], 1, attempts=2))\n"
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert ended.returncode != 0
    assert 'a script that runs a study must do so under `if __name__ == "__main__":`' in ended.stderr


def own_process(_):
    return os.getpid()


def test_a_worker_that_dies_between_tasks_is_replaced():
    workers = []
    for outcome in run_tasks(own_process, [1, 2, 3], jobs=1):
        assert outcome.error is None
        workers.append(outcome.value)
        os.kill(outcome.value, signal.SIGKILL)
        wait_until(lambda pid=outcome.value: not is_running(pid))
    assert len(set(workers)) == 3


def test_no_tasks_need_no_workers():
    assert list(run_tasks(double, [], jobs=2)) == []


def test_workers_end_with_their_parent(tmp_path):
    code = f"""
import sys
sys.path[:0] = {sys.path}
from pathlib import Path
from shiftproof.studies.workers import run_tasks
from studies.workers.test_processes import stay
if __name__ == "__main__":
    list(run_tasks(stay, [Path({str(tmp_path)!r})] * 2, jobs=2))
"""
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        workers = wait_until(lambda: len(found := list(tmp_path.iterdir())) == 2 and found, parent)
        parent.kill()
    wait_until(lambda: not any(is_running(worker.name) for worker in workers))


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


def stay(folder):
    """Say which process this is, and work for ever."""
    (folder / str(os.getpid())).touch()
    signal.pause()
