"""`--weights hub`: a study with published weights is that with their file, whose content names its runs."""

import json
from pathlib import Path

import pytest
import timm
import torch

from shiftproof.base.field_error import FieldError
from shiftproof.cli import main
from shiftproof.data import open_features
from shiftproof.models import HUB, hub, hub_weights, weights_fingerprint
from shiftproof.studies import Study, make_plan, plan_run, read_plan, read_study

MODEL, NAME = "test_resnet", "hub: timm/test_resnet.r160_in1k"
SIDE = 64
pytestmark = pytest.mark.usefixtures("opened_anew")


@pytest.fixture
def downloads(monkeypatch):
    """The downloads that there were; each gives a network of a fixed random start."""
    made = []

    def downloaded(published):
        made.append(published.name)
        torch.manual_seed(5)
        return timm.create_model(MODEL).state_dict()

    monkeypatch.setattr(hub, "_downloaded", downloaded)
    return made


@pytest.fixture
def shapes(image_tree):
    files = [f"{i}.png" for i in range(5)]
    return image_tree({domain: dict.fromkeys(("cat", "dog"), files) for domain in ("art", "photo", "sketch")})


def _study(shapes, **fields):
    return Study(
        **{
            "datasets": ("folder",), "data_dir": shapes, "kind": "photographs", "image_size": SIDE, "model": MODEL,
            "optimizers": ("sgd",), "trials": 1, "steps": 2, "checkpoint_freq": 2, "targets": ("photo",),
            "weights": HUB, "fixed": {"data.batch_size": 2}, **fields,
        }
    )  # fmt: skip


def test_runs_are_those_of_the_file(shapes, downloads, capsys):
    [spec] = make_plan(_study(shapes)).runs
    file = hub_weights(MODEL)
    assert spec.weights == weights_fingerprint(file)
    assert downloads == ["timm/test_resnet.r160_in1k"]  # once
    said = capsys.readouterr().err.splitlines()
    assert f"{NAME}: licence apache-2.0; kept in {file}" in said
    assert f"{NAME}: normalisation half, as the file states; set normalisation to override this" in said
    again = make_plan(_study(shapes, weights=file))
    assert [one.name for one in again.runs] == [spec.name]
    assert again.grids[0].terms["weights"] == NAME
    assert plan_run(_study(shapes), 0, 0).name == spec.name


def test_a_comparison_trains_from_published_weights_in_workers(shapes, downloads, tmp_path, capsys):
    options = (
        f"compare --dataset folder --data-dir {shapes} --kind photographs --image-size {SIDE} --model {MODEL} "
        f"--weights hub --optimizers sgd adam --trials 1 --steps 2 --checkpoint-freq 2 --batch-size 2 --targets photo "
        f"--jobs 2 --output {tmp_path / 'store'}"
    ).split()
    assert main(options) == 0
    printed = capsys.readouterr().out
    assert f"weights {NAME}" in printed
    grid = read_plan(tmp_path / "store").grids[0]
    assert {spec.weights for spec in grid.runs} == {weights_fingerprint(hub_weights(MODEL))}
    assert downloads == ["timm/test_resnet.r160_in1k"]
    run = tmp_path / "store" / "runs" / grid.runs[0].name
    assert json.loads((run / "result.json").read_text())["status"] == "finished"
    assert main(["diagnose", str(run), "--what", "sharpness", "--data-dir", str(shapes), "--weights", "hub"]) == 0


def test_features_of_published_weights_say_so(shapes, downloads, tmp_path):
    options = f"encode --dataset folder --data-dir {shapes} --kind photographs --image-size {SIDE} --model {MODEL} "
    assert main([*options.split(), "--weights", "hub", "--output", str(tmp_path / "features")]) == 0
    fingerprint = weights_fingerprint(hub_weights(MODEL))
    assert f"weights {NAME} ({fingerprint}), pictures of" in open_features(tmp_path / "features").encoder


def test_a_study_file_may_name_the_hub(tmp_path, shapes, downloads):
    text = f"name: mine\ndatasets: [folder]\ndata_dir: {shapes}\nmodel: {MODEL}\nweights: hub\n"
    (tmp_path / "mine.yaml").write_text(text)
    study, _ = read_study(tmp_path / "mine.yaml", "paper", {})
    assert study.weights == HUB
    assert downloads == []  # nothing is downloaded to read a study
    assert study.weights_file == hub_weights(MODEL)


def test_weights_come_before_pictures(shapes, monkeypatch):
    def unreachable(published):
        raise FieldError("weights", "there is no network")

    monkeypatch.setattr(hub, "_downloaded", unreachable)
    (shapes / "art" / "cat" / "0.png").write_text("no image")
    for plan in (make_plan, lambda study: plan_run(study, 0, 0)):
        with pytest.raises(FieldError, match="there is no network"):
            plan(_study(shapes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--weights hub", "--weights: no model is named: name the one whose published weights to take"),
        ("--weights hub --model small_lenet", "--weights: no published weights of model 'small_lenet' are known"),
        (
            "--weights hub --model resnet18",
            "--weights: the weights torchvision/ResNet18_Weights.IMAGENET1K_V1 are not on this machine, and "
            "download.pytorch.org cannot be reached (no network)",
        ),
    ],
)
def test_what_is_wrong_names_the_option(options, message, shapes, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(hub, "_answer", lambda address: "no network")
    given = f"compare --dataset folder --data-dir {shapes} --kind photographs --output {tmp_path / 'store'} {options}"
    assert main(given.split()) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"shiftproof: error: {message}")
    assert not (tmp_path / "store").exists()


def test_a_file_is_a_file_as_before(tmp_path):
    assert Study(model="resnet18", weights=Path("elsewhere/hub")).weights_file == Path("elsewhere/hub")
    assert Study().weights_file is None
