"""The whole comparison through the command line's own functions, small."""

import csv
import json
import subprocess
import sys

import pytest

from shiftproof.cli import main
from shiftproof.studies import StoreBusyError, Study, make_plan, run_study
from shiftproof.studies.store import Store, claim
from shiftproof.tables import build_tables

SMALL = [
    "--dataset",
    "rotated_digits",
    "--steps",
    "6",
    "--batch-size",
    "4",
    "--targets",
    "30",
    "75",
    "--trials",
    "2",
    "--optimizers",
    "sgd",
    "genie",
    "--jobs",
    "2",
]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    output = tmp_path_factory.mktemp("compare")
    assert main(["compare", *SMALL, "--output", str(output)]) == 0
    return output


def _rows(output):
    return [json.loads(line) for line in (output / "runs.jsonl").read_text().splitlines()]


def _untimed(output):
    return [{**row, "seconds": None} for row in _rows(output)]


def test_the_store_has_one_folder_and_one_line_per_run(compared):
    rows = _rows(compared)
    assert len(rows) == len({row["run"] for row in rows}) == 2 * 2 * 2
    for row in rows:
        assert (compared / "runs" / row["run"] / "result.json").exists()
        assert row["selection"].keys() == {"training_domain", "leave_one_domain_out", "oracle", "last"}
        assert row["selection"]["last"].keys() == {"step", "validation", "accuracy", "class_mean", "measures"}
        assert (row["dataset"], row["algorithm"], row["annealer"]) == ("rotated_digits", "erm", "none")
        assert (row["status"], row["error"], row["hparam_seed"], row["passes"]) == ("finished", None, 0, 6)
        assert row["hparams"]["data.batch_size"] == 4
        assert row["seconds"] > 0


