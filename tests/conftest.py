from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from processes import end_what_is_left
from shared_data import PACS
from shiftproof.base.processes import preload
from shiftproof.training.ranks.launch import PRELOADED

Tree = Mapping[str, Mapping[str, list[str]]]


def pytest_configure() -> None:
    end_what_is_left()
    preload(PRELOADED)  # whichever test starts the first worker: most train in theirs


def pytest_runtest_setup(item: pytest.Item) -> None:
    torch.manual_seed(0)  # a test that sets no seed draws the same numbers whichever tests ran before it in its process
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")


@pytest.fixture(scope="session")
def pacs_folder() -> Path:
    """The real PACS, beside the checkout where there is one."""
    if not PACS.is_dir():
        pytest.skip("PACS is not here")
    return PACS


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
