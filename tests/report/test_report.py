"""The report's numbers are the runs' and the table's; gaps and hostile names are shown for what they are."""

import base64
import html
import re
from dataclasses import fields
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from tests.report.pages import DASH, cells, read_csv

from shiftproof.base.drawing import write_figure
from shiftproof.cli import main
from shiftproof.protocol import BUILT_IN_RULES
from shiftproof.report import write_report
from shiftproof.report.terms import MEANINGS, RULE_MEANINGS
from shiftproof.studies import TABLE_FIELDS, Study, info_of, make_plan, runner
from shiftproof.tables import MARK_NOTE, build_tables, finding, verdicts

SMALL = {"optimizers": ("sgd", "genie"), "steps": 6, "checkpoint_freq": 2}
FIGURES = ("unseen", "validation", "loss")


@pytest.fixture(scope="module")
def compared(write_store, tmp_path_factory):
    study = Study(targets=("30", "75"), trials=2, **SMALL)
    root = tmp_path_factory.mktemp("compared")
    results = write_store(make_plan(study), root)
    return results, write_report(results, root)


def test_the_curves_are_what_the_runs_recorded(compared):
    results, page = compared
    points = {
        name: {
            (row["optimizer"], row["target"], row["trial"], int(row["step"])): float(row["value"])
            for row in read_csv(page.parent / "figures" / f"{name}.csv")
        }
        for name in FIGURES
    }
    assert [len(points[name]) for name in FIGURES] == [2 * 2 * (2 + 1) * 3] * 3  # two trials and their mean
    for spec in results.plan.runs:
        [target] = spec.targets
        for record in results.result(spec)["metrics"]:
            key = (spec.optimizer, target, str(spec.trial_seed), record["step"])
            held_out = [
                record["domains"][name]["out"]["accuracy"] for name in results.plan.grids[0].domains if name != target
            ]
            assert points["loss"][key] == record["loss"]
            assert points["unseen"][key] == record["domains"][target]["out"]["accuracy"]
            assert points["validation"][key] == pytest.approx(sum(held_out) / 5)
    for name in FIGURES:
        for optimizer, target, trial, step in points[name]:
            if trial == "mean":
                trials = [points[name][optimizer, target, str(seed), step] for seed in range(2)]
                assert points[name][optimizer, target, "mean", step] == pytest.approx(sum(trials) / 2)


def test_class_accuracies_are_means_at_the_selected_step(compared):
    results, page = compared
    rows = read_csv(page.parent / "figures" / "class_accuracy.csv")
    assert len(rows) == 2 * 2 * 10
    for row in rows:
        recorded = [
            results.result(spec)["metrics"][1]["domains"][row["target"]]["in"]["per_class"][int(row["class"])]
            for spec in results.plan.runs
            if (spec.optimizer, *spec.targets) == (row["optimizer"], row["target"])
        ]
        assert float(row["accuracy"]) == pytest.approx(sum(recorded) / 2)
        assert (row["domain"], row["trials"]) == (row["target"], "2")


def test_the_page_shows_the_numbers_of_the_table(compared):
    results, page = compared
    [table] = build_tables(results)
    text = page.read_text()
    head, sgd, genie = cells(text, "accuracy")
    assert head == ["method", "mean", "worst", "30", "75", "passes / step", "s / run"]
    assert sgd == ["erm + sgd", "44.5 ± 1.0", "43.0 ± 1.0", "43.0 ± 1.0", "46.0 ± 1.0", "1.0", "2.0"]
    assert table.rows[1].mean.score.mean == pytest.approx(0.546)
    assert genie[1] == "54.6 ± 1.1"
    assert re.findall("<strong>(.*?)</strong>", text) == ["54.6", "53.1", "53.1", "56.1"]  # all of genie's
    assert MARK_NOTE in text
    assert cells(text, "differences")[0][4:] == ["worst", "30", "75"]
    assert cells(text, "differences")[1] == [
        "erm + genie", "+10.1 [+8.8, +11.4]", "0.006", "2-0-0", *["+10.1 [+8.8, +11.4]"] * 3,
    ]  # fmt: skip
    assert cells(text, "class-mean")[1][1] == "40.0 ± 1.0"  # ten classes, each a point below the one before
    assert cells(text, "class-mean")[1][2] == "38.5 ± 1.0"
    terms = {name: value for name, value, _ in cells(text, "terms")}
    assert terms == {name: str(value) for name, value in table.terms.items()}
    assert all(meaning for _, _, meaning in cells(text, "terms"))
    assert "torch 2.13.0, numpy 2.0.0" in text


def _text(part):
    return " ".join(html.unescape(re.sub("<.*?>", "", part)).split())


