"""The pages from the papers to commands: their commands are understood, and what they name exists."""

import csv
import re
import shlex
from pathlib import Path

import pytest

from shiftproof.cli.fields import given_fields, study_of
from shiftproof.cli.parser import make_parser
from shiftproof.studies import read_study

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = ("papers.md", "papers_gga.md")
TEXTS = {page: (DOCS / page).read_text() for page in PAGES}
COMMANDS = sorted({command for text in TEXTS.values() for command in re.findall(r"`shiftproof ([^`]+)`", text)})


def rows(text):
    """Return the cells of every row of the tables that have a verdict, without their headers."""
    for table in re.split(r"\n\n", text):
        lines = [line for line in table.splitlines() if line.startswith("|")]
        if lines and "verdict" in lines[0]:
            yield from ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_understood_and_names_what_exists(command):
    options = make_parser().parse_args(shlex.split(command))
    if command.startswith(("study run", "study plan")):
        given = given_fields(options) if hasattr(options, "taken") else {}
        study, skipped = read_study(options.file, options.scale, given)
        assert study.methods
        assert not skipped
    else:
        assert study_of(options).methods  # checks every name


def test_every_study_of_the_papers_and_every_figure_is_on_the_pages():
    studies = {command.split()[2] for command in COMMANDS if command.startswith("study run")}
    assert studies == {
        *("optimizers", "algorithms", "single_source", "convergence", "ablation", "sensitivity", "annealing"),
    }
    figures = {command.split()[1] for command in COMMANDS if command.startswith("figure")}
    assert figures == {"agreement", "balance", "embedding", "landscape", "osgr", "sensitivity"}


@pytest.mark.parametrize("page", PAGES)
def test_every_row_has_a_verdict_in_a_plain_clause(page):
    found = list(rows(TEXTS[page]))
    assert len(found) >= 10
    words = ("reproduced", "contradicted", "not run", "not reproducible", "does not follow", "see the figure below")
    for cells in found:
        assert any(word in cells[-1] for word in words), cells
        assert "." not in cells[-1].rstrip(".").replace("0.", "")[:40], cells


@pytest.mark.parametrize("page", PAGES)
def test_pictures_and_tests_that_a_page_names_exist(page):
    pictures = re.findall(r"\]\((figures/[^)]+)\)", TEXTS[page])
    tests = re.findall(r"`pytest ([^`]+)`", TEXTS[page])
    assert tests
    assert [name for name in pictures if not (DOCS / name).exists()] == []
    assert [name for name in tests if not (ROOT / name).exists()] == []


def stored(table):
    """Return the numbers of a published table, as written on the pages."""
    with (ROOT / "src/shiftproof/studies/published_results.csv").open(newline="") as file:
        found = [row for row in csv.DictReader(file) if row["table"].startswith(table)]
    return {
        f"{float(row[column]):,.1f}".replace(".0", "") for row in found for column in ("value", "error") if row[column]
    }


@pytest.mark.parametrize("table", ["optimizers", "algorithms", "single_source", "convergence"])
def test_published_numbers_are_the_stored_ones(table):
    [published] = [cells[4] for cells in rows(TEXTS["papers.md"]) if f"study run {table} " in cells[1]]
    numbers = {number.replace(".0", "") for number in re.findall(r"\b\d+\.\d\b|\b\d,\d{3}\b(?!:)", published)}
    steps = {"5,000"}
    assert len(numbers - steps) >= 6
    assert numbers - steps <= stored(table)


def test_the_published_table_of_gga_is_the_stored_one():
    table = TEXTS["papers_gga.md"].partition("## Published numbers")[2].split("\n\n")[1]
    numbers = {number.replace(".0", "") for number in re.findall(r"\d+\.\d", table)}
    assert numbers == stored("annealing")
