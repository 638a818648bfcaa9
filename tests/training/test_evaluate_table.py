"""Scores of a run's model on a table: rows as `predict` prepares them, labels as training reads them."""

import numpy as np
import pytest
import torch
from PIL import Image

import shiftproof
from shiftproof.cli import main
from shiftproof.data import DATASETS
from shiftproof.protocol import score
from shiftproof.studies import Study, train_one
from shiftproof.training import evaluate_folder, evaluate_table, predict_rows, read_rows

pytest.importorskip("pyarrow")
HEADER = "site,kind,dose,colour,ill,old"
TASKS = {
    "classification": {"labels": ("kind",)},
    "multilabel": {"labels": ("ill", "old")},
    "regression": {"labels": ("dose",), "task": "regression"},
}


def _lines(count=90):
    """Rows of three sites; the kind is whether the dose is above 0, and the two labels go by dose and site."""
    random = np.random.default_rng(0)
    doses = random.normal(size=count).round(3).tolist()
    return [
        f"{'abc'[i % 3]},{int(dose > 0)},{dose if i % 7 else 0.0},{['red', 'blue', ''][i % 4 % 3]},{int(dose > 0.5)},"
        f"{i % 2}"
        for i, dose in enumerate(doses)
    ]


def _table(path, lines):
    path.write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of every task, by the task, and their table."""
    folder = tmp_path_factory.mktemp("runs")
    table = _table(folder / "visits.csv", _lines())
    for task, fields in TASKS.items():
        features = ("colour", "old") if task == "regression" else ("dose", "colour")
        study = Study(
            datasets=("table",), metadata=table, domain="site", features=features, optimizers=("adam",),
            targets=("c",), trials=1, steps=20, checkpoint_freq=20, **fields,
        )  # fmt: skip
        train_one(study, folder / task, 0, 0)
    return folder


@pytest.mark.parametrize("task", TASKS)
def test_scores_are_those_of_what_predict_predicts(task, runs):
    labels = TASKS[task]["labels"]
    scores, left_out = evaluate_table(runs / task, runs / "visits.csv", labels=labels[::-1], domain="site")
    model = shiftproof.load(runs / task)
    outputs = np.stack([one.outputs for one in predict_rows(model, read_rows(model, runs / "visits.csv"))])
    records = [dict(zip(HEADER.split(","), line.split(","), strict=True)) for line in _lines()]
    assert (list(scores), left_out) == (["a", "b", "c"], 0)
    for i, site in enumerate("abc"):
        targets = np.array([[float(record[label]) for label in labels] for record in records[i::3]])
        if task != "multilabel":
            targets = targets[:, 0]
        targets = targets.astype(np.float32 if task == "regression" else np.int64)
        expected = score(task, outputs[i::3, 0] if task == "regression" else outputs[i::3], targets)
        assert scores[site]["count"] == 30
        assert scores[site]["measures"] == pytest.approx(expected, rel=1e-5)


def test_rows_without_a_domain_are_one_that_is_called_what_the_file_is(runs, capsys):
    scores, _ = evaluate_table(runs / "classification", runs / "visits.csv", labels=("kind",))
    assert list(scores) == ["visits"]
    by_site, _ = evaluate_table(runs / "classification", runs / "visits.csv", labels=("kind",), domain="site")
    assert scores["visits"]["accuracy"] == pytest.approx(np.mean([one["accuracy"] for one in by_site.values()]))
    assert (
        main(["evaluate", str(runs / "classification"), "--metadata", str(runs / "visits.csv"), "--label", "kind"]) == 0
    )
    first, measures = capsys.readouterr().out.splitlines()
    assert first == f"visits: {100 * scores['visits']['accuracy']:.1f} % of 90 rows"
    assert measures.startswith(f"measures of visits: accuracy {100 * scores['visits']['accuracy']:.1f} %, balanced_")


def test_a_regression_is_printed_with_its_error(runs, capsys):
    command = ["evaluate", str(runs / "regression"), "--metadata", str(runs / "visits.csv"), "--label", "dose"]
    assert main(command) == 0
    scores, _ = evaluate_table(runs / "regression", runs / "visits.csv", labels=("dose",))
    rmse = scores["visits"]["measures"]["rmse"]
    assert capsys.readouterr().out.startswith(
        f"visits: rmse {rmse:.3f} of 90 rows\nmeasures of visits: rmse {rmse:.3f}, mae "
    )


def test_a_domain_may_be_small_and_a_feature(runs, tmp_path):
    lines = _lines()
    table = _table(tmp_path / "new.csv", [*lines[:4], "z,1,2.5,green,0,0"])
    with pytest.warns(UserWarning, match="1 of 5 rows have in column colour .*: green"):
        scores, _ = evaluate_table(runs / "classification", table, labels=("kind",), domain="site")
    assert {name: one["count"] for name, one in scores.items()} == {"a": 2, "b": 1, "c": 1, "z": 1}
    with pytest.raises(ValueError, match=r"new\.csv: row 3 has no domain: its column colour is empty"):
        evaluate_table(runs / "classification", table, labels=("kind",), domain="colour")


@pytest.mark.filterwarnings("error")
def test_classes_and_categories_are_found_as_numbers_too(runs, tmp_path):
    pandas = pytest.importorskip("pandas")
    table = pandas.read_csv(runs / "visits.csv").astype({"kind": float})
    table.to_parquet(tmp_path / "visits.parquet")
    table.to_csv(tmp_path / "visits.csv")  # 1.0 for the class 1, and pandas's index in front
    expected, _ = evaluate_table(runs / "classification", runs / "visits.csv", labels=("kind",))
    for name in ("visits.parquet", "visits.csv"):
        assert evaluate_table(runs / "classification", tmp_path / name, labels=("kind",))[0] == expected


def test_rows_without_a_label_are_left_out_with_what_is_wrong_in_them(runs, tmp_path, capsys):
    lines = _lines()
    table = _table(tmp_path / "visits.csv", [*lines[:20], "", "a,,tall,red,0,0", *lines[20:], "b,,1,red,0,0"])
    command = ["evaluate", str(runs / "classification"), "--metadata", str(table), "--label", "kind"]
    assert main(command) == 1
    assert "row 21 has no label: its column kind is empty (2 such rows, which missing_labels" in capsys.readouterr().err
    assert main([*command, "--missing-labels", "drop"]) == 0
    scored, left_out, _ = capsys.readouterr().out.splitlines()
    assert scored.endswith("% of 90 rows")
    assert left_out == f"2 rows have no label in {table} and were left out"


@pytest.mark.parametrize(
    ("task", "row", "described", "message"),
    [
        ("classification", "a,2,1.0,red,0,0", {}, "{file}: row 4: column kind: unknown class '2'. Valid names: 0, 1"),
        ("classification", "a,1,tall,red,0,0", {}, "{file}: row 4: column dose is 'tall', and must be a finite number"),
        ("classification", "a,1,1e39,red,0,0", {}, "{file}: row 4: column dose is '1e39', and must be a finite number"),
        ("classification", ",1,1.0,red,0,0", {}, "{file}: row 4 has no domain: its column site is empty"),
        ("classification", None, {"labels": ("knd",)}, "{file}: unknown column 'knd'. Did you mean kind?"),
        ("classification", None, {"domain": "sites"}, "{file}: unknown column 'sites'. Did you mean site?"),
        ("classification", None, {"labels": ("site",)}, "{file}: column site says the domain and the label"),
        ("classification", None, {"labels": ("kind", "old")}, "{file}: classification has one column of labels, not 2"),
        ("multilabel", "a,1,1.0,red,2,0", {}, "{file}: row 4: column ill is 2, and must be 1 where it applies, else 0"),
        ("multilabel", None, {"labels": ("ill", "dose")}, "the labels of {run} are ill, old, not ill, dose"),
        ("regression", "a,1,tall,red,0,0", {}, "{file}: row 4: column dose is 'tall', and must be a number"),
        ("regression", "a,1,inf,red,0,0", {}, "{file}: row 4 has no finite label: its column dose is inf"),
        ("regression", None, {"image": "site"}, "the model of {run} takes no pictures: name no image"),
    ],
)  # fmt: skip
def test_what_is_wrong_ends_it_with_the_row_and_the_column(task, row, described, message, runs, tmp_path):
    lines = _lines()
    table = _table(tmp_path / "new.csv", lines if row is None else [*lines[:3], row, *lines[3:]])
    with pytest.raises(ValueError) as raised:
        evaluate_table(runs / task, table, **{"labels": TASKS[task]["labels"], "domain": "site", **described})
    assert str(raised.value).startswith(message.format(file=table, run=runs / task))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metadata", "a"], "name the column of the labels in the table: --label COLUMN"),
        (["--metadata", "a", "--label", "kind", "--labels", "b"], "--labels is of a folder, and a table is given"),
        (["--data-dir", "pictures", "--label", "kind"], "--label is of a table, and a folder is given"),
        (["--data-dir", "pictures", "--domain", "site"], "--domain is of a table, and a folder is given"),
        (["--metadata", "none.csv", "--label", "kind"], "none.csv: there is no such file"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together_are_refused(options, message, runs, capsys):
    assert main(["evaluate", str(runs / "classification"), *options]) == 1
    assert capsys.readouterr().err == f"shiftproof: error: {message}\n"


def test_pictures_that_a_column_names_are_scored_as_those_of_a_folder(run, tmp_path, capsys):
    domain = DATASETS["rotated_digits"].open(None, None).domains[5]
    lines = ["camera,digit,file"]
    for i in range(80):
        folder = tmp_path / "pictures" / str(domain.targets[i])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(domain.inputs[i, 0]).save(folder / f"{i:02}.png")
        lines.append(f"{'xy'[i % 2]},{domain.targets[i]},pictures/{domain.targets[i]}/{i:02}.png")
    (tmp_path / "scans.csv").write_text("\n".join(lines))
    described = {"labels": ("digit",), "image": "file"}
    [whole] = evaluate_table(run, tmp_path / "scans.csv", **described)[0].values()
    of_folder = evaluate_folder(run, tmp_path / "pictures")["pictures"]
    assert (whole["count"], whole["accuracy"]) == (80, of_folder["accuracy"])
    assert whole["loss"] == pytest.approx(of_folder["loss"], rel=1e-6)  # the rows are in another order
    model = shiftproof.load(run)
    scores, _ = evaluate_table(run, tmp_path / "scans.csv", domain="camera", **described)
    with torch.inference_mode():
        right = model(model.normalise(torch.from_numpy(domain.inputs[1:80:2]))).argmax(1).numpy()
    assert scores["y"]["accuracy"] == (right == domain.targets[1:80:2]).mean()
    with pytest.raises(ValueError, match="takes pictures: name the column of their files as image"):
        evaluate_table(run, tmp_path / "scans.csv", labels=("digit",))
    (tmp_path / "scans.csv").write_text("\n".join([*lines, "x,3,none.png"]))
    command = ["evaluate", str(run), "--metadata", str(tmp_path / "scans.csv"), "--label", "digit", "--image", "file"]
    assert main(command) == 1
    assert f"row 81: there is no picture {tmp_path / 'none.png'}, which column file names" in capsys.readouterr().err