def test_the_table_is_what_the_runs_say(compared):
    rows = _rows(compared)
    with (compared / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {row["selection"] for row in lines} == {"training_domain", "oracle", "last"}
    table = [row for row in lines if row["selection"] == "training_domain"]
    assert [(row["optimizer"], row["target"]) for row in table] == [
        (optimizer, target) for optimizer in ("sgd", "genie") for target in ("30", "75", "mean", "worst")
    ]

    def accuracy(optimizer, target, trial):
        [row] = [r for r in rows if (r["optimizer"], r["target"], r["trial_seed"]) == (optimizer, target, trial)]
        return row["selection"]["training_domain"]["accuracy"]

    means = {o: [sum(accuracy(o, t, trial) for t in ("30", "75")) / 2 for trial in range(2)] for o in ("sgd", "genie")}
    mean = next(row for row in table if (row["optimizer"], row["target"]) == ("genie", "mean"))
    assert float(mean["accuracy"]) == pytest.approx(sum(means["genie"]) / 2)
    assert float(mean["standard_error"]) == pytest.approx(abs(means["genie"][0] - means["genie"][1]) / 2)
    worst = next(row for row in table if (row["optimizer"], row["target"]) == ("genie", "worst"))
    least = [min(accuracy("genie", target, trial) for target in ("30", "75")) for trial in range(2)]
    assert float(worst["accuracy"]) == pytest.approx(sum(least) / 2)
    differences = [g - s for g, s in zip(means["genie"], means["sgd"], strict=True)]
    assert float(mean["difference"]) == pytest.approx(sum(differences) / 2)
    half = 12.706205 * abs(differences[0] - differences[1]) / 2  # Student's t with one degree of freedom
    assert float(mean["difference_high"]) == pytest.approx(sum(differences) / 2 + half, abs=1e-6)
    assert (mean["passes_per_step"], mean["protocol"], mean["steps"]) == ("1.0", "shiftproof", "6")


def test_the_number_of_jobs_changes_no_result(compared, tmp_path):
    assert main(["compare", *SMALL[:-1], "1", "--output", str(tmp_path)]) == 0
    assert _untimed(tmp_path) == _untimed(compared)


def test_started_again_it_does_only_what_is_missing(compared, capsys):
    rows = _rows(compared)
    lost = compared / "runs" / rows[3]["run"] / "result.json"
    kept = {row["run"]: (compared / "runs" / row["run"] / "result.json").stat().st_mtime_ns for row in rows}
    lost.unlink()
    assert main(["compare", *SMALL, "--output", str(compared)]) == 0
    assert "runs finished 8 of 8" in capsys.readouterr().out
    assert [{**row, "seconds": None} for row in rows] == _untimed(compared)
    again = {row["run"]: (compared / "runs" / row["run"] / "result.json").stat().st_mtime_ns for row in rows}
    assert [run for run in kept if kept[run] != again[run]] == [rows[3]["run"]]


def test_a_second_process_on_the_output_is_refused(compared, capsys):
    with claim(compared):
        assert main(["compare", *SMALL, "--output", str(compared)]) == 1
    assert "another process is working on" in capsys.readouterr().err
    with claim(compared), pytest.raises(StoreBusyError), claim(compared / "."):
        pass


def test_a_failed_run_stands_as_failed_and_the_others_go_on(tmp_path, capsys):
    options = [*SMALL, "--set", "optimizer.momentum=1e30", "--trials", "1", "--output", str(tmp_path)]
    assert main(["compare", *options, "--optimizers", "sgd", "--targets", "30"]) == 1  # nothing finished
    assert "failed" in capsys.readouterr().out.splitlines()[2]
    assert main(["compare", *options]) == 0
    printed = capsys.readouterr().out
    assert "failed" in printed.splitlines()[2]
    assert "failed" not in printed.splitlines()[3]
    assert "erm + sgd on 30, trial 0, setting 0: the loss was" in printed
    row = _rows(tmp_path)[0]
    assert row["status"] == "failed"
    assert set(row["selection"].values()) == {None}


def test_an_error_that_may_pass_is_recorded_and_tried_again(tmp_path):
    study = Study(steps=2, optimizers=("sgd",), targets=("0",), trials=2, fixed={"data.batch_size": 2})
    damaged = Store(tmp_path).folder(make_plan(study).runs[1])
    damaged.mkdir(parents=True)
    (damaged / "checkpoint.pt").write_text("nothing")
    [table] = build_tables(run_study(study, tmp_path, workers=1))
    assert "checkpoint.pt is damaged" in table.failures[0]
    assert "(tried 3 times)" in table.failures[0]
    assert table.rows[0].cells["0"].trials == 1
    assert "DamagedFileError" in (damaged / "error.txt").read_text()
    (damaged / "checkpoint.pt").unlink()
    assert build_tables(run_study(study, tmp_path, workers=1))[0].failures == []


def test_a_damaged_result_stops_before_anything_is_trained(compared, tmp_path, capsys):
    study = Study(steps=2, optimizers=("sgd",), targets=("0",), trials=1)
    folder = Store(tmp_path).folder(make_plan(study).runs[0])
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{")
    options = ["--dataset", "rotated_digits", "--steps", "2", "--optimizers", "sgd", "--targets", "0", "--trials", "1"]
    assert main(["compare", *options, "--output", str(tmp_path)]) == 1
    assert f"{folder / 'result.json'} is damaged" in capsys.readouterr().err


def test_one_source_domain_is_said_once(tmp_path):
    """Through the command itself: of a worker's warnings pytest sees nothing."""
    options = ["--algorithms", "erm", "coral", "arm", "--optimizers", "adam", "--single-source", "--batch-size", "4"]
    command = [
        sys.executable,
        "-m",
        "shiftproof",
        "compare",
        "--dataset",
        "rotated_digits",
        *options,
        "--steps",
        "1",
        "--trials",
        "1",
    ]
    done = subprocess.run([*command, "--jobs", "1", "--output", str(tmp_path)], check=True, capture_output=True)
    said = "compares the features of source domains: with one domain CORAL is ERM"
    assert (done.stderr + done.stdout).decode().count(said) == 1
    accuracies = {}
    for row in _rows(tmp_path):
        accuracies.setdefault(row["algorithm"], []).append(row["selection"]["last"]["accuracy"])
    assert accuracies["coral"] == accuracies["erm"]
    assert "Transductive: arm: predictions use the other images" in done.stdout.decode()
    assert "Transductive: arm" in (tmp_path / "report.html").read_text(encoding="utf-8")
