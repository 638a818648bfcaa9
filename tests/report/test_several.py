"""A study on several data sets: an overview, a part per data set, and what was published beside what was measured."""

import re
from pathlib import Path

import pytest
from tests.report.pages import MINUS, cells, read_csv

from shiftproof.cli import main
from shiftproof.report import write_report
from shiftproof.report.names import safe_names
from shiftproof.studies import Study, make_plan, study_data
from shiftproof.tables import build_tables
from shiftproof.tables.table import comparisons

DIGITS = ("rotated_digits", "colored_digits")


def _percent(value, sign=""):
    return f"{100 * value:{sign}.1f}".replace("-", MINUS)


def _difference(value):
    text = _percent(value.mean, "+")
    return text if value.low is None else f"{text} [{_percent(value.low, '+')}, {_percent(value.high, '+')}]"


def _estimate(value):
    return f"{_percent(value.mean)} ± {_percent(value.error)}"


def _p(value):
    return "<0.001" if value < 0.001 else f"{value:.3f}"


@pytest.fixture(scope="module")
def digits(write_store, tmp_path_factory):
    root = tmp_path_factory.mktemp("digits")
    study = Study(
        name="two sets of digits", datasets=DIGITS, optimizers=("sgd", "adam", "genie"), trials=3, hparam_trials=2,
        baseline="erm + adam", steps=6, checkpoint_freq=2,
    )  # fmt: skip
    results = write_store(make_plan(study), root, failed=(1,), missing=(161,))
    return results, write_report(results, root)


