"""Averaging as an axis of methods: rows of their own, and one training for those that differ in it only."""

import csv
import dataclasses
import io
import json

import pytest

from made_up import results_of
from shiftproof.base.field_error import FieldError
from shiftproof.base.method import Method, find_method
from shiftproof.cli import main
from shiftproof.studies import Study, make_plan, read_results, run_study, study_costs
from shiftproof.studies.plan import read_plan
from shiftproof.studies.store import Store
from shiftproof.studies.study_file import read_study
from shiftproof.tables import as_csv, as_text, build_tables, shared_note
from shiftproof.training import read_result
from studies.outputs import rows_of

SMALL = {"optimizers": ("adam",), "targets": ("0",), "trials": 1, "steps": 6, "fixed": {"data.batch_size": 4}}


def _study(*averaging, **changes):
    return Study(**SMALL | {"averaging": averaging, "checkpoint_freq": 2} | changes)


def test_every_averaging_is_a_row_named_after_it():
    study = Study(optimizers=("sgd", "adam"), annealers=("none", "gga_l"), averaging=("none", "ema"))
    assert list(map(str, study.methods)) == [
        "erm + sgd", "erm + sgd + ema", "erm + adam", "erm + adam + ema",
        "erm + sgd + gga_l", "erm + sgd + gga_l + ema", "erm + adam + gga_l", "erm + adam + gga_l + ema",
    ]  # fmt: skip
    assert str(Method("erm", "adam", "none", "2x", "ema")) == "erm + adam + ema, 2x"
    plan = make_plan(_study("none", "ema"))
    assert [(str(spec.method), spec.averaging) for spec in plan.runs] == [
        ("erm + adam", "none"), ("erm + adam + ema", "ema")
    ]  # fmt: skip
    assert len({spec.name for spec in plan.runs}) == 2
    assert len({spec.training for spec in plan.runs}) == 1
    assert plan.grids[0].terms["averaging"] == "none, ema"
    assert "averaging" not in make_plan(_study("none")).grids[0].terms


def test_a_baseline_may_leave_the_averaging_out():
    methods = Study(optimizers=("sgd", "adam"), averaging=("ema", "none")).methods
    assert find_method("erm + adam", methods).averaging == "none"
    assert find_method("erm + adam + ema", methods).averaging == "ema"
    assert find_method("erm + genie", methods) is None
    study = Study(optimizers=("sgd", "adam"), averaging="swad", baseline="erm + adam")  # as before there were several
    assert study.baseline_method == Method("erm", "adam", averaging="swad")
    with pytest.raises(FieldError, match="unknown baseline 'erm'"):
        Study(averaging="swad", baseline="erm")


@pytest.mark.parametrize("text", ["averaging: ema", "averaging: [ema]", "averaging:\n- ema"])
def test_a_file_names_one_averaging_or_several(text, tmp_path):
    (tmp_path / "study.yaml").write_text(text)
    assert read_study(tmp_path / "study.yaml")[0] == Study(averaging=("ema",)) == Study(averaging="ema")
    (tmp_path / "study.yaml").write_text("averaging: [none, ema]")
    assert read_study(tmp_path / "study.yaml")[0].averaging == ("none", "ema")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "name at least one averaging"),
        (("ema", "ema"), "averaging ema is named twice"),
        (("em",), "Did you mean ema"),
    ],
)
def test_averagings_that_cannot_be_are_refused(given, message):
    with pytest.raises(FieldError, match=message) as error:
        Study(averaging=given)
    assert error.value.field == "averaging"


def test_one_averaging_of_several_that_cannot_work_is_named():
    with pytest.raises(FieldError, match="swad_released needs 3 evaluations to start averaging; 6 steps have 1"):
        make_plan(_study("none", "swad_released", checkpoint_freq=6))
    with pytest.raises(FieldError, match="swad re-estimates batch norms") as error:
        make_plan(_study("none", "swad", algorithms=("arm",)))
    assert error.value.field == "averaging"


def test_runs_that_differ_in_it_only_share_one_training(tmp_path):
    results = run_study(_study("none", "ema", "swad"), tmp_path, 1)
    found = {spec.averaging: results.result(spec) for spec in results.plan.runs}
    assert len({result["weights_sha256"] for result in found.values()}) == 1
    assert {result["shared"] for result in found.values()} == {3}
    assert [(row["averaging"], row["shared"]) for row in rows_of(tmp_path)] == [("none", 3), ("ema", 3), ("swad", 3)]
    assert "s/run: a share. Runs that differ in their averaging only were trained together, up to 3" in as_text(results)
    lines = csv.DictReader(io.StringIO(as_csv(results)))
    assert {line["averaging"] for line in lines} == {"none", "ema", "swad"}  # and not the term, which names all


