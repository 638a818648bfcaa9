from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Tree = Mapping[str, Mapping[str, list[str]]]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    monkeypatch.setenv("SHIFTPROOF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def image_tree(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes `{domain: {class: [file, ...]}}` as small images of different noise."""

    def write(tree: Tree, name: str = "shapes") -> Path:
        random = np.random.default_rng(0)
        for domain, classes in tree.items():
            for class_name, files in classes.items():
                folder = tmp_path / name / domain / class_name
                folder.mkdir(parents=True)
                for file in files:
                    pixels = random.integers(0, 256, (9, 12, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / file)
        return tmp_path / name

    return write
