"""The pages about columns and files say what a study really writes."""

import csv
import json
import re

import pytest

from docs.pages import DOCS
from shiftproof.report import write_report
from shiftproof.studies import Study, run_study
from shiftproof.tables import write_csv

COLUMNS = (DOCS / "reference" / "columns.md").read_text(encoding="utf-8")
FILES = (DOCS / "reference" / "run_files.md").read_text(encoding="utf-8")


def _first_cells(page, heading):
    """Return the names in the first column of the tables under a heading of second level."""
    [section] = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return [
        name for cell in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall("`([^`]+)`", cell)
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A study with what adds columns or files: an annealer, an average, two rules."""
    root = tmp_path_factory.mktemp("store")
    study = Study(
        optimizers=("adam",), annealers=("none", "gga"), averaging=("none", "ema"), targets=("75",), trials=1,
        steps=3, checkpoint_freq=3, fixed={"annealer.start": 1, "annealer.end": 2, "annealer.candidates": 1},
        selection=("training_domain", "last"),
    )  # fmt: skip
    results = run_study(study, root, workers=1)
    write_csv(results, root)
    write_report(results, root)
    return root


def test_columns_of_the_runs(store):
    [first, *_] = (store / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(first)
    chosen = row["selection"]["training_domain"]
    assert _first_cells(COLUMNS, r"runs\.jsonl") == [*row, *chosen]


def test_columns_of_the_table(store):
    with (store / "table.csv").open(encoding="utf-8") as file:
        header = next(csv.reader(file))
    assert _first_cells(COLUMNS, r"table\.csv") == header


def test_files_of_a_study_and_its_runs(store):
    named = {name.rstrip("/") for name in _first_cells(FILES, "A study")}
    assert {path.name for path in store.iterdir()} == named - {"plugins"}
    passing = {"checkpoint.pt", "error.txt"}
    for run in (store / "runs").iterdir():
        assert {path.name for path in run.iterdir()} == set(_first_cells(FILES, "A run")) - passing
