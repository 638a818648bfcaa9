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


def test_commands_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?make ([a-z-]+)`?", README.read_text(encoding="utf-8")):
        assert f"\n{target}:" in makefile
    for name in re.findall(r"\]\((docs/[^)]+)\)", README.read_text(encoding="utf-8")):
        assert (ROOT / name).is_file()
