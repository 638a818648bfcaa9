"""Runs that differ in their averaging only and are trained together end as if each had been trained alone."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from shiftproof.base.choices import Averaging
from shiftproof.training import RunPlace, StepBuilder, read_result, train, train_together
from shiftproof.training.callbacks import EndStopped, Runs
from shiftproof.training.callbacks import averaging as averaging_module
from shiftproof.training.callbacks import checkpoints as checkpoints_module
from shiftproof.training.checkpoint import held_runs
from shiftproof.training.progress import Progress
from training.killed import Killed, train_killed_at
from training.test_averaged_runs import DIES

CPU = torch.device("cpu")
ALL = get_args(Averaging)
FILES = ("metrics.jsonl", "model.safetensors", "model.json", "predictions.npz")


@pytest.fixture
def dies(monkeypatch):
    """Validation losses that end both forms of SWAD at step 28."""
    monkeypatch.setattr(averaging_module, "validation_loss", lambda record, targets: DIES[record["step"] // 2 - 1])


def _places(folder, spec, averagings=ALL):
    return [RunPlace(replace(spec, averaging=name), folder / name) for name in averagings]


def _without_times(result):
    return {**result, "seconds": None, "shared": None}


def _train_left(runs, data, **more):
    """Train those of the runs that have not ended, as a study does."""
    left = [run for run in runs if read_result(run.folder) is None]
    train_together(left, data, device=CPU, **more)


def _assert_same(one, other, averagings=ALL):
    for name in averagings:
        results = [_without_times(read_result(folder / name)) for folder in (one, other)]
        assert results[0] == results[1]
        for file in FILES:
            assert (one / name / file).read_bytes() == (other / name / file).read_bytes()
        assert not (one / name / "checkpoint.pt").exists()


@pytest.fixture
def spec(make_spec):
    return make_spec(steps=32, checkpoint_freq=2)


def test_every_run_ends_as_alone_while_every_step_is_taken_once(spec, digits, dies, tmp_path):
    steps = []
    runs = _places(tmp_path / "together", spec)
    results = train_together(runs, digits, device=CPU, on_progress=lambda step, loss: steps.append(step))
    assert steps == list(range(1, 33))
    assert [result["spec"]["averaging"] for result in results] == list(ALL)
    assert [result["shared"] for result in results] == [len(ALL)] * len(ALL)
    assert {result["spec"]["averaging"]: result["steps"] for result in results} == {
        "none": 32, "ema": 32, "sma": 32, "bma": 32, "swad": 28, "swad_released": 28, "wise_ft": 32, "dfr": 32
    }  # fmt: skip
    for run in _places(tmp_path / "alone", spec):
        assert "shared" not in train(run.spec, digits, run.folder, device=CPU)
    _assert_same(tmp_path / "together", tmp_path / "alone")


@pytest.mark.parametrize("every", ["evaluation", "step"])
def test_a_kill_resumes_all_of_them_exactly(every, spec, digits, dies, tmp_path, monkeypatch):
    if every == "step":
        monkeypatch.setattr(checkpoints_module, "CHECKPOINT_SECONDS", 0.0)
    train_together(_places(tmp_path / "a", spec), digits, device=CPU)
    runs = _places(tmp_path / "b", spec)
    for kill in (2, 9, 27, 28, 31):
        begun = []

        def stop(step, loss, kill=kill, begun=begun):
            begun.append(step)
            if step == kill:
                raise Killed

        with pytest.raises(Killed):
            _train_left(runs, digits, on_progress=stop)
        assert begun[0] > 1 or kill <= 9
    ended = [run.spec.averaging for run in runs if read_result(run.folder) is not None]
    assert ended == ["swad", "swad_released"]  # at step 28
    _train_left(runs, digits)
    assert [read_result(run.folder)["shared"] for run in runs] == [len(ALL)] * len(ALL)
    _assert_same(tmp_path / "b", tmp_path / "a")


@pytest.mark.parametrize(
    "averaging",
    ["swad", *(pytest.param(one, marks=pytest.mark.slow) for one in ("swad_released", "none", "wise_ft", "dfr"))],
)
def test_a_kill_while_one_of_them_ends_resumes_all_exactly(averaging, spec, digits, dies, tmp_path, monkeypatch):
    train_together(_places(tmp_path / "a", spec), digits, device=CPU)
    runs = _places(tmp_path / "b", spec)
    scored, keep = [], averaging_module.keep_model

    def kill(loop, folder):
        scored.append(loop.spec.averaging)
        if loop.spec.averaging == averaging:
            raise Killed
        keep(loop, folder)

    with monkeypatch.context() as patch:
        patch.setattr(averaging_module, "keep_model", kill)
        patch.setattr("shiftproof.training.callbacks.selection.keep_model", kill)
        with pytest.raises(Killed):
            _train_left(runs, digits)
    assert scored[-1] == averaging
    steps = []
    _train_left(runs, digits, on_progress=lambda step, loss: steps.append(step))
    assert steps == ([29, 30, 31, 32] if "swad" in averaging else [])
    _assert_same(tmp_path / "b", tmp_path / "a")


def test_runs_begin_again_together_if_the_checkpoint_lacks_one_of_them(spec, digits, tmp_path):
    alone, other = _places(tmp_path, spec, ("none", "ema"))
    train_killed_at(9, alone.spec, digits, alone.folder)
    assert held_runs(alone.folder / "checkpoint.pt", alone.spec.name) == {alone.spec.name}
    steps = []
    results = train_together([alone, other], digits, device=CPU, on_progress=lambda step, loss: steps.append(step))
    assert steps[0] == 1
    assert len({result["weights_sha256"] for result in results}) == 1
    assert not list(tmp_path.glob("*/checkpoint.pt"))


def test_a_run_continues_alone_from_the_checkpoint_of_several(spec, digits, tmp_path):
    runs = _places(tmp_path / "b", spec, ("ema", "none"))

    def kill(step, loss):
        if step == 9:
            raise Killed

    with pytest.raises(Killed):
        train_together(runs, digits, device=CPU, on_progress=kill)
    [place] = [run for run in runs if (run.folder / "checkpoint.pt").exists()]
    steps = []
    train(place.spec, digits, place.folder, device=CPU, on_progress=lambda step, loss: steps.append(step))
    assert steps[0] == 9
    train(place.spec, digits, tmp_path / "a" / place.spec.averaging, device=CPU)
    _assert_same(tmp_path / "b", tmp_path / "a", [place.spec.averaging])


def test_a_divergence_fails_those_that_still_train(spec, digits, dies, tmp_path, monkeypatch):
    take = StepBuilder.take
    monkeypatch.setattr(
        StepBuilder,
        "take",
        lambda self, batches, step: take(self, batches, step) / (step != 30),  # a division by zero
    )
    results = train_together(_places(tmp_path, spec), digits, device=CPU)
    by_averaging = {result["spec"]["averaging"]: result for result in results}
    for name in ("swad", "swad_released"):
        assert (by_averaging[name]["status"], by_averaging[name]["steps"]) == ("finished", 28)
    for name in ("none", "ema", "sma", "bma", "wise_ft", "dfr"):
        result = by_averaging[name]
        assert (result["status"], result["steps"]) == ("failed", 29)
        assert result["error"].endswith("at step 30")
        assert read_result(tmp_path / name) == json.loads(json.dumps(result))
    assert not list(tmp_path.glob("*/checkpoint.pt"))


def test_runs_that_differ_in_more_are_refused(spec, digits, tmp_path):
    runs = [RunPlace(spec, tmp_path / "a"), RunPlace(replace(spec, optimizer="sgd"), tmp_path / "b")]
    with pytest.raises(ValueError, match="may differ in their averaging only"):
        train_together(runs, digits, device=CPU)


def test_the_time_of_steps_is_divided_among_the_runs_that_still_train():
    first, second = (SimpleNamespace(progress=Progress(), callbacks=(), stopped=False) for _ in range(2))
    loop, runs = SimpleNamespace(progress=Progress(), stopped=False), Runs([first, second])
    ends = EndStopped(runs)
    for callback in (runs, ends):
        callback.on_start(loop)
    loop.progress.seconds["step"] = 8.0
    for callback in (runs, ends):
        callback.on_pause(loop)
    loop.progress.seconds["checkpoints"] = 2.0
    first.stopped = True
    for callback in (runs, ends):
        callback.on_pause(loop)
    loop.progress.seconds["step"] = 11.0
    second.progress.seconds["evaluation"] = 5.0  # its own
    runs.on_end(loop)
    assert first.progress.seconds == {"data": 0.0, "step": 4.0, "evaluation": 0.0, "checkpoints": 1.0}
    assert second.progress.seconds == {"data": 0.0, "step": 7.0, "evaluation": 5.0, "checkpoints": 1.0}
    assert (first.shared, second.shared) == (2, 2)
