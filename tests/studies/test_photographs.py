"""The comparison on folders of photographs, small, and on the real ones where they are."""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from shared_data import SQUEEZENET
from shiftproof.cli import main
from shiftproof.data import DATASETS, split_domain


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SHIFTPROOF_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tree(tmp_path):
    random = np.random.default_rng(0)
    for domain in ("ink", "oil", "photo"):
        for shade, name in enumerate(("bright", "dark")):
            folder = tmp_path / "shades" / domain / name
            folder.mkdir(parents=True)
            for i in range(8):
                pixels = random.integers(0, 128, (20, 24, 3), dtype=np.uint8) + 100 * (1 - shade)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "shades"


def _compare(*options):
    return main(["compare", "--trials", "1", "--optimizers", "adam", "--jobs", "1", "--steps", "2", *options])


def test_a_folder_is_compared_and_trained_once(tree, tmp_path, capsys):
    options = ["--dataset", "folder", "--data-dir", str(tree), "--model", "squeezenet1_1", "--image-size", "32"]
    options += ["--batch-size", "2", "--profile", "--output", str(tmp_path / "out")]
    assert _compare(*options) == 0
    printed = capsys.readouterr().out
    assert "dataset shades" in printed
    assert "image size 32" in printed
    assert "time: data" in printed
    rows = [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    assert [row["target"] for row in rows] == ["ink", "oil", "photo"]
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("runs/*/result.json")}
    assert _compare(*options) == 0
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("runs/*/result.json")}
    assert main(["evaluate", str(tmp_path / "out" / "runs" / rows[0]["run"]), "--data-dir", str(tree)]) == 0
    assert "oil: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data-dir", "nowhere"], "nowhere"),
        (["--image-size", "8"], "'squeezenet1_1' cannot take images of 8 x 8 pixels"),
        (["--weights", "none.safetensors"], "none.safetensors"),
        (["--split", "group"], "unknown split 'group'. Did you mean grouped"),
        (["--split", "grouped"], "shades has no groups to split by"),
        (["--model", "resnet18.foo"], "unknown model 'resnet18.foo'. Did you mean resnet18"),
        (["--image-size", "1"], "image_size must be at least 2 pixels"),
    ],
)
def test_bad_input_is_refused(tree, tmp_path, options, message, capsys):
    given = ["--dataset", "folder", "--data-dir", str(tree), "--model", "squeezenet1_1", "--image-size", "32"]
    assert _compare(*given, *options, "--output", str(tmp_path / "out")) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_damaged_image_is_named(tree, tmp_path, capsys):
    (tree / "oil" / "dark" / "3.png").write_bytes(b"")
    given = ["--dataset", "folder", "--data-dir", str(tree), "--model", "squeezenet1_1", "--image-size", "32"]
    assert _compare(*given, "--output", str(tmp_path / "out")) == 1
    assert f"{tree / 'oil' / 'dark' / '3.png'}: the file is empty" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_that_do_not_fit_are_named(tree, tmp_path, capsys):
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "wrong.safetensors")
    given = ["--dataset", "folder", "--data-dir", str(tree), "--model", "squeezenet1_1", "--image-size", "32"]
    assert _compare(*given, "--weights", str(tmp_path / "wrong.safetensors"), "--output", str(tmp_path / "out")) == 1
    error = capsys.readouterr().err
    assert "wrong.safetensors" in error
    assert "features.0.weight" in error


def test_a_difference_from_the_published_set_is_reported_once(tree, tmp_path):
    tree.rename(tree.parent / "VLCS")
    command = [sys.executable, "-m", "shiftproof", "compare", "--dataset", "VLCS", "--data-dir", str(tree.parent)]
    options = "--model squeezenet1_1 --image-size 32 --batch-size 2 --steps 1 --trials 1 --optimizers adam"
    command += [*options.split(), "--jobs", "2", "--output", str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stderr.count("is not the published data set") == 1
    assert "shiftproof: warning: VLCS in" in ended.stderr


def test_pacs_keeps_drawings_of_one_photograph_together_in_a_grouped_split(pacs_folder):
    dataset = DATASETS["PACS"].open(pacs_folder.parent, 16)
    sketch = dataset.domains[3]
    split = split_domain(sketch, "grouped", 0, 3)
    assert not set(sketch.groups[split.in_]) & set(sketch.groups[split.out])
    assert len(split.out) == pytest.approx(0.2 * 3929, abs=2)
    assert max(Counter(sketch.groups.tolist()).values()) > 1
    parted = split_domain(sketch, "random", 0, 3)
    assert len(parted.out) == 785
    assert set(sketch.groups[parted.in_]) & set(sketch.groups[parted.out])


@pytest.mark.slow
@pytest.mark.skipif(not SQUEEZENET.is_file(), reason="the weights are not here")
def test_pacs_with_imagenet_weights_learns(pacs_folder, tmp_path):
    """A hundred steps of Adam from ImageNet weights beat chance (the largest class is 26 %) on unseen photographs."""
    options = ["--dataset", "PACS", "--data-dir", str(pacs_folder.parent), "--model", "squeezenet1_1"]
    options += ["--weights", str(SQUEEZENET), "--image-size", "112", "--batch-size", "8", "--targets", "photo"]
    options += [
        "--steps",
        "100",
        "--checkpoint-freq",
        "100",
        "--set",
        "optimizer.lr=1e-4",
        "--output",
        str(tmp_path / "out"),
    ]
    assert _compare(*options) == 0
    row = json.loads((tmp_path / "out" / "runs.jsonl").read_text())
    assert row["selection"]["training_domain"]["accuracy"] > 0.5
