"""The page in a browser: complete, without errors or requests, and readable on a phone."""

import os
import shutil

import pytest

from shiftproof.report import write_report

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    if chromium is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI opens the report in a browser, and there is no chromium")
        pytest.skip("there is no chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(write_store, hostile_study, tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    write_store(hostile_study, root, failed=(4,), missing=(11,))
    return write_report(hostile_study, root)


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_opens_without_errors_and_fits_the_screen(browser, report, tmp_path, width):
    page = browser.new_page(viewport={"width": width, "height": 844})
    problems, requests = [], []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(request.url))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri(), wait_until="load")

    assert page.locator("h1").inner_text() == 'a "set" <b>: 3 methods on unseen domains'
    for text in ("erm + sgd", "erm + genie", "42.0 ± 1.0", "failed"):
        assert page.locator("#accuracy").get_by_text(text).first.is_visible()
    images = page.locator("figure img")
    assert images.count() == 3 * 2
    assert images.evaluate_all("images => images.every(image => image.complete && image.naturalWidth > 0)")
    page.locator("summary").first.click()
    assert page.get_by_text("The same in all:").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    scrolling = page.locator(".scroll").evaluate_all("boxes => boxes.some(box => box.scrollWidth > box.clientWidth)")
    assert scrolling == (width == 390)  # a table wider than the screen scrolls in its own box

    page.screenshot(path=tmp_path / f"report_{width}.png", full_page=True)
    assert (tmp_path / f"report_{width}.png").stat().st_size > 10_000
    assert problems == []
    assert [url for url in requests if not url.startswith(("data:", "file:"))] == []
    page.close()
