"""What is left of runs whose optimizer was removed since can be read, and is neither continued nor overwritten.

`old_runs` is the output of a comparison of sgd and genie_invariant on two domains, which commit 7318081 wrote, the last
that had genie_invariant, and which was interrupted in the last run. Figures, locks, the index and all but one model
were taken out of it, and of the checkpoint all but tensors of ten elements at most.
"""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from shiftproof import load
from shiftproof.base.registry import RemovedNameError
from shiftproof.cli import main
from shiftproof.data import DATASETS
from shiftproof.figures import diagnosis
from shiftproof.figures.traces import Subject, trace
from shiftproof.studies import Study, read_results
from shiftproof.studies.plan import read_spec
from shiftproof.studies.study import FieldError
from shiftproof.training import train

OLD = Path(__file__).with_name("old_runs")
FINISHED, HALF = "00fe444e690d014d", "1010f5adbd8ed49f"
DIGITS = DATASETS["rotated_digits"].open(None, None)
COMPARE = (
    "--dataset rotated_digits --optimizers sgd genie_invariant --targets 30 45 --trials 1 --steps 4 "
    "--checkpoint-freq 2 --batch-size 2"
)
REMOVED = (
    "optimizer 'genie_invariant' was removed: it cost three times AdamW and was no easier to tune. Use genie_adamw, "
    "which"
)


@pytest.fixture
def old(tmp_path):
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def _files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _spec(folder):
    return read_spec(json.loads((folder / "spec.json").read_text()))


# What is read


