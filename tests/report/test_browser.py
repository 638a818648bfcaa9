"""The page in a browser: complete, without errors or requests, readable on a phone, and its tables sort."""

import pytest
from tests.report.pages import DASH, MINUS

from shiftproof.optim.registry import OPTIMIZERS
from shiftproof.report import write_report
from shiftproof.studies import Study, make_plan


@pytest.fixture(scope="module")
def report(write_store, hostile_plan, tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    return write_report(write_store(hostile_plan, root, failed=(4,), missing=(11,)), root)


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_opens_without_errors_and_fits_the_screen(open_page, report, tmp_path, width):
    page = open_page(report, width)
    assert page.locator("h1").inner_text() == 'a "set" <b>: 3 methods on unseen domains'
    for text in ("erm + sgd", "erm + genie", "42.0 ± 1.0", "failed"):
        assert page.locator("#accuracy").get_by_text(text).first.is_visible()
    images = page.locator("figure img")
    assert images.count() == 3 * 2
    assert images.evaluate_all("images => images.every(image => image.complete && image.naturalWidth > 0)")
    page.locator("summary", has_text="erm + sgd").first.click()
    assert page.get_by_text("The same in all:").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = page.locator(".scroll:not(:has(> .runs))")
    scrolling = boxes.evaluate_all("boxes => boxes.some(box => box.scrollWidth > box.clientWidth)")
    assert scrolling == (width == 390)  # a table wider than the screen scrolls in its own box

    page.screenshot(path=tmp_path / f"report_{width}.png", full_page=True)
    assert (tmp_path / f"report_{width}.png").stat().st_size > 10_000


@pytest.fixture(scope="module")
def several(write_store, absent_plan, tmp_path_factory):
    root = tmp_path_factory.mktemp("several")
    return write_report(write_store(absent_plan, root, failed=(4,), missing=(7,)), root)


@pytest.mark.parametrize("width", [1280, 390])
def test_several_data_sets_fit_the_screen(several, open_page, width):
    page = open_page(several, width)
    for table in ("accuracy", "published", "accuracy-PACS", "rules-PACS"):
        assert page.locator(f"#{table}").is_visible()
    assert not page.locator("#accuracy-VLCS").is_visible()
    page.locator("#data-VLCS > summary").click()
    assert page.locator("#accuracy-VLCS").is_visible()
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".ranks").evaluate_all("images => images.every(one => one.naturalWidth > 0)")
    narrow = page.locator("p, li, dd, h1, h2, h3, h4").evaluate_all(
        "all => all.filter(one => one.getBoundingClientRect().right > innerWidth).map(one => one.textContent)"
    )
    assert narrow == []  # text is never cut


@pytest.fixture(scope="module")
def sortable(write_store, tmp_path_factory):
    """Methods whose mean rises in the order of the study; one failed and one is missing."""
    root = tmp_path_factory.mktemp("sortable")
    study = Study(
        optimizers=("sgd", "adam", "sam", "genie", "adamw", "genie_released"), targets=("30", "75"), trials=2,
        hparam_trials=2, baseline="erm + genie", steps=6, checkpoint_freq=2, selection=("training_domain", "last"),
    )  # fmt: skip
    plan = make_plan(study)
    ours = [i for i, spec in enumerate(plan.runs) if spec.optimizer == "adam" and spec.targets == ("75",)]
    theirs = [i for i, spec in enumerate(plan.runs) if spec.optimizer == "genie_released"]
    return write_report(write_store(plan, root, failed=ours, missing=theirs), root)


def _column(page, table, column=0):
    rows = page.locator(f"#{table} tbody tr").all()
    return [row.locator("th, td").nth(column).inner_text().removeprefix("erm + ") for row in rows]


def _sorts(page, table):
    return page.locator(f"#{table} thead tr:last-child th").evaluate_all("all => all.map(one => one.ariaSort)")


def test_a_click_on_a_head_sorts_by_number_and_what_is_missing_stays_last(open_page, sortable):
    page = open_page(sortable)
    given = ["sgd", "adam", "sam", "genie", "adamw", "genie_released"]
    assert _column(page, "accuracy") == given
    assert page.locator("#sorting").is_visible()
    mean = page.locator("#accuracy").get_by_role("button", name="mean")
    mean.click()
    assert _column(page, "accuracy") == ["sgd", "sam", "genie", "adamw", "adam", "genie_released"]
    assert _column(page, "accuracy", 1)[-2:] == ["failed", "missing"]
    assert _sorts(page, "accuracy")[:2] == [None, "ascending"]
    mean.click()
    assert _column(page, "accuracy") == ["adamw", "genie", "sam", "sgd", "adam", "genie_released"]
    assert _sorts(page, "accuracy")[:2] == [None, "descending"]
    page.locator("#accuracy").get_by_role("button", name="method").click()
    assert _column(page, "accuracy") == sorted(given)
    assert _sorts(page, "accuracy")[:2] == ["ascending", None]
    assert _column(page, "class-mean") == given  # another table is left alone


