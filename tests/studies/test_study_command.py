"""The named studies through the command line, from plan to report."""

import csv
import io
import json
from pathlib import Path

import pytest

from shiftproof.cli import main
from shiftproof.studies import named_studies, read_plan, read_status, study_path
from shiftproof.studies.store import claim

NAMES = (
    "optimizers",
    "algorithms",
    "single_source",
    "convergence",
    "sensitivity",
    "annealing",
    "ablation",
    "erm_plus_plus",
)


def test_there_are_eight_named_studies():
    assert sorted(named_studies()) == sorted(NAMES)


def test_a_study_is_named_or_its_file_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert study_path("optimizers") == named_studies()["optimizers"]
    assert study_path("studies/optimizers.yaml") == named_studies()["optimizers"]  # of a clone of version 0.1
    for other in ("/nowhere/studies/optimizers.yaml", "mine/studies/optimizers.yaml", "studies/optimizers.yml"):
        assert study_path(other) == Path(other)
    (tmp_path / "optimizers").write_text("")
    assert study_path("optimizers") == Path("optimizers")  # the user's own file
    with pytest.raises(SystemExit):
        main(["study", "plan", "optimisers"])
    assert "unknown study 'optimisers'. Did you mean optimizers?" in capsys.readouterr().err
    assert main(["study", "plan", "optimisers.yaml"]) == 1
    assert "there is no study file optimisers.yaml" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:CORAL .* is ERM:UserWarning")  # of a single source
