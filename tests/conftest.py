import gc
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from processes import end_what_is_left
from shared_data import PACS
from shiftproof.base.processes import preload
from shiftproof.training.ranks.launch import PRELOADED

Tree = Mapping[str, Mapping[str, list[str]]]
BROWSER_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_configure() -> None:
    end_what_is_left()
    preload(PRELOADED)  # whichever test starts the first worker: most train in theirs


def pytest_collection_finish() -> None:
    # Building a GENIE collects garbage, for the seeds of dropped ones. Looking through all that was imported would take
    # most of the time of its tests.
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # what is left at the end would be reported as leaked


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium")
    if chromium is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI opens pages in a browser, and there is no chromium")
        pytest.skip("there is no chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=BROWSER_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """A function that opens a page from its file; in the end nothing may have failed or asked the network."""
    pages, problems, requests = [], [], []

    def open_file(file: Path, width: int = 1280, **options: Any) -> Any:
        page = browser.new_page(viewport={"width": width, "height": 844}, **options)
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(request.url))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.as_uri(), wait_until="load")
        pages.append(page)
        return page

    yield open_file
    for page in pages:
        page.close()
    assert problems == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


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
