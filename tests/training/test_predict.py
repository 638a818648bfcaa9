"""Predictions for pictures and rows, from the command line and by hand."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import shiftproof
from shiftproof.algorithms import arm
from shiftproof.cli import main
from shiftproof.cli.parser import make_parser
from shiftproof.data import DATASETS, Column, Preparation
from shiftproof.models import Quantity, build_network
from shiftproof.training import (
    EVALUATION_BATCH,
    Prediction,
    SavedModel,
    as_row,
    csv_lines,
    evaluate_folder,
    predict_pictures,
    predict_rows,
    read_rows,
    train,
)

OLD_RUN = Path(__file__).parents[1] / "studies" / "old_runs" / "runs" / "00fe444e690d014d"
HEART = "--dataset heart_disease --target va_long_beach --steps 20 --optimizer adam"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """130 pictures, in two folders and a folder of one of them, with names whose order is not that of their numbers."""
    root = tmp_path_factory.mktemp("pictures")
    domain = DATASETS["rotated_digits"].open(None, None).domains[5]
    for i in range(130):
        folder = root / ("b", "a", "b/deeper")[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(domain.inputs[i, 0]).save(folder / f"{i}.png")
    (root / "notes.txt").write_text("no picture")
    return root


@pytest.fixture(scope="module")
def heart(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heart")
    assert main(["train", *HEART.split(), "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def patients():
    """Rows of the unseen hospital, with missing values, by their columns."""
    dataset = DATASETS["heart_disease"].open(None, None)
    return dataset.columns, dataset.domains[dataset.domain_names.index("va_long_beach")].inputs[:100]


def _write_table(path, columns, vectors, **more):
    def text(column, value):
        if np.isnan(value):
            return ""
        return column.categories[int(value)] if column.categories else repr(float(value))

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*more, *(column.name for column in reversed(columns))])
        for i, row in enumerate(vectors):
            pairs = zip(reversed(columns), row[::-1], strict=True)
            writer.writerow([*(values[i] for values in more.values()), *(text(*pair) for pair in pairs)])
    return path


def _csv(text):
    return list(csv.DictReader(io.StringIO(text)))


def _json(path):
    return json.loads(path.read_text())


# Pictures


def test_predictions_of_a_folder_are_the_models_of_each_picture(run, pictures, tmp_path, capsys):
    output = tmp_path / "predictions.json"
    assert main(["predict", str(run), str(pictures), "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"written: {output}\n"
    rows = _json(output)
    files = [row["file"] for row in rows]
    assert files == sorted(map(str, pictures.rglob("*.png")), key=lambda name: name.rpartition("/")[::2])
    assert len(files) == 130
    model = shiftproof.load(run)
    with torch.inference_mode():
        logits = torch.cat([model(model.transform(file)[None]) for file in files])
    shares = logits.double().softmax(1)
    found = torch.tensor([[row[f"probability_{name}"] for name in model.classes] for row in rows])
    torch.testing.assert_close(found, shares.float(), atol=1e-6, rtol=0)
    assert [row["prediction"] for row in rows] == [model.classes[i] for i in logits.argmax(1)]
    assert {row["error"] for row in rows} == {None}


def test_predictions_are_bit_for_bit_those_that_evaluate_scores(run, pictures, tmp_path):
    domain = DATASETS["rotated_digits"].open(None, None).domains[5]
    for path in pictures.rglob("*.png"):
        folder = tmp_path / "labelled" / str(domain.targets[int(path.stem)])
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    model = shiftproof.load(run)
    paths = [folder / name for folder in sorted((tmp_path / "labelled").iterdir())
             for name in sorted(path.name for path in folder.iterdir())]  # fmt: skip
    outputs = torch.from_numpy(np.stack([one.outputs for one in predict_pictures(model, paths)]))
    labels = torch.tensor([int(path.parent.name) for path in paths])
    scored = evaluate_folder(run, tmp_path / "labelled")["labelled"]
    losses = torch.nn.functional.cross_entropy(outputs, labels, reduction="none")
    assert scored["loss"] == sum(part.double().sum().item() for part in losses.split(64)) / 130
    assert scored["accuracy"] == (outputs.argmax(1) == labels).sum().item() / 130


@pytest.mark.parametrize("suffix", ["csv", "CSV", "json", "parquet"])
def test_every_format_holds_the_same(suffix, run, pictures, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"")
    inputs = [str(pictures / "a"), str(tmp_path / "broken.png")]
    assert main(["predict", str(run), *inputs]) == 1
    printed = _csv(capsys.readouterr().out)
    output = tmp_path / f"predictions.{suffix}"
    assert main(["predict", str(run), *inputs, "--output", str(output)]) == 1
    if suffix == "parquet":
        pandas, _ = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
        table = pandas.read_parquet(output)
        assert str(table["probability_3"].dtype) == "float64"
        rows = [{k: None if v != v else v for k, v in row.items()} for row in table.to_dict("records")]
    elif suffix == "json":
        rows = _json(output)
    else:
        rows = _csv(output.read_text())
    assert list(rows[0]) == ["file", "prediction", *(f"probability_{i}" for i in range(10)), "error"]
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows] == printed
    assert len(rows) == 44
    assert list(tmp_path.glob(".*")) == []


def test_a_damaged_picture_among_good_ones_is_named_and_ends_nothing(run, pictures, tmp_path, capsys):
    for path in (pictures / "a").iterdir():
        shutil.copy(path, tmp_path)
    whole = sorted(tmp_path.iterdir())[20]
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    assert main(["predict", str(run), str(tmp_path)]) == 1
    printed = capsys.readouterr()
    rows = _csv(printed.out)
    assert f"shiftproof: {whole}: " in printed.err
    assert printed.err.endswith("shiftproof: 1 of 43 pictures have no prediction\n")
    [bad] = [row for row in rows if row["error"]]
    assert (bad["file"], bad["prediction"], bad["probability_0"]) == (str(whole), "", "")
    assert main(["predict", str(run), str(pictures / "a")]) == 0
    good = {Path(row["file"]).name: row for row in _csv(capsys.readouterr().out)}
    for row in rows:
        if not row["error"]:
            other = good[Path(row["file"]).name]
            assert row["prediction"] == other["prediction"]
            assert float(row["probability_3"]) == pytest.approx(float(other["probability_3"]), abs=1e-6)


def test_the_batch_size_is_that_of_evaluate_and_changes_nothing(run, pictures):
    assert make_parser().parse_args(["predict", "RUN", "INPUT"]).batch_size == EVALUATION_BATCH
    model = shiftproof.load(run)
    paths = sorted(pictures.rglob("*.png"))
    one, many = (np.stack([p.outputs for p in predict_pictures(model, paths, size)]) for size in (7, 200))
    np.testing.assert_allclose(one, many, atol=1e-5)


@pytest.mark.parametrize("algorithm", ["arm", "mtl"])
def test_predictions_that_depend_on_the_batch_take_that_of_evaluate(
    algorithm, make_spec, digits, tmp_path, monkeypatch, pictures, capsys
):
    monkeypatch.setattr(arm, "HIDDEN", 8)
    train(make_spec(algorithm=algorithm, steps=4), digits, tmp_path / "run", device=torch.device("cpu"))
    model = shiftproof.load(tmp_path / "run")
    assert main(["predict", str(tmp_path / "run"), str(pictures)]) == 0
    printed = capsys.readouterr()
    assert f"predictions of {algorithm} depend on the inputs beside them: 64 together, in order" in printed.err
    rows = _csv(printed.out)
    inputs = torch.stack([model.transform(row["file"]) for row in rows])
    with torch.inference_mode():
        shares = torch.cat([model(part) for part in inputs.split(64)]).double().softmax(1)
        alone = torch.cat([model(part) for part in inputs.split(1)]).double().softmax(1)
    found = torch.tensor([[float(row[f"probability_{i}"]) for i in range(10)] for row in rows], dtype=torch.float64)
    torch.testing.assert_close(found, shares, atol=1e-6, rtol=0)
    assert (found - alone).abs().max() > 1e-5
    assert main(["predict", str(tmp_path / "run"), str(pictures), "--batch-size", "8"]) == 1
    assert "--batch-size must be 64" in capsys.readouterr().err


def test_an_old_run_predicts(pictures, capsys):
    assert main(["predict", str(OLD_RUN), str(pictures / "a")]) == 0
    rows = _csv(capsys.readouterr().out)
    model = shiftproof.load(OLD_RUN)
    with torch.inference_mode():
        logits = torch.cat([model(model.transform(row["file"])[None]) for row in rows])
    assert [row["prediction"] for row in rows] == [model.classes[i] for i in logits.argmax(1)]
    assert float(rows[5]["probability_4"]) == pytest.approx(float(logits[5].softmax(0)[4]), abs=1e-6)


def test_a_run_elsewhere_predicts(run, pictures, tmp_path, capsys):
    upath = pytest.importorskip("upath", reason="universal-pathlib is not installed")
    there = upath.UPath(f"memory://{tmp_path.name}")
    for name in ("model.json", "model.safetensors"):
        (there / name).write_bytes((run / name).read_bytes())
    assert main(["predict", str(run), str(pictures / "a")]) == 0
    here = capsys.readouterr().out
    assert main(["predict", str(there), str(pictures / "a"), "--output", str(there / "predictions.csv")]) == 0
    assert (there / "predictions.csv").read_text() == here


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{pictures}", "--output", "{tmp}/p.txt"], "its suffix must be .csv, .json or .parquet"),
        (["{pictures}", "--output", "{tmp}/p.cvs"], "Did you mean .csv?"),
        (["{pictures}", "--output", "{tmp}/none/p.csv"], "there is no folder {tmp}/none"),
        (["{pictures}", "{tmp}/none.png"], "no such file or folder: {tmp}/none.png"),
        (["{tmp}"], "{tmp}: no images in it or below; images are files in .jpg"),
        (["{tmp}/table.csv"], "the model takes pictures, and {tmp}/table.csv is a table"),
        (["{pictures}", "--batch-size", "0"], "the batch size must be a whole number above 0, not 0"),
        (["{pictures}", "--device", "cuda:77"], "device cuda:77 is not available"),
    ],
)
def test_bad_input_is_refused_before_anything_is_predicted(options, message, run, pictures, tmp_path, capsys):
    (tmp_path / "table.csv").write_text("a\n1\n")
    given = [option.format(pictures=pictures, tmp=tmp_path) for option in options]
    assert main(["predict", str(run), *given]) == 1
    printed = capsys.readouterr()
    assert message.format(tmp=tmp_path) in printed.err
    assert printed.out == ""


# Rows


def test_predictions_of_rows_are_the_models_of_what_it_was_trained_on(heart, patients, tmp_path, capsys):
    columns, vectors = patients
    table = _write_table(tmp_path / "patients.csv", columns, vectors, patient=[f"p{i}" for i in range(100)])
    assert main(["predict", str(heart), str(table)]) == 0
    rows = _csv(capsys.readouterr().out)
    model = shiftproof.load(heart)
    with torch.inference_mode():
        logits = model(model.normalise(torch.from_numpy(vectors)))
    assert [row["row"] for row in rows] == [str(i) for i in range(1, 101)]
    assert [row["prediction"] for row in rows] == [model.classes[i] for i in logits.argmax(1)]
    found = torch.tensor([[float(row[f"probability_{i}"]) for i in "01"] for row in rows], dtype=torch.float64)
    torch.testing.assert_close(found, logits.double().softmax(1), atol=1e-6, rtol=0)


def test_a_parquet_table_gives_what_a_csv_table_gives(heart, patients, tmp_path, capsys):
    pandas, _ = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    table = _write_table(tmp_path / "patients.csv", *patients)
    pandas.read_csv(table).to_parquet(tmp_path / "patients.parquet")  # categories become 1.0 where values are missing
    printed = []
    for file in (table, tmp_path / "patients.parquet"):
        assert main(["predict", str(heart), str(file)]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert len(printed[0].splitlines()) == 101


def test_a_category_that_training_has_not_seen_takes_its_place(heart, patients, tmp_path, capsys):
    columns, vectors = patients
    table = _write_table(tmp_path / "patients.csv", columns, vectors[:3])
    place = next(i for i, column in enumerate(columns) if column.name == "restecg")
    lines = table.read_text().splitlines()
    fields = lines[2].split(",")
    fields[len(columns) - 1 - place] = "unheard of"
    table.write_text("\n".join([*lines[:2], ",".join(fields), lines[3]]) + "\n")
    with pytest.warns(UserWarning, match="1 of 3 rows have in column restecg .* did not have: unheard of"):
        assert main(["predict", str(heart), str(table)]) == 0
    rows = _csv(capsys.readouterr().out)
    changed = vectors[:3].copy()
    changed[1, place] = len(columns[place].categories)
    model = shiftproof.load(heart)
    with torch.inference_mode():
        shares = model(model.normalise(torch.from_numpy(changed))).softmax(1)
    assert [float(row["probability_1"]) for row in rows] == pytest.approx(shares[:, 1].tolist(), abs=1e-6)


def test_a_row_without_the_number_it_must_have_is_named(heart, patients, tmp_path, capsys):
    columns, vectors = patients
    table = _write_table(tmp_path / "patients.csv", columns, vectors[:70])
    lines = table.read_text().splitlines()
    for line, value in ((2, "tall"), (66, "inf")):
        fields = lines[line].split(",")
        fields[len(columns) - 1] = value
        lines[line] = ",".join(fields)
    table.write_text("\n".join(lines))
    assert main(["predict", str(heart), str(table), "--output", str(tmp_path / "out.json")]) == 1
    error = capsys.readouterr().err
    assert f"shiftproof: {table}, row 2: column age is 'tall', and must be a finite number\n" in error
    assert error.endswith("shiftproof: 2 of 70 rows have no prediction\n")
    rows = _json(tmp_path / "out.json")
    assert [row["row"] for row in rows if row["prediction"] is None] == [2, 66]
    model = shiftproof.load(heart)
    with torch.inference_mode():
        share = model(model.normalise(torch.from_numpy(vectors[69:70]))).softmax(1)[0, 1]
    assert rows[69]["probability_1"] == pytest.approx(float(share), abs=1e-6)


def test_tables_that_do_not_fit_are_refused(heart, patients, tmp_path, capsys):
    columns, vectors = patients
    table = _write_table(tmp_path / "patients.csv", columns, vectors)
    whole = table.read_text()
    for text, message in (
        (
            whole.replace("chol", "cholesterol", 1).replace("age", "years", 1),
            "No column 'age'. No column 'chol'. Did you mean cholesterol",
        ),
        (whole.replace("thal,", "age,thal,", 1), "column 'age' is there 2 times"),
        (whole + "1,2\n", "line 102: 2 fields, but the first line names 13"),
        (whole.splitlines()[0], "has no rows"),
    ):
        table.write_text(text)
        assert main(["predict", str(heart), str(table)]) == 1
        assert message in capsys.readouterr().err
    (tmp_path / "no.parquet").write_text("no parquet")
    for inputs in ([tmp_path / "no.parquet"], [table, table], [tmp_path]):
        assert main(["predict", str(heart), *map(str, inputs)]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert "cannot be read as Parquet" in errors[0]
    assert (
        errors[1:]
        == ["shiftproof: error: the model takes the rows of a table: give one file of .csv, .parquet, .pq"] * 2
    )


# Tasks


def _vector_model(task, classes, quantity=None):
    rows = np.array([[1.0, 0], [2, 1], [4, 0]] * 5, dtype=np.float32)
    preparation = Preparation.fit((Column("size"), Column("colour", ("blue", "red"))), rows)
    network = build_network(
        "linear", (len(preparation.names),), len(classes), dropout=0.0, seed=0, task=task, quantity=quantity
    )
    return SavedModel(network, classes, (len(preparation.names),), preparation).eval()


def _rows_of(model, tmp_path):
    (tmp_path / "table.csv").write_text("colour,size\nred,3\n,5\n")
    rows = read_rows(model, tmp_path / "table.csv")
    inputs = model.normalise(torch.tensor([[3.0, 1.0], [5.0, np.nan]]))
    with torch.inference_mode():
        return [as_row(model, one) for one in predict_rows(model, rows)], model(inputs).double()


def test_several_labels_have_a_probability_each(tmp_path):
    model = _vector_model("multilabel", ("ill", "old", "tall"))
    rows, logits = _rows_of(model, tmp_path)
    assert list(rows[0]) == ["row", "probability_ill", "probability_old", "probability_tall", "error"]
    found = torch.tensor([list(row.values())[1:4] for row in rows], dtype=torch.float64)
    torch.testing.assert_close(found, 1 / (1 + (-logits).exp()))


def test_a_regression_predicts_its_value(tmp_path):
    model = _vector_model("regression", ("price",), Quantity(1000.0, 50.0))
    rows, values = _rows_of(model, tmp_path)
    assert [row["prediction"] for row in rows] == values[:, 0].tolist()
    header, *lines = csv_lines(model, rows)
    assert header == "row,prediction,error\n"
    assert lines == [f"{i},{float(value)!r},\n" for i, [value] in enumerate(values.tolist(), 1)]


def test_what_is_not_finite_is_an_error(tmp_path):
    model = _vector_model("classification", ("a", "b"))
    torch.nn.init.constant_(model.network.classifier.bias, float("nan"))
    rows, _ = _rows_of(model, tmp_path)
    assert rows[0] == {
        "row": 1, "prediction": None, "probability_a": None, "probability_b": None,
        "error": "the model's output is not finite",
    }  # fmt: skip
    assert as_row(model, Prediction(3, None, "bad"))["error"] == "bad"
