"""Studies of one's own tables: from options and files, with nothing of target or held-out rows in what is fitted."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import shiftproof
from shared_data import SHARED
from shiftproof.cli import main
from shiftproof.data import open_table, split_domain
from shiftproof.studies import FieldError, Study, make_plan, open_data, plan_run, read_study, study_data, train_one
from shiftproof.studies.study_data import table_of
from shiftproof.training.prepared import prepared

pytest.importorskip("pyarrow")
HEART = SHARED / "data" / "HeartDisease" / "heart.csv"
GUIDE = Path(__file__).parents[2] / "docs" / "how_to" / "tables.md"
COUNT = 40
pytestmark = pytest.mark.usefixtures("opened_anew")


def _lines(count=COUNT):
    """Rows of three sites in turn, whose kind goes by the dose, and whose colours are three."""
    random = np.random.default_rng(0)
    doses = random.normal(size=3 * count).round(3)
    return ["site,kind,dose,colour,price"] + [
        f"{'abc'[i % 3]},{'low' if dose < 0 else 'high'},{dose if i % 7 else ''},{['red', 'blue', 'grey'][i % 4 % 3]},"
        f"{3 * dose + i % 3:.3f}"
        for i, dose in enumerate(doses.tolist())
    ]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "trial.csv"
    path.write_text("\n".join(_lines()))
    return path


def _study(file, **fields):
    return Study(
        **{
            "datasets": ("table",),
            "metadata": file,
            "domain": "site",
            "labels": ("kind",),
            "features": ("dose", "colour"),
            "optimizers": ("adam",),
            "targets": ("c",),
            "trials": 1,
            "steps": 30,
            "checkpoint_freq": 10,
            **fields,
        }
    )


def _prepared(study):
    study_data.open_dataset.cache_clear()
    spec, dataset = plan_run(study, 0, 0), open_data(study, "table")
    return spec, dataset, prepared(spec, dataset)


REGRESSION = {"labels": ("price",), "task": "regression"}


@pytest.mark.parametrize("task", [{}, REGRESSION])
@pytest.mark.parametrize("whose", ["target", "held out"])
def test_neither_targets_nor_held_out_rows_have_a_say_in_what_is_fitted(file, task, whose):
    study = _study(file, **task)
    spec, dataset, before = _prepared(study)
    lines = _lines()
    if whose == "target":
        changed = range(2, 3 * COUNT, 3)  # site c
    else:
        changed = [3 * row + i for i in range(2) for row in split_domain(dataset.domains[i], "random", 0, i).out]
    for row in changed:
        site, kind, *_ = lines[row + 1].split(",")
        lines[row + 1] = f"{site},{kind},1000,grey,-5000"
    file.write_text("\n".join(lines))
    spec_after, _, after = _prepared(study)
    assert spec_after.data_fingerprint != spec.data_fingerprint
    assert after.preparation == before.preparation
    assert after.quantity == before.quantity
    assert (before.quantity is None) == (not task)
    row = changed[0]
    assert after.domains[row % 3].inputs[row // 3, 0] > 100  # the change came through
    training = split_domain(dataset.domains[0], "random", 0, 0).in_
    lines[1 + 3 * training[0]] = "a,low,1000,grey,-5000"
    file.write_text("\n".join(lines))
    assert _prepared(study)[2].preparation != before.preparation


def test_a_category_of_the_target_alone_changes_nothing_for_the_sources(file):
    study = _study(file)
    _, _, before = _prepared(study)
    file.write_text(re.sub(r"(?m)^(c,.*),red,", r"\1,amber,", "\n".join(_lines())))
    _, _, after = _prepared(study)
    assert after.preparation.names == before.preparation.names
    for i in range(2):
        np.testing.assert_array_equal(after.domains[i].inputs, before.domains[i].inputs)


def test_a_saved_model_scores_raw_rows_as_training_did(file, tmp_path):
    study = _study(file)
    row = train_one(study, tmp_path / "run", 0, 0)
    raw = open_data(study, "table")
    model = shiftproof.load(tmp_path / "run")
    target = raw.domains[2]
    rows = split_domain(target, "random", 0, 2).in_
    with torch.no_grad():
        outputs = model(model.normalise(torch.from_numpy(target.inputs[rows])))
    accuracy = (outputs.argmax(1).numpy() == target.targets[rows]).mean()
    assert accuracy == row["selection"]["training_domain"]["accuracy"]
    assert accuracy > 0.8
    assert model.classes == ("high", "low")


def test_a_saved_regression_scores_raw_rows_in_the_unit_of_the_table(file, tmp_path):
    study = _study(file, **REGRESSION, steps=100)
    row = train_one(study, tmp_path / "run", 0, 0)
    raw, model = open_data(study, "table"), shiftproof.load(tmp_path / "run")
    rows = split_domain(raw.domains[2], "random", 0, 2).in_
    with torch.no_grad():
        outputs = model(model.normalise(torch.from_numpy(raw.domains[2].inputs[rows])))[:, 0].numpy()
    error = float(np.sqrt(np.mean((outputs - raw.domains[2].targets[rows]) ** 2)))
    assert error == pytest.approx(row["selection"]["training_domain"]["measures"]["rmse"], rel=1e-5)
    assert error < raw.domains[2].targets.std()


def test_runs_are_those_of_the_content(file, tmp_path):
    names = [spec.name for spec in make_plan(_study(file)).runs]
    moved = tmp_path / "elsewhere" / "trial.csv"
    moved.parent.mkdir()
    moved.write_text(file.read_text().replace(",price", ",cost"))  # a column that is not used
    assert [spec.name for spec in make_plan(_study(moved)).runs] == names
    for changes in ({"features": ("dose",)}, {"features": ("dose:category", "colour")}, {"group": "price"}, REGRESSION):
        assert not set(names) & {spec.name for spec in make_plan(_study(file, **changes)).runs}
    file.write_text("\n".join(f"{line},p{i}" if i else f"{line},patient" for i, line in enumerate(_lines())))
    named = _study(file, id="patient")
    assert [spec.name for spec in make_plan(named).runs] == names  # what rows are called is no part of a run
    assert _prepared(named)[2].domains[1].ids.tolist() == [f"p{i}" for i in range(2, 3 * COUNT + 1, 3)]
    moved.write_text(file.read_text().replace("grey", "green"))
    study_data.open_dataset.cache_clear()
    assert not set(names) & {spec.name for spec in make_plan(_study(moved)).runs}


def test_several_labels_are_a_multilabel_task(file):
    lines = ["site,u,v,x", *(f"{'abc'[i % 3]},{i % 2},{i % 5 == 0:d},{i}" for i in range(30))]
    file.write_text("\n".join(lines))
    study = _study(file, labels=("u", "v"), features=())
    assert table_of(study, "table").task == "multilabel"
    [grid] = make_plan(study).grids
    assert {spec.task for spec in grid.runs} == {"multilabel"}
    assert (grid.terms["task"], grid.terms["predicted"]) == ("multilabel", "u, v")


def test_rows_left_out_and_columns_are_terms(file):
    lines = _lines()
    lines[5] = lines[5].rpartition(",")[0] + ","
    file.write_text("\n".join(lines))
    [grid] = make_plan(_study(file, **REGRESSION, missing_labels="drop", group="colour", features=("dose",))).grids
    assert grid.images == 3 * COUNT - 1
    assert grid.terms["missing labels"] == "1 rows left out"
    assert [grid.terms[name] for name in ("domain", "predicted", "task", "features", "group", "kind")] == [
        "site", "price", "regression", "dose", "colour", "vectors"
    ]  # fmt: skip
    terms = make_plan(Study(datasets=("heart_disease",), optimizers=("adam",), trials=1)).grids[0].terms
    assert not {"domain", "predicted", "task", "features", "missing labels"} & terms.keys()


def test_a_table_stands_beside_other_data_sets(file):
    study = _study(file, datasets=("table", "heart_disease"), targets=None)
    table, hearts = make_plan(study).grids
    assert (table.dataset, hearts.dataset, table.terms["domain"]) == ("trial", "heart_disease", "site")
    assert "domain" not in hearts.terms


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"metadata": None}, "metadata", "the data set table needs metadata, its file: --metadata"),
        ({"domain": None}, "domain", "the data set table needs domain, the column of the domains: --domain"),
        ({"labels": ()}, "labels", "the data set table needs labels, the column to predict: --label"),
        ({"datasets": ("vowels",)}, "metadata", "only the data set table takes metadata"),
        ({"labels": ("kind", "price"), "task": "regression"}, "task", "regression is of one label, not of 2"),
        ({"labels": ("kind", "kind")}, "labels", "label kind is named twice"),
        ({"image": "price"}, "features", "features contradict image"),
        ({"kind": "small_images"}, "kind", "kind is of pictures, and no column of them is named: set image"),
        ({"image_size": 32}, "image_size", "image_size is of pictures"),
        ({"kind": "vectors"}, "kind", "unknown kind 'vectors'. Valid names: photographs, small_images"),
        ({"data_dir": Path()}, "data_dir", "the data set table takes no data_dir"),
        ({"missing_labels": "skip"}, "missing_labels", "Valid names: error, drop"),
        ({"split": "grouped"}, "split", "trial has no groups to split by: name their column as its group"),
        ({"model": "small_conv"}, "model", "small_conv"),
    ],
)
def test_fields_that_contradict_are_refused(file, fields, field, words):
    with pytest.raises(FieldError, match=re.escape(words)) as raised:
        make_plan(_study(file, **fields))
    assert raised.value.field == field


def test_errors_name_the_option_or_the_line(file, tmp_path, capsys):
    options = ["compare", "--dataset", "table", "--metadata", str(file), "--output", str(tmp_path / "out")]
    assert main([*options, "--domain", "sites", "--label", "kind"]) == 1
    assert capsys.readouterr().err.startswith(f"shiftproof: error: --domain: {file}: unknown column 'sites'. Did you")
    text = f"datasets: [table]\nmetadata: {file}\ndomain: site\nlabels: [kind]\nfeatures: [doses]\noptimizers: [adam]\n"
    (tmp_path / "study.yaml").write_text(text)
    run = ["study", "run", str(tmp_path / "study.yaml"), "--output", str(tmp_path / "out")]
    assert main(run) == 1
    assert f"study.yaml, line 5: {file}: unknown column 'doses'" in capsys.readouterr().err


def test_a_study_file_has_the_fields_and_its_smoke_scale_needs_no_table(file, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        f"datasets: [table]\nmetadata: {file}\ndomain: site\nlabels: [kind]\nfeatures: ['dose:number', colour]\n"
        "group: price\nmissing_labels: drop\noptimizers: [adam]\ntargets: [c]\nscales: {smoke: {targets: ['0']}}\n"
    )
    study, _ = read_study(path)
    assert table_of(study, "table").features == ("dose:number", "colour")
    assert {spec.dataset for spec in make_plan(study).runs} == {"trial"}
    assert {spec.dataset for spec in make_plan(read_study(path, "smoke")[0]).runs} == {"rotated_digits"}


def test_pictures_of_a_table_are_trained_on_as_a_folders_are(image_tree, tmp_path, capsys):
    names = [f"{i}.png" for i in range(6)]
    root = image_tree({domain: {"x": names, "y": names} for domain in "ab"})
    lines = ["site,kind,file"] + [f"{d},{c},{d}/{c}/{name}" for d in "ab" for c in "xy" for name in names]
    (root / "list.csv").write_text("\n".join(lines))
    options = ["--optimizers", "adam", "--trials", "1", "--steps", "2", "--batch-size", "4", "--jobs", "1"]
    table = ["--dataset", "table", "--metadata", str(root / "list.csv"), "--domain", "site", "--label", "kind"]
    assert main(["compare", *table, "--image", "file", *options, "--output", str(tmp_path / "one")]) == 0
    printed = capsys.readouterr()
    assert "list.csv: treated as small_images of 12 x 12 pixels" in printed.err
    assert "model small_lenet" in printed.out
    assert "image file" in printed.out
    (root / "list.csv").rename(tmp_path / "list.csv")
    runs = [json.loads(line)["run"] for line in (tmp_path / "one" / "runs.jsonl").read_text().splitlines()]
    assert main(["evaluate", str(tmp_path / "one" / "runs" / runs[0]), "--data-dir", str(root)]) == 0
    assert capsys.readouterr().out.count("of 12 images") == 2


def test_the_example_of_the_guide_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    guide = GUIDE.read_text(encoding="utf-8")
    [(name, text)] = re.findall(r'```csv title="(.*?)"\n(.*?)```', guide, re.DOTALL)
    (tmp_path / name).write_text(text)
    [commands] = re.findall(r"```console\n(.*?)```", guide, re.DOTALL)
    for command in commands.replace("\\\n", "").splitlines():
        assert main([*shlex.split(command)[1:], "--jobs", "1"]) == 0
    printed = capsys.readouterr()
    assert "18 rows in 3 domains; 2 columns of numbers, 2 of categories: smoker, dose" in printed.err
    assert "missing labels 2 rows left out" in printed.out


def test_real_patients_can_be_planned_for_a_quantity():
    if not HEART.is_file():
        pytest.skip("the table of heart disease is not here")
    study = _study(HEART, domain="domain", **REGRESSION | {"labels": ("thalach",)}, missing_labels="drop")
    study = replace(study, features=(), targets=None)
    [grid] = make_plan(study).grids
    assert (grid.images, grid.terms["missing labels"]) == (865, "55 rows left out")
    assert open_table(table_of(study, "table")).left_out == 55
