"""Every run has one entry that other tables link to; curves leave out what is no step."""

import re

import pytest
from tests.report.pages import DASH, cells, read_csv

from shiftproof.report import write_report
from shiftproof.studies import Results, Study, Variant, make_plan
from shiftproof.tables import MARK_NOTE

SMALL = {"steps": 6, "checkpoint_freq": 2, "targets": ("30", "75"), "trials": 2}


@pytest.fixture(scope="module")
def ended(write_store, tmp_path_factory):
    root = tmp_path_factory.mktemp("ended")
    plan = make_plan(Study(optimizers=("sgd", "genie"), hparam_trials=2, **SMALL))
    results = write_store(plan, root, failed=(3,), missing=(5,))
    return results, write_report(results, root).read_text()


def test_every_run_has_an_entry(ended):
    results, page = ended
    groups, head, *rows = cells(page, "runs")
    assert [name for name in groups if name] == ["training_domain", "oracle", "last"]
    assert head[:9] == [
        "method", "unseen domain", "trial", "setting", "status", "steps", "passes", "seconds", "step",
    ]  # fmt: skip
    specs = results.plan.runs
    assert re.findall('<tr id="run-(.*?)"', page) == [spec.name for spec in specs]
    for number, (spec, row) in enumerate(zip(specs, rows, strict=True)):
        place = [f"erm + {spec.optimizer}", *spec.targets, str(spec.trial_seed), str(spec.hparam_seed)]
        assert row[:4] == place
        assert row[-2] == spec.name
        assert f"optimizer.lr {spec.hparams['optimizer.lr']:.4g}" in row[-1]
        if number == 3:
            assert row[4:8] == ["failed", "6", "0", "0.0"]
            assert row[8].startswith("the loss was nan at step 3")
        elif number == 5:
            assert row[4:9] == ["missing", "6", DASH, DASH, ""]
        else:
            assert row[4:8] == ["finished", "6", "6", "2.0"]
            selection = results.row(results.plan.grids[0], spec)["selection"]
            shown = [row[8:11], row[11:14], row[14:17]]
            for rule, cell in zip(results.plan.selection, shown, strict=True):
                one = selection[rule]
                validation = DASH if rule == "last" else f"{100 * one['validation']:.1f}"
                assert cell == [str(one["step"]), validation, f"{100 * one['accuracy']:.1f}"]


def test_what_is_equal_in_all_runs_is_said_once(ended):
    _, page = ended
    section = page[page.index(">Runs<") :]
    assert "The same in all: data.batch_size 16, " in section[: section.index("<table")]
    assert all("batch_size" not in row[-1] for row in cells(page, "runs"))


def test_links_to_runs_lead_somewhere(ended):
    results, page = ended
    failed = results.plan.runs[3]
    assert f'<a href="#run-{failed.name}">erm + genie</a>' in page
    links = re.findall('href="#(.*?)"', page)
    assert len([link for link in links if link.startswith("run-")]) == 1 + 2 * 2 * 2  # and a chosen one per cell
    ids = re.findall(' id="(.*?)"', page)
    assert len(ids) == len(set(ids))
    assert set(links) <= set(ids)


def test_a_run_that_stands_at_several_places_has_one_entry(write_store, tmp_path):
    variants = (Variant("as it is"), Variant("once", fixed={"optimizer.momentum": 0.9}))
    fixed = Study(optimizers=("sgd",), variants=variants, **SMALL)
    plan = make_plan(fixed)
    twice = len(plan.distinct) == len(plan.runs) // 2
    assert twice, "the default of sgd's momentum has changed; take another"
    page = write_report(write_store(plan, tmp_path), tmp_path).read_text()
    rows = cells(page, "runs")[2:]
    assert len(rows) == 4
    assert {row[0] for row in rows} == {"erm + sgd, as it is; erm + sgd, once"}
    assert "4 of 4 runs finished" in page


def test_variants_of_other_lengths_share_a_figure(write_store, tmp_path):
    variants = (Variant("1x"), Variant("3x", times=3))
    plan = make_plan(Study(optimizers=("sgd",), variants=variants, **SMALL))
    write_report(write_store(plan, tmp_path), tmp_path)
    steps = {"1x": set(), "3x": set()}
    for row in read_csv(tmp_path / "figures" / "loss.csv"):
        steps[row["variant"]].add(int(row["step"]))
    assert steps == {"1x": {2, 4, 6}, "3x": {6, 12, 18}}


def test_averaged_weights_are_no_point_of_a_curve_but_what_is_scored(write_store, tmp_path):
    plan = make_plan(Study(optimizers=("sgd",), averaging="swad", **SMALL))
    written = write_store(plan, tmp_path)
    found = {}
    for spec in plan.runs:
        result = written.result(spec)
        curve = result["metrics"][: 3 if spec.trial_seed == 0 else 2]  # SWAD ended the second trial early
        last = curve[-1]
        score = {"count": 40, "accuracy": 0.99, "per_class": [0.98] * 10}
        domains = {name: {"in": score, "out": score} for name in last["domains"]}
        averaged = {**last, "averaged": [2, 4], "domains": domains}
        found[spec.name] = {**result, "metrics": [*curve, averaged]}
    page = write_report(Results(plan, found), tmp_path).read_text()
    points = [row for row in read_csv(tmp_path / "figures" / "unseen.csv") if row["target"] == "30"]
    assert [(row["trial"], row["step"]) for row in points] == [
        ("0", "2"), ("0", "4"), ("0", "6"), ("1", "2"), ("1", "4"), ("mean", "2"), ("mean", "4"),
    ]  # fmt: skip
    assert all(float(row["value"]) < 0.9 for row in points)
    assert cells(page, "accuracy")[1][1] == "99.0 ± 0.0"
    assert {row["accuracy"] for row in read_csv(tmp_path / "figures" / "class_accuracy.csv")} == {"0.98"}


def test_the_sentences_are_of_the_rule(write_store, tmp_path):
    for rule, said, unsaid in (
        ("training_domain", "It was not used to choose steps or settings.", "It was used to choose the setting."),
        ("oracle", "It was used to choose the setting.", "The step with the highest value is selected."),
    ):
        plan = make_plan(Study(optimizers=("sgd",), selection=(rule,), **SMALL))
        page = write_report(write_store(plan, tmp_path / rule), tmp_path / rule).read_text()
        assert said in page
        assert unsaid not in page
        assert {row[0]: row[1] for row in cells(page, "terms")}["selection"] == rule


@pytest.mark.parametrize("trials", [1, 2])
def test_intervals_are_spoken_of_where_there_are_some(write_store, tmp_path, trials):
    plan = make_plan(Study(optimizers=("sgd", "genie"), **{**SMALL, "trials": trials}))
    page = write_report(write_store(plan, tmp_path), tmp_path).read_text()
    assert (MARK_NOTE in page) == (trials == 2)
    assert ("p (Holm)" in cells(page, "differences")[0]) == (trials == 2)
    assert ("nothing to correct for" in page) == (trials == 2)  # one comparison
