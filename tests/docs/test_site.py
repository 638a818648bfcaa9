"""The built site: it names every public name, needs no network, and is found and read in a browser, also on a phone."""

import os
import subprocess
import sys
import zlib
from importlib import import_module
from pathlib import Path

import pytest

from docs.pages import DOCS, ROOT, exported

pytestmark = pytest.mark.xdist_group("site")  # it is built once
OTHERS = {"shiftproof.data.downloads": "data", "shiftproof.training.tracking": "training"}
"""Folders inside others whose names are public too, with the page that has them."""
FOLDERS = {
    f"shiftproof.{init.parent.name}": init.parent.name
    for init in sorted((ROOT / "src" / "shiftproof").glob("*/__init__.py"))
    if exported(init)
} | OTHERS


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `make docs` does, with no network to be reached."""
    folder = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def inventory(site):
    """The page of every name in the API, by the name."""
    lines = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode().splitlines()
    return {line.split(" ")[0]: line.split(" ")[3].split("#")[0] for line in lines}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_public_name_is_in_the_api(inventory, folder):
    page = f"reference/api/{FOLDERS[folder]}.html"
    missing = []
    for name in import_module(folder).__all__:
        value = getattr(import_module(folder), name)
        own = (
            f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"  # of names that modules have too
        )
        if page not in (inventory.get(f"{folder}.{name}"), inventory.get(own)):
            missing.append(name)
    assert missing == [], f"{page} lacks them, or they have no docstring"


def test_the_names_of_the_package_itself_are_in_the_api(inventory):
    for name in ("import_plugins", "load"):
        assert inventory[f"shiftproof.{name}"] == "reference/api/index.html"


def test_formulas_are_drawn(site):
    text = (site / "reference" / "api" / "algorithms.html").read_text(encoding="utf-8")
    assert text.count("<math ") > 100
    for page in (site / "reference" / "api").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert ":math:" not in text, page
        assert ".. math::" not in text, page
        formulas = [part.split("</math>")[0] for part in text.split("<math ")[1:]]
        assert [one for one in formulas if "\\" in one] == []  # a command that was not converted


def test_pages_fit_the_screen(open_page, site):
    page = open_page(site / "index.html")
    for file in sorted(site.rglob("*.html")):
        if file.name == "404.html":  # a server's, which has the site at its root
            continue
        page.goto(file.as_uri(), wait_until="load")
        for width in (1280, 400):
            page.set_viewport_size({"width": width, "height": 844})
            page.wait_for_function("width => document.documentElement.scrollWidth <= width", arg=width)
            cut = page.locator("article :is(p, li, h1, h2, h3):not(table *)").evaluate_all(
                "all => all.filter(one => one.getBoundingClientRect().right > innerWidth).map(one => one.textContent)"
            )
            assert cut == [], file  # text outside tables is never cut


@pytest.mark.parametrize("width", [1280, 400])
def test_the_search_finds_pages_without_a_server(open_page, site, width):
    page = open_page(site / "index.html", width)
    if width < 1000:
        page.locator("label[for=__search].md-header__button").click()
    page.locator("input.md-search__input").click()
    page.locator("input.md-search__input").press_sequentially("GENIEAdamW")
    page.locator(".md-search-result__item").first.wait_for()
    links = page.locator(".md-search-result__link").evaluate_all("all => all.map(one => one.href)")
    assert any("reference/api/optim.html" in link for link in links)
    assert all(Path(link.removeprefix("file://").split("#")[0].split("?")[0]).is_file() for link in links)


def test_the_folders_of_the_package_have_a_page():
    assert {f"{page}.md" for page in FOLDERS.values()} | {"index.md", "base.md"} == {
        page.name for page in (DOCS / "reference" / "api").glob("*.md")
    }