def test_the_page_begins_with_what_was_found_and_what_was_run(compared):
    results, page = compared
    [table] = build_tables(results)
    text = _text(page.read_text().partition("<body>")[2].partition("</header>")[0])
    [sentence] = verdicts(table)
    assert finding(table).startswith("erm + genie has the highest mean accuracy, 54.6 ± 1.1 %, told apart from every")
    assert text.startswith(f"rotated_digits: 2 methods on unseen domains {finding(table)} {sentence} erm + sgd and erm")
    assert text.index("8 of 8 runs finished. Terms: protocol shiftproof; trials 2;") > text.index("left out in turn.")
    assert "selection training_domain. Tables sort" in text


def test_every_picture_has_its_numbers_in_the_page(compared):
    _, page = compared
    links = re.findall('<a download="(.*?)" href="data:text/csv;base64,(.*?)">', page.read_text())
    assert [name for name, _ in links] == [
        "ranks.csv",
        "unseen.csv",
        "validation.csv",
        "loss.csv",
        "class_accuracy.csv",
    ]
    for name, content in links:
        assert base64.b64decode(content) == (page.parent / "figures" / name).read_bytes()


def test_a_diagnostic_has_its_numbers_in_the_page(write_store, tmp_path):
    results = write_store(make_plan(Study(targets=("30",), trials=1, **SMALL)), tmp_path)
    write_figure(Figure(), tmp_path / "diagnostics", "ratio", ["step", "ratio"], [[1, 0.25]], "The ratio.")
    page = write_report(results, tmp_path).read_text()
    [content] = re.findall('<a download="ratio.csv" href="data:text/csv;base64,(.*?)"', page)
    assert base64.b64decode(content) == b"step,ratio\n1,0.25\n"


def test_every_term_and_rule_has_a_meaning(hostile_plan):
    studies = (
        Study(
            accumulate=2,
            clip_norm=1.0,
            fixed={"data.batch_size": 4},
            targets=("0",),
            trials=1,
            averaging="ema",
            schedule="linear",
            warm_up=9,
            layer_decay=0.5,
            l2_sp=0.1,
            all_data=True,
        ),
        Study(
            algorithms=("mtl",),
            protocol="swad",
            search="protocol",
            trials=1,
            single_source=True,
            tune="shared",
            steps=200,
            compile=True,
            normalisation="half",
        ),
    )
    grids = [*(make_plan(study).grids[0] for study in studies), hostile_plan.grids[0]]
    names = {name for grid in grids for name in grid.terms}
    assert {"averaging", "tuning", "sources", "steps between evaluations"} <= names
    # with a file of weights, drawings of photographs, or a folder
    given = {
        "weights",
        "class vectors",
        "published start",
        "batch norm",
        "classifier start",
        "split",
        "kind",
        "augmentation",
    }
    given |= {"encoder", "metric", "sampling", "class weights", "trained", "views", "cache"}
    table = {info_of(field).term.label for field in fields(Study) if field.name in TABLE_FIELDS and info_of(field).term}
    assert {"domain", "task", "missing labels"} <= table
    given |= table
    assert names | given | {"selection", "results version", "runs finished"} == MEANINGS.keys()
    assert RULE_MEANINGS.keys() == set(BUILT_IN_RULES)


def test_the_page_needs_nothing_from_elsewhere(compared):
    text = compared[1].read_text()
    references = re.findall(r'(?:src|href)="(.*?)"', text)
    assert sum(reference.startswith("data:image/svg+xml;base64,") for reference in references) == 3 * 2 + 1
    assert all(reference.startswith(("data:", "#")) for reference in references)
    assert not re.search(r"url\(|@import|<script[^>]*src|https?:", text)


def test_figures_are_written_and_do_not_depend_on_the_day(compared):
    results, page = compared
    figures = page.parent / "figures"
    names = [f"{name}.{suffix}" for name in (*FIGURES, "ranks") for suffix in ("svg", "png", "csv")]
    assert sorted(path.name for path in figures.iterdir()) == sorted([*names, "class_accuracy.csv"])
    before = {path.name: path.read_bytes() for path in figures.iterdir()}
    assert before["loss.png"].startswith(b"\x89PNG")
    write_report(results, page.parent)
    assert {path.name: path.read_bytes() for path in figures.iterdir()} == before


def test_what_is_shown_is_of_the_chosen_settings(write_store, tmp_path):
    results = write_store(make_plan(Study(targets=("30",), trials=2, hparam_trials=2, **SMALL)), tmp_path)
    page = write_report(results, tmp_path).read_text()
    chosen = [spec for spec in results.plan.runs if (spec.optimizer, spec.hparam_seed) == ("genie", 1)]
    drawn = read_csv(tmp_path / "figures" / "loss.csv")
    head, *rows = cells(page, "settings-1")
    for spec, row in zip(chosen, rows, strict=True):
        losses = [float(p["value"]) for p in drawn if (p["optimizer"], p["trial"]) == ("genie", str(spec.trial_seed))]
        assert losses == [record["loss"] for record in results.result(spec)["metrics"]]
        shown = dict(zip(head, row, strict=True))
        assert (shown["trial"], shown["setting"], shown["step"]) == (str(spec.trial_seed), "1", "4")
        assert shown["validation, %"] == f"{65 + 2.2 * spec.trial_seed:.1f}"
        assert shown["optimizer.lr"] == f"{spec.hparams['optimizer.lr']:.4g}"
    assert cells(page, "accuracy")[2][2] == "56.1 ± 1.1"  # setting 0 has 53.1