@pytest.mark.parametrize(
    "name",
    [name if name in ("optimizers", "erm_plus_plus") else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_a_named_study_runs_from_plan_to_report(name, tmp_path, capsys):
    output = str(tmp_path / "out")
    assert main(["study", "plan", name, "--scale", "smoke"]) == 0
    planned = capsys.readouterr().out
    assert "rotated_digits" in planned
    assert "in all: " in planned
    assert main(["study", "run", name, "--scale", "smoke", "--output", output, "--jobs", "2"]) == 0
    printed = capsys.readouterr().out
    runs = len(read_plan(tmp_path / "out").distinct)
    assert f"runs finished {runs} of {runs}" in printed
    assert f"in all: {runs:,} runs" in planned
    assert main(["study", "status", output]) == 0
    assert f"{runs} of {runs} runs finished, 0 failed, 0 begun, 0 waiting" in capsys.readouterr().out
    for form in ("text", "markdown", "latex", "csv"):
        assert main(["study", "table", output, "--format", form]) == 0
        assert "erm" in capsys.readouterr().out
    (tmp_path / "out" / "report.html").unlink()
    assert main(["study", "report", output]) == 0
    assert "erm" in (tmp_path / "out" / "report.html").read_text()


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    (root / "file.yaml").write_text(
        "name: small\noptimizers: [sgd, genie]\ntargets: ['0', '45']\ntrials: 1\nsteps: 4\n"
        "fixed: {data.batch_size: 4}\n"
    )
    assert main(["study", "run", str(root / "file.yaml"), "--output", str(root / "out"), "--jobs", "1"]) == 0
    return root / "out"


def test_fields_of_the_file_give_way_to_the_command_line(output, tmp_path, capsys):
    options = ["--optimizers", "adam", "--targets", "30", "--steps", "3", "--set", "optimizer.lr=0.5"]
    file = str(output.parent / "file.yaml")
    assert main(["study", "run", file, *options, "--output", str(tmp_path), "--jobs", "1"]) == 0
    [spec] = read_plan(tmp_path).runs
    assert (spec.optimizer, spec.targets, spec.steps) == ("adam", ("30",), 3)
    assert (spec.hparams["optimizer.lr"], spec.hparams["data.batch_size"]) == (0.5, 4)
    assert main(["study", "run", file, "--optimizers", "adm", "--output", str(tmp_path)]) == 1
    assert "unknown optimizer 'adm'. Did you mean adam" in capsys.readouterr().err


def test_a_plan_leaves_out_what_a_store_holds(output, capsys):
    file = str(output.parent / "file.yaml")
    assert main(["study", "plan", file, "--trials", "2", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "rotated_digits: 4 runs, 16 passes" in printed


def test_a_plan_counts_passes_and_marks_data_that_are_not_at_hand(tmp_path, capsys):
    (tmp_path / "far.yaml").write_text(
        "datasets: [VLCS]\noptimizers: [adam, sam]\ntrials: 2\nsteps: 10\nmodel: squeezenet1_1\nimage_size: 32\n"
    )
    assert main(["study", "plan", str(tmp_path / "far.yaml")]) == 0
    printed = capsys.readouterr().out
    assert "VLCS (not at hand here: timed on images of noise): 16 runs, 240 passes" in printed
    assert main(["study", "run", str(tmp_path / "far.yaml"), "--output", str(tmp_path / "out")]) == 1
    assert "VLCS needs a data folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tables_and_status_need_the_output_alone(output, monkeypatch, capsys):
    from shiftproof.data import DATASETS

    monkeypatch.setattr(DATASETS, "_entries", {})
    for command in ("status", "table", "report"):
        assert main(["study", command, str(output)]) == 0
    assert "4 of 4 runs finished" in capsys.readouterr().out


def test_bad_requests_of_a_table_are_refused(output, tmp_path, capsys):
    for options, message in (
        (["--format", "tex"], "unknown format 'tex'"),
        (["--rule", "leave_one_domain_out"], "unknown selection rule of this study 'leave_one_domain_out'"),
        (["--baseline", "sgd"], "Did you mean erm + sgd"),
    ):
        assert main(["study", "table", str(output), *options]) == 1
        assert message in capsys.readouterr().err
    assert main(["study", "table", str(tmp_path)]) == 1
    assert "holds no study" in capsys.readouterr().err


def test_the_table_can_be_of_another_rule_and_baseline(output, capsys):
    assert main(["study", "table", str(output), "--format", "csv", "--rule", "last", "--baseline", "erm + genie"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["selection"] for row in rows} == {"last"}
    assert all(float(row["difference"]) == 0 for row in rows if row["optimizer"] == "genie")


def test_the_status_tells_what_is_begun_failed_and_in_work(output, tmp_path, capsys):
    plan = read_plan(output)
    plan.write(tmp_path)
    first, second, *_ = plan.distinct
    folder = tmp_path / "runs" / first.name
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text("{}")
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 2}) + "\n")
    failed = tmp_path / "runs" / second.name
    failed.mkdir()
    result = json.loads((output / "runs" / second.name / "result.json").read_text())
    (failed / "result.json").write_text(json.dumps({**result, "status": "failed", "error": "the disk is full"}))
    status = read_status(tmp_path)
    assert (status.finished.total(), [step for _, step in status.begun], status.working) == (0, [2], False)
    text = status.text()
    assert "0 of 4 runs finished, 1 failed, 1 begun, 2 waiting; no process is working on it" in text
    assert "begun: erm + sgd on rotated_digits, 0, trial 0, setting 0: step 2 of 4" in text
    assert "the disk is full" in text
    with claim(tmp_path):
        assert read_status(tmp_path).working


def _curve(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_what_shows_when_the_data_are_open_names_the_line_too(tmp_path, capsys):
    (tmp_path / "late.yaml").write_text("optimizers: [sgd]\ntrials: 1\naccumulate: 3\n")
    for command in (["plan"], ["run", "--output", str(tmp_path / "out")]):
        assert main(["study", command[0], str(tmp_path / "late.yaml"), *command[1:]]) == 1
        assert "late.yaml, line 3: a batch of 16 cannot be split into 3 equal parts" in capsys.readouterr().err
    assert main(["study", "plan", str(tmp_path / "late.yaml"), "--accumulate", "5"]) == 1
    assert "--accumulate: a batch of 16" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_plan_that_is_replaced_is_told_and_keeps_its_runs(output, capsys):
    file = str(output.parent / "file.yaml")
    runs = {folder.name for folder in (output / "runs").iterdir()}
    command = ["study", "run", file, "--output", str(output), "--jobs", "1"]
    assert main([*command, "--targets", "0"]) == 0
    assert "held the plan of small (4 runs); it is replaced, its runs are kept" in capsys.readouterr().err
    assert {folder.name for folder in (output / "runs").iterdir()} == runs
    assert main(command) == 0
    assert "runs finished 4 of 4" in capsys.readouterr().out


def test_leave_one_domain_out_validation_through_the_command_line(tmp_path, capsys):
    options = "--optimizers sgd --targets 0 --trials 1 --steps 4 --checkpoint-freq 2 --batch-size 4 --jobs 1"
    rules = ["--selection", "training_domain", "leave_one_domain_out", "oracle", "last"]
    assert main(["compare", "--dataset", "rotated_digits", *options.split(), *rules, "--output", str(tmp_path)]) == 0
    assert "runs finished 6 of 6" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    [single] = [row for row in rows if row["target"] == "0"]
    pairs = {row["target"]: row for row in rows if row is not single}
    chosen = single["selection"]["leave_one_domain_out"]
    metrics = {target: _curve(tmp_path / "runs" / row["run"]) for target, row in pairs.items()}
    validations = [
        sum(curve[i]["domains"][target.split("+")[1]]["in"]["accuracy"] for target, curve in metrics.items()) / 5
        for i in range(2)
    ]
    assert chosen["validation"] == pytest.approx(max(validations))
    assert chosen["step"] == 2 * (1 + validations.index(max(validations)))
    assert all(row["selection"]["leave_one_domain_out"] is None for row in pairs.values())