def test_what_a_later_study_adds_is_all_that_is_trained(tmp_path):
    before = run_study(_study("none"), tmp_path, 1)
    [held] = before.plan.runs
    written = (Store(tmp_path).folder(held) / "result.json").stat().st_mtime_ns
    after = run_study(_study("none", "ema", "sma"), tmp_path, 1)
    assert (Store(tmp_path).folder(held) / "result.json").stat().st_mtime_ns == written
    assert [row["shared"] for row in after.rows] == [1, 2, 2]
    assert len({after.result(spec)["weights_sha256"] for spec in after.plan.runs}) == 1
    [table] = build_tables(read_results(tmp_path))
    rows = {str(row.method): row.shared for row in table.rows}
    assert rows == {"erm + adam": 1, "erm + adam + ema": 2, "erm + adam + sma": 2}
    assert "s/run of all but erm + adam: a share." in as_text(after)
    more = dataclasses.replace(table, rows=[table.rows[0], *table.rows])  # the shorter of two lists is named
    assert shared_note(more).startswith("s/run of erm + adam + ema, erm + adam + sma: a share.")
    assert "a share" not in as_text(before)


def test_a_training_that_raises_is_recorded_as_failed_in_every_run(tmp_path, monkeypatch):
    monkeypatch.setattr("shiftproof.studies.runner.TRIES", 1)
    for spec in make_plan(_study("none", "ema")).runs:
        (Store(tmp_path).folder(spec) / "metrics.jsonl").mkdir(parents=True)  # so that it cannot be written
    results = run_study(_study("none", "ema"), tmp_path, 1)
    assert [(row["status"], row["retry"]) for row in results.rows] == [("failed", True)] * 2
    for spec in results.plan.runs:
        assert "IsADirectoryError" in (Store(tmp_path).folder(spec) / "error.txt").read_text()
        (Store(tmp_path).folder(spec) / "metrics.jsonl").rmdir()
    assert [row["status"] for row in run_study(_study("none", "ema"), tmp_path, 1).rows] == ["finished"] * 2


def test_a_plan_of_before_averaging_was_part_of_a_method_is_read(tmp_path):
    plan = make_plan(_study("ema", optimizers=("sgd", "adam"), baseline="erm + adam"))
    plan.write(tmp_path)
    content = json.loads((tmp_path / "study.json").read_text())
    content["baseline"] = content["baseline"][:4]
    for grid in content["grids"]:
        grid["methods"] = [method[:4] for method in grid["methods"]]
    (tmp_path / "study.json").write_text(json.dumps(content))
    assert read_plan(tmp_path) == plan


def test_a_plan_counts_a_training_once():
    study = _study("none", "ema", "sma")
    plan = make_plan(study)
    [alone], [together] = study_costs(study, plan, plan.runs[:1]), study_costs(study, plan, plan.runs)
    assert (alone.runs, together.runs) == (1, 3)
    assert alone.passes == together.passes == 6


def test_published_results_are_of_trained_weights():
    study = Study(
        datasets=("PACS",), optimizers=("adam",), averaging=("none", "ema"), published="optimizers", model="resnet18"
    )
    text = as_text(results_of(make_plan(study, absent=True), lambda spec: (0.9, 0.5, 0.5)))
    assert "Measured beside published" in text
    rows = text[text.index("Measured beside published") :].splitlines()
    assert [line.split("  ")[0] for line in rows if line.startswith("erm") and "PACS" in line] == ["erm + adam"]


def test_the_command_takes_several(tmp_path):
    options = ["--dataset", "rotated_digits", "--optimizers", "adam", "--targets", "0", "--trials", "1", "--steps", "6"]
    averaging = ["--averaging", "none", "ema"]
    assert main(["compare", *options, *averaging, "--batch-size", "4", "--jobs", "1", "--output", str(tmp_path)]) == 0
    assert [row["averaging"] for row in rows_of(tmp_path)] == ["none", "ema"]
    [first, second] = [read_result(tmp_path / "runs" / row["run"]) for row in rows_of(tmp_path)]
    assert first["weights_sha256"] == second["weights_sha256"]