@pytest.fixture(scope="module")
def published(write_store, absent_plan, tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    results = write_store(absent_plan, root)
    return results, write_report(results, root)


@pytest.mark.parametrize("place", range(3))
def test_every_table_has_the_numbers_of_build_tables(digits, place):
    results, path = digits
    key = ("", "-rotated_digits", "-colored_digits")[place]
    page, table = path.read_text(), build_tables(results)[place]
    assert table.title == ("two sets of digits", *DIGITS)[place]
    rows = {row[0]: row for row in cells(page, f"accuracy{key}")[1:]}
    differences = {row[0]: row for row in cells(page, f"differences{key}")[1:]}
    worst = ["worst"] if place else []  # not of data sets
    assert cells(page, f"accuracy{key}")[0][1:-2] == ["mean", *worst, *table.columns]
    assert list(rows) == ["erm + sgd", "erm + adam", "erm + genie"]
    assert list(differences) == ["erm + sgd", "erm + genie"]
    for row in table.rows:
        entries = [row.mean, *([row.worst] if worst else []), *(row.cells[name] for name in table.columns)]
        assert rows[str(row.method)][1:-2] == [_estimate(cell.score) for cell in entries]
        if row.method != table.baseline:
            mean, *others = [_difference(cell.difference) for cell in entries]
            signs = f"{row.signs.wins}-{row.signs.losses}-{row.signs.ties}"
            assert differences[str(row.method)][1:] == [mean, _p(row.adjusted_p), signs, *others]
    assert differences["erm + sgd"][3] == f"0-{(9, 6, 3)[place]}-0"


@pytest.mark.parametrize("place", range(3))
def test_selection_rules_stand_side_by_side(digits, place):
    results, path = digits
    key = ("", "-rotated_digits", "-colored_digits")[place]
    rules = ["training_domain", "oracle", "last"]
    head, *rows = cells(path.read_text(), f"rules{key}")
    assert head == ["method", *rules, "picked on target"]
    tables = [build_tables(results, rule)[place] for rule in rules]
    for i, row in enumerate(rows):
        assert row[1:4] == [_estimate(table.rows[i].mean.score) for table in tables]
        assert row[4] == _difference(tables[0].rows[i].sweep_gain)
    # the oracle takes the last step, which is worse here, by as much in both trials: no interval
    assert rows[0][4] == f"{MINUS}10.0"


def test_the_comparisons_are_counted(digits):
    text = " ".join(digits[1].read_text().split())
    assert text.count("corrected for 2 comparisons") == 3


def test_ranks_are_drawn_and_written(digits):
    results, path = digits
    page = path.read_text()
    alts = re.findall('alt="Mean ranks: (.*?)"', page)
    for table, prefix, alt in zip(build_tables(results), ("", "rotated_digits_", "colored_digits_"), alts, strict=True):
        rows = read_csv(path.parent / "figures" / f"{prefix}ranks.csv")
        written = {row["optimizer"]: float(row["rank"]) for row in rows}
        assert written == dict(zip([m.optimizer for m in table.ranked], table.ranks.ranks, strict=True))
        assert [float(row["rank"]) for row in rows] == [1, 2, 3]
        assert alt == "erm + genie 1.00, erm + adam 2.00, erm + sgd 3.00"
        assert f"over {table.ranks.cells} targets" in page
        assert f"{table.ranks.critical_difference:.2f} (Nemenyi, 5 %)" in page
        assert (path.parent / "figures" / f"{prefix}ranks.svg").exists()
    assert page.count("Targets of one data set share training data") == 3


def test_every_data_set_has_its_files_and_curves(digits):
    results, path = digits
    names = {file.name for file in (path.parent / "figures").iterdir()}
    each = {
        f"{name}.{suffix}" for name in ("unseen", "validation", "loss", "ranks") for suffix in ("svg", "png", "csv")
    }
    expected = {f"{dataset}_{name}" for dataset in DIGITS for name in (*each, "class_accuracy.csv")}
    assert names == expected | {"ranks.svg", "ranks.png", "ranks.csv"}
    for grid in results.plan:
        rows = read_csv(path.parent / "figures" / f"{grid.dataset}_loss.csv")
        assert {row["target"] for row in rows} == set(grid.domains)
    page = path.read_text()
    assert set(re.findall(r"<code>(figures/.+?)</code>", page)) == {
        f"figures/{name}" for name in names if name.endswith("csv")
    }
    assert cells(page, "classes-colored_digits")[0] == ["unseen domain", "all", *results.plan.grids[1].classes]


def test_the_head_names_the_study_and_its_data_sets(digits):
    page = digits[1].read_text()
    text = " ".join(re.sub("<.*?>", "", page[page.index("<header>") : page.index("</header>")]).split())
    assert text.startswith("two sets of digits: 3 methods on unseen domains")
    assert "were compared on rotated_digits and colored_digits." in text
    assert "160 of 162 runs finished, 1 failed, 1 not yet run." in text
    assert 'href="#failures-rotated_digits"' in page
    assert '<div id="failures-rotated_digits">' in page


def test_measured_stands_beside_published(published):
    results, path = published
    page = path.read_text()
    head, *rows = cells(page, "published")
    found = comparisons(results, build_tables(results))
    assert (head[1:5], len(rows)) == (["data set", "measured", "published", "difference"], len(found))
    for row, one in zip(rows, found, strict=True):
        mark = " released form" if one.published.released_form else ""
        gap = _percent(one.measured.mean - one.published.value, "+")
        assert row == [
            str(one.method), one.dataset, _estimate(one.measured), _percent(one.published.value) + mark, gap,
            one.published.selection, one.published.tuning, one.published.source,
        ]  # fmt: skip
    assert [row[3] for row in rows if row[:2] == ["erm + genie", "PACS"]] == ["87.8 released form"]
    assert [row[3] for row in rows if row[:2] == ["erm + adam", "VLCS"]] == ["77.3"]
    terms = [
        " ".join(re.sub("<.*?>", "", line).split()) for line in re.findall("<li>Measured.*?</li>", page, re.DOTALL)
    ]
    assert terms == [
        f"Measured on {dataset}: selection oracle; protocol shiftproof; steps 6; model small_conv; image size 8; "
        f"settings per method 1; trials 2{targets}."
        for dataset, targets in (("PACS", "; targets art_painting, sketch only"), ("VLCS", "; targets LabelMe only"))
    ]


@pytest.mark.parametrize(
    ("table", "optimizer", "expected"),
    [("annealing", "adam", "85.5 ± 0.2"), ("convergence_5000", "sgd", "sgd without momentum, lr 5e-5")],
)
def test_an_error_and_a_note_of_what_was_published_are_shown(write_store, tmp_path, table, optimizer, expected):
    study = Study(
        datasets=("PACS",), optimizers=(optimizer,), trials=1, steps=6, checkpoint_freq=2, model="small_conv",
        image_size=8, published=table,
    )  # fmt: skip
    page = write_report(write_store(make_plan(study, absent=True), tmp_path), tmp_path).read_text()
    assert expected in cells(page, "published")[1]


def test_without_published_figures_there_is_no_such_table(digits):
    assert 'id="published' not in digits[1].read_text()


def test_data_that_are_not_at_hand_are_reported_without_class_names(published):
    results, path = published
    assert not any(grid.at_hand or grid.classes for grid in results.plan)
    page = path.read_text()
    assert "Accuracy by domain and class" not in page
    assert not list((path.parent / "figures").glob("*class_accuracy*"))
    assert cells(page, "accuracy-PACS")[1][3] == _estimate(build_tables(results)[1].rows[0].cells["art_painting"].score)


def test_the_report_needs_the_store_alone(write_store, hostile_plan, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study_data, "open_dataset", lambda *_: pytest.fail("the data were opened"))
    write_store(hostile_plan, tmp_path / "made")
    (tmp_path / "made").rename(tmp_path / "moved")
    assert main(["study", "report", str(tmp_path / "moved")]) == 0
    assert f"written: {tmp_path / 'moved' / 'report.html'}" in capsys.readouterr().out
    page = (tmp_path / "moved" / "report.html").read_text()
    assert len(cells(page, "classes")[0]) == 2 + 14  # the plan has the names of the classes


def test_names_become_file_names_and_stay_apart():
    assert safe_names(["PACS", "pacs", "../a b/ü", ".", "x" * 300]) == ["PACS", "pacs_", "a_b", "data", "x" * 60]
    assert all(Path(name).name == name for name in safe_names(["a/b", "..", 'c:"<d>']))