def test_tables_and_report_are_as_they_were_and_marked(old, capsys):
    assert main(["study", "table", str(old), "--format", "csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert {row.pop("results version") for row in rows} == {"4, earlier than today's 6"}
    assert {(row.pop("averaging"), row.pop("shared")) for row in rows} == {("none", "1")}  # not told then
    before = list(csv.DictReader((OLD / "table.csv").read_text().splitlines()))
    assert [row for row in rows if row["target"] != "worst"] == before  # they had no such lines
    worst = [row["accuracy"] for row in rows if row["target"] == "worst"]
    assert worst == ["0.09166666666666666", "", "0.0875", "", "0.0875", ""]
    assert main(["study", "table", str(old), "--baseline", "erm + genie_invariant"]) == 0
    assert "erm + genie_invariant" in capsys.readouterr().out
    assert main(["study", "status", str(old)]) == 0
    assert (
        "begun: erm + genie_invariant on rotated_digits, 45, trial 0, setting 0: step 2 of 4" in capsys.readouterr().out
    )
    assert main(["study", "report", str(old)]) == 0
    assert "erm + genie_invariant" in (old / "report.html").read_text()


def _as_of_today(row):
    """Return a row of then with what rows hold since: accuracy was the only measure, and every training of one run."""
    selection = {
        rule: chosen and {**chosen, "measures": {"accuracy": chosen["accuracy"]}}
        for rule, chosen in row["selection"].items()
    }
    since = {"results_version": 4, "metric": "accuracy", "constant": None, "averaging": "none", "shared": 1}
    return {**row, **since, "selection": selection}


def test_rows_are_as_they_were_without_and_with_an_index(old):
    recorded = [_as_of_today(json.loads(line)) for line in (OLD / "runs.jsonl").read_text().splitlines()]
    assert read_results(old).rows == recorded
    assert (old / "index.jsonl").exists()
    assert read_results(old).rows == recorded


def test_the_model_scores_as_it_did(old, tmp_path, capsys):
    model = load(old / "runs" / FINISHED)
    parts = json.loads((OLD / "runs" / FINISHED / "metrics.jsonl").read_text().splitlines()[0])["domains"][
        "30"
    ].values()
    unseen = DIGITS.domains[DIGITS.domain_names.index("30")]
    with torch.inference_mode():
        logits = model(model.normalise(torch.from_numpy(unseen.inputs)))
    labels = torch.from_numpy(unseen.targets)
    recorded = sum(part["count"] * part["loss"] for part in parts) / len(labels)
    assert float(F.cross_entropy(logits, labels)) == pytest.approx(recorded, rel=1e-5)
    for number, (image, label) in enumerate(zip(unseen.inputs, unseen.targets, strict=True)):
        folder = tmp_path / "images" / "30" / model.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(folder / f"{number}.png")
    assert main(["evaluate", str(old / "runs" / FINISHED), "--data-dir", str(tmp_path / "images")]) == 0
    right = sum(part["count"] * part["accuracy"] for part in parts)
    assert capsys.readouterr().out.startswith(f"30: {100 * right / len(labels):.1f} % of {len(labels)} images\n")


@pytest.mark.parametrize(
    ("what", "drawn"), [("embedding", "embedding"), pytest.param("sharpness", "flatness", marks=pytest.mark.slow)]
)
def test_what_needs_no_training_is_diagnosed(what, drawn, old, capsys, monkeypatch):
    monkeypatch.setattr(diagnosis, "best_projection", lambda: "pca")  # UMAP takes half a minute to compile
    run = old / "runs" / FINISHED
    assert main(["diagnose", str(run), "--what", what]) == 0
    assert {path.stem for path in (run / "diagnostics").glob("*.svg")} == {drawn}


def test_what_takes_training_is_not_diagnosed(old, capsys):
    run = old / "runs" / FINISHED
    before = _files(old)
    assert main(["diagnose", str(run)]) == 1
    error = capsys.readouterr().err
    assert f"{run} cannot be trained again: {REMOVED}" in error
    assert "Sharpness and embedding need no training" in error
    assert _files(old) == before


def test_what_was_recorded_beside_its_training_is_drawn(old):
    run = old / "runs" / FINISHED
    spec = _spec(run)
    # a trace holds no state of the optimizer: one of another stands for the one that was kept
    other = _spec(old / "runs" / "cac4a3d742209ff8")
    trace(Subject(other, DIGITS, torch.device("cpu"), None), run / "traces")
    (run / "traces" / f"{other.name}.pt").rename(run / "traces" / f"{spec.name}.pt")
    with pytest.warns(UserWarning, match="did not reach the same weights"):
        assert main(["diagnose", str(run), "--what", "balance"]) == 0
    assert {"balance", "balance_numbers"} == {path.stem for path in (run / "diagnostics").glob("*.svg")}


# What is refused, before anything is trained or written


@pytest.mark.parametrize("command", [f"compare {COMPARE}", "study run FILE", "study plan FILE"])
def test_the_comparison_is_not_continued(command, old, tmp_path, capsys):
    file = tmp_path / "old.yaml"
    file.write_text(
        "name: old\n"
        "targets: ['30', '45']\n"
        "optimizers: [sgd, genie_invariant]\n"
        "trials: 1\nsteps: 4\ncheckpoint_freq: 2\nfixed: {data.batch_size: 2}\n"
    )
    before = _files(old)
    assert main([*command.replace("FILE", str(file)).split(), "--output", str(old)]) == 1
    printed = capsys.readouterr()
    place = "--optimizers: " if command.startswith("compare") else f"{file}, line 3: "
    assert printed.err.startswith(f"shiftproof: error: {place}{REMOVED}")
    assert "skipped" not in printed.out
    assert _files(old) == before


def test_the_command_line_wins_over_a_file_that_names_it(old, tmp_path, capsys):
    file = tmp_path / "old.yaml"
    file.write_text("name: old\noptimizers: [sgd, genie_invariant]\nsteps: 1\n")
    assert main(["study", "run", str(file), "--optimizers", "adam", "genie_invariant", "--output", str(old)]) == 1
    assert capsys.readouterr().err.startswith(f"shiftproof: error: --optimizers: {REMOVED}")
    assert main(["study", "plan", str(file), "--optimizers", "sgd"]) == 0


def test_the_interrupted_run_is_not_continued(old, capsys):
    folder = old / "runs" / HALF
    before = _files(folder)
    options = "--optimizer genie_invariant --target 45 --steps 4 --checkpoint-freq 2 --batch-size 2"
    assert main(["train", *options.split(), "--output", str(folder)]) == 1
    assert capsys.readouterr().err.startswith(f"shiftproof: error: --optimizer: {REMOVED}")
    with pytest.raises(RemovedNameError, match="was removed"):
        train(_spec(folder), DIGITS, folder, device=torch.device("cpu"))
    assert _files(folder) == before


def test_a_comparison_without_it_goes_on_and_keeps_its_runs(old, capsys):
    before = _files(old / "runs")
    assert main(["compare", *COMPARE.replace(" genie_invariant", "").split(), "--jobs", "1", "--output", str(old)]) == 0
    assert "it is replaced, its runs are kept" in capsys.readouterr().err
    assert before.items() <= _files(old / "runs").items()
    rows = [json.loads(line) for line in (old / "runs.jsonl").read_text().splitlines()]
    assert [row for row in rows if row["optimizer"] == "genie_invariant"] == [
        _as_of_today(row)
        for line in (OLD / "runs.jsonl").read_text().splitlines()
        if (row := json.loads(line))["run"] == FINISHED
    ]


def test_new_names_are_refused_as_unknown_ones_are():
    with pytest.raises(FieldError, match="was removed") as error:
        Study(optimizers=("genie_invariant",))
    assert error.value.field == "optimizers"
