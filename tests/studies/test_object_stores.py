"""Studies and runs on file systems that have no locks, as object stores are, and claims on those that have."""

import errno
import fcntl
import json
import os
import threading
from functools import partial
from pathlib import Path

import pytest
import torch

import shiftproof
from shiftproof.base.files import is_local, output_path, write_bytes
from shiftproof.cli import main
from shiftproof.data import DATASETS
from shiftproof.studies import Study, make_plan, read_results, read_status, run_study
from shiftproof.studies.runner import RunTask, execute
from shiftproof.studies.store import Store, claim, claim_run
from shiftproof.studies.workers import NodeError
from shiftproof.tables import as_csv, write_csv
from shiftproof.training import RunPlace, train

upath = pytest.importorskip("upath", reason="universal-pathlib is not installed")

STUDY = Study(optimizers=("sgd", "genie"), targets=("0",), trials=1, steps=6, fixed={"data.batch_size": 4})


def elsewhere(folder):
    """A folder as a file system without locks."""
    return upath.UPath(folder.as_uri())


def test_a_text_names_a_folder_or_a_place_elsewhere():
    assert output_path("runs/a b") == Path("runs/a b")
    assert output_path("file:///data/a%20b") == Path("/data/a b")
    place = output_path("memory://bucket/study")
    assert not is_local(place)
    assert str(place / "runs") == "memory://bucket/study/runs"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("file://runs/a", "not of the form file:///folder"),
        ("s4://bucket/a", "s4://bucket/a cannot be used"),
    ],
)
def test_what_names_no_place_is_refused(text, reason, capsys):
    with pytest.raises(ValueError, match=reason):
        output_path(text)
    with pytest.raises(SystemExit):
        main(["study", "status", text])
    assert reason in capsys.readouterr().err


def test_commands_that_need_a_folder_say_so(capsys):
    with pytest.raises(SystemExit):
        main(["figure", "balance", "--output", "memory://bucket/figures"])
    assert "expected a folder on this machine, not memory://bucket/figures" in capsys.readouterr().err


def test_trackers_elsewhere_are_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="trackers write beside the runs"):
        run_study(STUDY, elsewhere(tmp_path), 1, trackers=("tensorboard",))
    one = ["train", "--target", "0", "--steps", "1", "--track", "tensorboard", "--output", "memory://bucket/tracked"]
    assert main(one) == 1
    assert "trackers write beside the runs" in capsys.readouterr().err
    assert not output_path("memory://bucket/tracked").exists()


def _task(spec, folder):
    return RunTask((RunPlace(spec, folder),), "rotated_digits", None, None, "cpu")


def test_a_study_elsewhere_ends_as_one_here(tmp_path):
    there = elsewhere(tmp_path / "there")
    results = run_study(STUDY, there, 1, on_end=partial(write_csv, output=there))
    for spec in results.plan.distinct:
        [here] = execute(_task(spec, tmp_path / "here" / spec.name))
        assert results.result(spec)["weights_sha256"] == here["weights_sha256"]
        assert results.result(spec)["metrics"] == here["metrics"]
    assert Store(there).missing(results.plan) == []
    status = read_status(there)
    assert (status.finished.total(), status.working) == (2, None)
    assert "2 of 2 runs finished, 0 failed, 0 begun, 0 waiting; a process may be working on it" in status.text()
    assert as_csv(read_results(there)) == (tmp_path / "there" / "table.csv").read_text()
    assert not list((tmp_path / "there").rglob(".lock"))


def test_a_study_whose_workers_do_not_reach_its_output_ends_and_says_so(tmp_path):
    place = output_path(f"memory://{tmp_path.name}")
    with pytest.raises(NodeError, match="does not reach the output: there is no memory://"):
        run_study(STUDY, place, 1)  # every process has a memory of its own
    assert not (place / "runs").exists()  # no run is recorded as failed


