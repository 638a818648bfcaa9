"""Trackers through the command line."""

import sys

import pytest

from shiftproof.cli import main

RUN = ["train", "--target", "30", "--steps", "2", "--set", "data.batch_size=4"]
STUDY = [
    "compare",
    "--dataset",
    "rotated_digits",
    "--optimizers",
    "sgd",
    "adam",
    "--targets",
    "0",
    "45",
    "--trials",
    "1",
    "--steps",
    "2",
]


def test_one_run_is_tracked(tmp_path):
    pytest.importorskip("tensorboard")
    assert main([*RUN, "--output", str(tmp_path / "run"), "--track", "tensorboard"]) == 0
    assert len(list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))) == 1


@pytest.mark.parametrize("command", [RUN, STUDY])
def test_nothing_is_begun_with_a_tracker_that_cannot_be_used(command, tmp_path, capsys, monkeypatch):
    output = tmp_path / "out"
    assert main([*command, "--output", str(output), "--track", "tensorbord"]) == 1
    assert "Did you mean tensorboard? Valid names: tensorboard, mlflow, wandb" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main([*command, "--output", str(output), "--track", "wandb"]) == 1
    assert "W&B is not installed: pip install 'shiftproof[wandb]'" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.slow
def test_the_runs_of_a_study_are_told_apart_in_one_database(tmp_path, monkeypatch):
    """Two workers make the database and the experiment at the same time."""
    mlflow = pytest.importorskip("mlflow")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    assert (
        main([*STUDY, "--set", "data.batch_size=4", "--jobs", "2", "--output", str(tmp_path), "--track", "mlflow"]) == 0
    )
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("shiftproof").experiment_id])
    tags = sorted((run.data.tags["method"], run.data.tags["target"], run.data.tags["trial"]) for run in runs)
    assert tags == [(method, target, "0") for method in ("erm + adam", "erm + sgd") for target in ("0", "45")]
    assert {(run.info.status, run.data.tags["study"], run.data.tags["setting"]) for run in runs} == {
        ("FINISHED", runs[0].data.tags["study"], "0")
    }