def test_failed_and_missing_runs_are_shown_as_such(write_store, tmp_path):
    plan = make_plan(Study(targets=("30", "75"), trials=2, **SMALL))
    # trial 0: sgd 30, genie 30, sgd 75, genie 75; trial 1 likewise
    page = write_report(write_store(plan, tmp_path, failed=(3, 7), missing=(4, 6)), tmp_path).read_text()
    text = " ".join(re.sub("<.*?>", "", page).split())
    assert "4 of 8 runs finished, 2 failed, 2 not yet run." in text
    _, sgd, genie = cells(page, "accuracy")
    assert sgd[1:5] == [f"{mean} (1 of 2)" for mean in ("43.5", "42.0", "42.0", "45.0")]
    assert genie[1:5] == ["failed", "failed", "53.1 ± 1.1", "failed"]
    assert "<strong>" not in page  # no method finished every trial
    assert [row[:4] for row in cells(page, "failed-runs")[1:]] == [["erm + genie", "75", str(t), "0"] for t in (0, 1)]
    assert "the loss was nan at step 3" in page
    assert [row[2] for row in cells(page, "settings-0")[1:]] == ["0", "missing", "0", "missing"]
    assert [row[2] for row in cells(page, "settings-1")[1:]] == ["0", "0", "failed", "failed"]


@pytest.mark.parametrize("status", ["failed", "missing"])
def test_without_a_finished_run_there_is_a_report(write_store, tmp_path, status):
    plan = make_plan(Study(targets=("30",), trials=1, **SMALL))
    page = write_report(write_store(plan, tmp_path, **{status: (0, 1)}), tmp_path).read_text()
    assert [row[1:] for row in cells(page, "accuracy")[1:]] == [[status, status, DASH, DASH]] * 2
    assert read_csv(tmp_path / "figures" / "loss.csv") == []
    panel = base64.b64decode(re.search('svg\\+xml;base64,(.*?)"', page)[1])
    assert b"no finished run" in panel


def test_names_are_text_whatever_they_hold(write_store, hostile_plan, tmp_path):
    page = write_report(write_store(hostile_plan, tmp_path, failed=(0,)), tmp_path).read_text()
    [grid] = hostile_plan
    hostile, long = grid.domains
    assert (hostile, grid.dataset) == ('<img src=x onerror="alert(1)"> & $x_$', 'a "set" <b>')
    assert "<img src=x" not in page
    assert "a &#34;set&#34; &lt;b&gt;" in page
    assert cells(page, "accuracy")[0][2:5] == ["worst", hostile, long]
    assert cells(page, "classes")[0][2] == hostile
    assert hostile in cells(page, "failed-runs")[1][4]
    sheet = ElementTree.parse(tmp_path / "figures" / "loss.svg")  # noqa: S314
    assert f"unseen: {hostile}" in "".join(sheet.getroot().itertext())
    assert {row["target"] for row in read_csv(tmp_path / "figures" / "loss.csv")} == {hostile, long}


COMMAND = ["compare", "--dataset", "rotated_digits", "--optimizers", "sgd", "genie", "--steps", "6", "--targets", "30",
           "--checkpoint-freq", "2", "--trials", "1", "--jobs", "1"]  # fmt: skip


def test_compare_writes_the_report(write_store, tmp_path, capsys):
    write_store(make_plan(Study(targets=("30",), trials=1, **SMALL)), tmp_path)
    assert main([*COMMAND, "--output", str(tmp_path)]) == 0
    assert f"written: {tmp_path / 'table.csv'} and {tmp_path / 'report.html'}" in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert "2 of 2 runs finished." in page
    assert cells(page, "accuracy")[1][1] == "42.0"  # one trial has no standard error
    assert cells(page, "differences")[1][1] == "+10.0"


def test_an_interrupted_comparison_has_the_report_of_what_there_is(write_store, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    write_store(make_plan(Study(targets=("30",), trials=1, **SMALL)), tmp_path, missing=(1,))
    monkeypatch.setattr(runner, "_train_all", interrupt)
    assert main([*COMMAND, "--output", str(tmp_path)]) == 130
    assert "1 not yet run" in (tmp_path / "report.html").read_text()