def test_a_run_in_memory_is_killed_and_continues_bit_for_bit(tmp_path):
    [spec, _] = make_plan(STUDY).distinct
    digits = DATASETS["rotated_digits"].open(None, None)
    whole = train(spec, digits, tmp_path, device=torch.device("cpu"))

    def kill(step, loss):
        if step == 4:
            raise KeyboardInterrupt

    place = output_path(f"memory://{tmp_path.name}/run")
    with pytest.raises(KeyboardInterrupt):
        train(spec, digits, place, device=torch.device("cpu"), on_progress=kill)
    assert (place / "checkpoint.pt").exists()
    begun = []
    result = train(spec, digits, place, device=torch.device("cpu"), on_progress=lambda step, loss: begun.append(step))
    assert begun[0] > 1
    assert result["weights_sha256"] == whole["weights_sha256"]
    assert json.loads((place / "result.json").read_text())["metrics"] == whole["metrics"]
    assert not (place / "checkpoint.pt").exists()
    images = torch.zeros(2, *digits.input_shape)
    here, there = shiftproof.load(tmp_path), shiftproof.load(str(place))
    assert torch.equal(here(here.normalise(images)), there(there.normalise(images)))


def test_content_is_put_whole_in_place_of_the_old():
    place = output_path("memory://bucket/file")
    write_bytes(place, b"a longer content")
    write_bytes(place, b"new")
    assert place.read_bytes() == b"new"


def test_a_run_that_another_process_trains_is_waited_for_and_not_trained_again(tmp_path, monkeypatch, capsys):
    plan, store = make_plan(STUDY), Store(tmp_path)
    [spec, _] = plan.distinct
    task = _task(spec, store.folder(spec))
    [trained] = execute(task)
    record = (store.folder(spec) / "result.json").read_bytes()
    (store.folder(spec) / "result.json").unlink()
    monkeypatch.setattr("shiftproof.studies.runner.train_together", lambda *_, **__: pytest.fail("it is trained twice"))
    results = []
    with claim_run(store.folder(spec)):
        second = threading.Thread(target=lambda: results.append(execute(task)))
        second.start()
        second.join(0.5)
        assert second.is_alive()
        assert results == []
        write_bytes(store.folder(spec) / "result.json", record)  # the first ends its run
    second.join(10)
    assert [result["weights_sha256"] for [result] in results] == [trained["weights_sha256"]]
    assert "another process is training the run in" in capsys.readouterr().err


def test_a_failure_does_not_replace_what_another_process_ended(tmp_path):
    store = Store(tmp_path)
    [spec, other] = make_plan(STUDY).distinct
    task = _task(spec, store.folder(spec))
    [trained] = execute(task)
    assert store.record_failure(spec, "the disk is away")["weights_sha256"] == trained["weights_sha256"]
    assert store.result(spec)["status"] == "finished"
    assert store.record_failure(other, "the disk is away")["error"] == "the disk is away"
    assert store.record_failure(other, "the network is away")["error"] == "the network is away"
    assert store.result(other)["error"] == "the network is away"


def test_the_error_of_a_run_is_not_replaced_by_that_of_writing_it_down(tmp_path, monkeypatch):
    [spec, _] = make_plan(STUDY).distinct
    task = _task(spec, tmp_path / "run")

    def fail(*_, **__):
        (tmp_path / "run" / "error.txt").mkdir()  # so that no such file can be written
        raise RuntimeError("the disk is full")

    monkeypatch.setattr("shiftproof.studies.runner.train_together", fail)
    with pytest.raises(RuntimeError, match="the disk is full"):
        execute(task)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_refused(number, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(ValueError, match=f"cannot be written: the file system of {tmp_path} has no locks"),
        claim(tmp_path),
    ):
        pytest.fail("it is claimed")
    with pytest.raises(OSError, match=f"the file system of {tmp_path} has no locks"), claim_run(tmp_path):
        pytest.fail("it is claimed")
