"""What the driver of a Ray cluster decides, against a made-up Ray that does tasks at once in this process."""

import socket
from types import SimpleNamespace

import pytest

from shiftproof.cli import main
from shiftproof.studies import RayCluster, Study, make_plan, run_study
from shiftproof.studies.plan import PLAN_FILE
from shiftproof.studies.runner import RunTask, execute_elsewhere
from shiftproof.studies.workers import NodeError, run_on_ray
from shiftproof.training import RunPlace

ray = pytest.importorskip("ray", reason="Ray is not installed")

ELSEWHERE = RayCluster("10.0.0.1:6379")


class MadeUpRay:
    """The cluster's CPUs are those of the moment; the last is for ever. Without any, nothing is done."""

    def __init__(self):
        self.cpus = [1]
        self.looks = 0
        self.tasks = []
        self.cancelled = []
        self.ended = None

    def nodes(self):
        self.looks += 1
        return [{"Alive": True, "Resources": {"CPU": self.cpus[min(self.looks, len(self.cpus)) - 1]}}]

    def remote(self, function):
        def submit(*arguments):
            self.tasks.append(lambda: function(*arguments))
            return self.tasks[-1]

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=submit))

    def wait(self, tasks, num_returns, timeout):
        assert (num_returns, timeout is not None) == (1, True)
        return (tasks[:1], tasks[1:]) if self.cpus[min(self.looks, len(self.cpus)) - 1] else ([], tasks)

    def get(self, task):
        if self.ended is not None:
            raise self.ended
        return task()


@pytest.fixture
def cluster(monkeypatch):
    made_up = MadeUpRay()
    for name in ("nodes", "remote", "wait", "get"):
        monkeypatch.setattr(ray, name, getattr(made_up, name))
    monkeypatch.setattr(ray, "init", lambda *_, **__: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "cancel", lambda task, force: made_up.cancelled.append(task))
    return made_up


def double(value):
    if value == 13:
        raise NodeError("node b does not reach the data folder: there is no /data")
    return 2 * value


def test_tasks_wait_for_a_node_that_a_cluster_does_not_have_yet_and_it_is_said_once(cluster, capsys):
    cluster.cpus = [0, 0, 0, 1]
    assert [outcome.value for outcome in run_on_ray(double, [1, 2], ELSEWHERE)] == [2, 4]
    waiting = "no node of the cluster has 1 CPUs and 0 GPUs for a run now; waiting for one\n"
    assert capsys.readouterr().err == waiting


def test_it_is_said_again_when_all_nodes_die_again(cluster, capsys):
    cluster.cpus = [1, 0, 1, 0, 1]
    assert len(list(run_on_ray(double, [1, 2, 3, 4], RayCluster("10.0.0.1:6379", jobs=1)))) == 4
    assert capsys.readouterr().err.count("waiting for one") == 2


def test_a_cluster_that_is_started_here_and_has_no_such_node_is_refused(cluster):
    cluster.cpus = [0]
    with pytest.raises(ValueError, match=r"no node of the cluster has 1 CPUs and 0 GPUs for a run$"):
        list(run_on_ray(double, [1], RayCluster()))


def test_a_study_on_gpus_needs_none_where_its_driver_is(cluster, tmp_path):
    study = Study(steps=2, device="cuda")
    with pytest.raises(ValueError, match="no node of the cluster has 1 CPUs and 1 GPUs for a run"):
        run_study(study, tmp_path, RayCluster(gpus_per_run=1))


def test_a_node_that_lacks_something_ends_the_study_at_once(cluster):
    outcomes = run_on_ray(double, [1, 13, 3, 4], RayCluster("10.0.0.1:6379", jobs=2))
    assert next(outcomes).value == 2
    with pytest.raises(NodeError, match="node b does not reach the data folder: there is no /data"):
        next(outcomes)
    assert len(cluster.tasks) == 3  # 13 was not tried again
    assert cluster.cancelled == cluster.tasks[2:]


def test_a_task_has_as_many_tries_as_it_may_and_pays_for_no_node(cluster, monkeypatch):
    deaths, tried = [ray.exceptions.NodeDiedError("node b died")] * 2, []

    def get(task):
        if deaths:
            raise deaths.pop()
        return task()

    def fail(value):
        tried.append(value)
        raise OSError("the disk is away")

    monkeypatch.setattr(ray, "get", get)
    [outcome] = run_on_ray(fail, [7], ELSEWHERE, attempts=2)
    assert outcome.error.startswith("OSError: the disk is away")
    assert outcome.error.endswith("(tried 2 times)")
    assert tried == [7, 7]


def test_a_node_that_cannot_import_the_work_is_named_with_the_reason(cluster):
    traceback = "Traceback (most recent call last):\n  File a\nModuleNotFoundError: No module named 'mine'\n"
    cause = ray.exceptions.RayTaskError(
        "double", traceback, RuntimeError(), proctitle="ray::double", pid=7, ip="10.0.0.9"
    )
    cluster.ended = cause
    expected = r"No module named 'mine', in ray::double\(\) \(pid=7, ip=10.0.0.9\)"
    with pytest.raises(NodeError, match=expected) as caught:
        list(run_on_ray(double, [1], ELSEWHERE))
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("what", ["the output", "the data folder", "the weights", "the class vectors"])
def test_what_a_node_does_not_reach_is_named(what, tmp_path):
    paths = {name: tmp_path / name for name in ("the output", "the data folder", "the weights", "the class vectors")}
    for name, path in paths.items():
        path.mkdir()
        if name == "the output" != what:
            (path / PLAN_FILE).touch()
    if what != "the output":
        paths[what] = tmp_path / "away"
    spec = make_plan(Study(steps=2)).distinct[0]
    folder = paths["the output"] / "runs" / spec.name
    runs = (RunPlace(spec, folder),)
    places = {"data_dir": paths["the data folder"], "weights": paths["the weights"]}
    task = RunTask(runs, "rotated_digits", device="cpu", class_vectors=paths["the class vectors"], **places)
    lacking = paths[what] / PLAN_FILE if what == "the output" else paths[what]
    with pytest.raises(NodeError) as caught:
        execute_elsewhere(task)
    assert str(caught.value) == f"node {socket.gethostname()} does not reach {what}: there is no {lacking}"
    assert not folder.exists()


def test_a_node_without_the_device_is_named(tmp_path):
    (tmp_path / PLAN_FILE).touch()
    spec = make_plan(Study(steps=2)).distinct[0]
    runs = (RunPlace(spec, tmp_path / "runs" / spec.name),)
    task = RunTask(runs, "rotated_digits", None, None, "cuda:77")
    with pytest.raises(NodeError, match=f"node {socket.gethostname()}: device cuda:77 is not available here"):
        execute_elsewhere(task)


def test_a_cluster_that_is_not_there_is_named(tmp_path, capsys):
    options = ["--steps", "2", "--output", str(tmp_path), "--backend", "ray", "--address", "nowhere"]
    assert main(["compare", "--dataset", "rotated_digits", *options]) == 1
    assert "cannot connect to the Ray cluster at nowhere: Invalid address format" in capsys.readouterr().err
