"""The README's Python blocks run, in order, as a reader would run them."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from shiftproof.algorithms import ALGORITHMS
from shiftproof.cli import main

README = Path(__file__).parents[1] / "README.md"
ROOT = README.parent


def _blocks(file=README):
    return re.findall(r"```python\n(.*?)```", file.read_text(encoding="utf-8"), re.DOTALL)


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ALGORITHMS, "_entries", dict(ALGORITHMS._entries))
    train = ["train", "--target", "75", "--steps", "2", "--batch-size", "2", "--output"]
    assert main([*train, "runs/one"]) == 0
    loop, record, use, algorithm, study = _blocks()
    assert len([line for line in loop.splitlines() if line.strip()]) <= 10  # "the library in ten lines"
    names = {"picture": Image.fromarray(np.zeros((30, 20), dtype=np.uint8))}
    exec(loop, names)  # noqa: S102
    assert names["loss"] < 0.5
    exec(record, names)  # noqa: S102
    assert [one["step"] for one in names["recorder"].records] == list(range(1, 51, 5))
    exec(use, names)  # noqa: S102
    assert names["logits"].shape == (1, 10)
    exec(algorithm, names)  # noqa: S102
    body = algorithm[algorithm.index("class ") : algorithm.index("ALGORITHMS.register")]
    assert len([line for line in body.splitlines() if line.strip()]) <= 10  # "a new algorithm in ten lines"
    assert main([*train, "runs/two", "--algorithm", "worst_domain", "--set", "algorithm.mean_weight=0.5"]) == 0
    small = study.replace("steps=300, trials=3", 'steps=2, trials=1, targets=("0",)')
    assert small != study
    (tmp_path / "script.py").write_text(algorithm + small, encoding="utf-8")
    (tmp_path / "worst_domain.py").write_text(algorithm, encoding="utf-8")
    listed = [sys.executable, "-m", "shiftproof", "list", "algorithms", "worst", "--import", "worst_domain.py"]
    printed = subprocess.run(listed, capture_output=True, text=True, check=True).stdout
    assert "mean_weight: 0.1; searched 0.01 to 1, log-uniform" in printed
    printed = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, check=True).stdout
    assert "worst_domain + genie" in printed


def test_python_blocks_of_the_guide_run(capsys):
    names = {}
    for block in _blocks(ROOT / "docs" / "explanation" / "genie.md"):
        exec(block, names)  # noqa: S102
    factor, noisy, kept = map(float, capsys.readouterr().out.split())
    assert 0 < factor <= 1
    assert (noisy, kept) == (0, 1)  # GENIEAdamW has no noise, and by default no mask


def test_python_blocks_of_the_multi_pass_guide_run():
    names = {}
    for block in _blocks(ROOT / "docs" / "explanation" / "multipass.md"):
        exec(block, names)  # noqa: S102
    assert 0 < names["loss"].item() < 2


def test_the_python_block_of_the_diagnostics_guide_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in _blocks(ROOT / "docs" / "how_to" / "diagnostics.md"):
        exec(block, names)  # noqa: S102
    assert {line.split(":")[0] for line in capsys.readouterr().out.splitlines()} == {
        "osgr", "osgr_frozen", "transfer", "transfer_frozen"
    }  # fmt: skip
    assert (tmp_path / "recorded.svg").stat().st_size


def test_python_blocks_of_the_guide_to_models_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train = ["train", "--target", "75", "--steps", "2", "--batch-size", "2", "--output", "runs/one"]
    assert main(train) == 0
    (tmp_path / "new_pictures").mkdir()
    for path in ("picture.png", "new_pictures/a.png", "new_pictures/b.png"):
        Image.fromarray(np.zeros((30, 20), dtype=np.uint8)).save(path)
    assert main(["export", "runs/one", "--output", "model.pt2"]) == 0
    capsys.readouterr()
    names = {}
    for block in _blocks(ROOT / "docs" / "using_a_model.md"):
        exec(block, names)  # noqa: S102
    one, first, second, shape = capsys.readouterr().out.splitlines()
    assert first == f"new_pictures/a.png {one} None"
    assert second == f"new_pictures/b.png {one} None"
    assert shape == "torch.Size([5, 10])"


def test_commands_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?make ([a-z-]+)`?", README.read_text(encoding="utf-8")):
        assert f"\n{target}:" in makefile
    for name in re.findall(r"\]\((docs/[^)]+)\)", README.read_text(encoding="utf-8")):
        assert (ROOT / name).is_file()