def test_signs_are_part_of_a_number(open_page, sortable):
    page = open_page(sortable)
    head = page.locator("#differences").get_by_role("button", name="mean")
    head.click()
    assert [text.split()[0] for text in _column(page, "differences", 1)] == [
        f"{MINUS}30.3",
        f"{MINUS}10.1",
        "+10.1",
        DASH,
        DASH,
    ]
    head.click()
    assert [text.split()[0] for text in _column(page, "differences", 1)] == [
        "+10.1",
        f"{MINUS}10.1",
        f"{MINUS}30.3",
        DASH,
        DASH,
    ]


def test_the_keyboard_sorts_too(open_page, sortable):
    page = open_page(sortable)
    page.locator("#rules").get_by_role("button", name="last").focus()
    page.keyboard.press("Enter")
    assert _sorts(page, "rules") == [None, None, "ascending", None]
    assert _column(page, "rules")[:2] == ["sgd", "sam"]
    page.keyboard.press("Space")
    assert _column(page, "rules")[:2] == ["adamw", "genie"]
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert _sorts(page, "rules") == [None, None, None, "ascending"]


def test_a_row_with_one_cell_for_many_columns_is_last_in_them(open_page, sortable):
    page = open_page(sortable)
    page.get_by_text("48 runs", exact=True).click()
    accuracy = page.locator("#runs").get_by_role("button", name="accuracy").first
    accuracy.click()
    values = [float(text) for text in _column(page, "runs", 10)[:36]]
    assert values == sorted(values)
    assert set(_column(page, "runs", 4)[36:]) == {"failed", "missing"}
    accuracy.click()
    values = [float(text) for text in _column(page, "runs", 10)[:36]]
    assert values == sorted(values, reverse=True)
    page.locator("#runs").get_by_role("button", name="name").click()  # behind the wide cells
    names = page.locator("#runs tbody code").all_inner_texts()
    collate = "names => names.toSorted(new Intl.Collator('en', { numeric: true }).compare)"
    assert len(names) == 48
    assert names == page.evaluate(collate, names)


def test_a_link_to_a_run_opens_the_list_of_runs(open_page, sortable):
    page = open_page(sortable)
    link = page.locator("#failed-runs a").first
    row = page.locator(f"tr[id='{link.get_attribute('href')[1:]}']")
    assert not row.is_visible()
    link.click()
    assert row.is_visible()
    box = row.bounding_box()
    assert 0 <= box["y"] < 844


@pytest.mark.parametrize("width", [1280, 400])
def test_the_first_screen_says_what_was_found(open_page, several, sortable, width):
    for report in (several, sortable):
        page = open_page(report, width)
        found = page.locator("#found")
        assert "has the highest mean accuracy" in found.locator(".finding").first.inner_text()
        assert found.bounding_box()["y"] < 200
        assert found.locator(".finding").first.bounding_box()["y"] < 300
        above = page.locator("table, img").evaluate_all("all => Math.min(...all.map(one => one.offsetTop || Infinity))")
        assert above > found.bounding_box()["y"] + found.bounding_box()["height"]
        assert page.locator("#ran").is_visible()


def test_a_link_opens_a_folded_data_set(open_page, several):
    page = open_page(several)
    head = page.locator("#data-VLCS summary").first
    assert not page.locator("#accuracy-VLCS").is_visible()
    page.locator("nav a", has_text="VLCS").click()
    assert page.locator("#accuracy-VLCS").is_visible()
    assert 0 <= head.bounding_box()["y"] < 844
    page.locator("#failed-runs-PACS a").first.click()
    assert page.locator("#runs-PACS tr:target").is_visible()


def test_numbers_are_downloaded_from_the_page_itself(open_page, sortable):
    page = open_page(sortable)
    with page.expect_download() as download:
        page.locator("a[download='loss.csv']").click()
    assert download.value.path().read_bytes() == (sortable.parent / "figures" / "loss.csv").read_bytes()


def test_many_sentences_are_folded_under_their_finding(open_page, sortable, write_store, tmp_path):
    assert open_page(sortable).locator("#found .verdicts li").count() == 5
    assert open_page(sortable).locator("#found details").count() == 0
    optimizers = tuple(OPTIMIZERS)[:14]
    plan = make_plan(Study(optimizers=optimizers, targets=("30",), trials=2, steps=6, checkpoint_freq=2))
    page = open_page(write_report(write_store(plan, tmp_path), tmp_path))
    sentences = page.locator("#found .verdicts li")
    assert (sentences.count(), sentences.first.is_visible()) == (13, False)
    page.locator("#found summary").click()
    assert sentences.first.is_visible()


def test_without_scripts_the_page_is_complete(open_page, sortable):
    page = open_page(sortable, java_script_enabled=False)
    assert page.locator("#accuracy tbody tr").count() == 6
    assert page.locator("#accuracy thead").inner_text().split()[0] == "method"
    assert page.locator("th button").count() == 0
    assert not page.locator("#sorting").is_visible()
