"""The README is short, its code and commands run, and its links lead somewhere."""

import re

from readme_commands import README, commands, shiftproof_commands, write_patients
from shiftproof.cli import main

ROOT = README.parent


def _blocks(file=README):
    return re.findall(r"```python\n(.*?)```", file.read_text(encoding="utf-8"), re.DOTALL)


def test_the_optimizer_in_ten_lines_learns():
    [loop] = _blocks()
    assert len([line for line in loop.splitlines() if line.strip()]) <= 10
    names = {}
    exec(loop, names)  # noqa: S102
    assert names["loss"] < 0.5


def test_own_data_in_three_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_patients(tmp_path)
    own = shiftproof_commands()
    assert [arguments[:2] for arguments in own] == [["data", "check"], ["compare", "--dataset"], ["study", "table"]]
    for arguments in own:
        assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert r"\begin{tabular}" in printed
    for hospital in ("north", "south", "west"):
        assert hospital in printed
    assert (tmp_path / "runs" / "mine" / "report.html").stat().st_size


def test_other_commands_are_pips_and_commands_of_the_makefile_that_ci_runs():
    assert {program for program, *_ in commands()} == {"pip", "shiftproof"}
    text = README.read_text(encoding="utf-8")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert set(re.findall(r"`make ([^`]+)`", text)) == {"compare", "test"}
    assert "\nmake compare\n" in ci
    assert "\nmake test\n" in ci


def test_it_is_short():
    assert len(README.read_text(encoding="utf-8").split()) <= 500


def test_links_lead_somewhere():
    linked = re.findall(r"\]\(([^)]+)\)", README.read_text(encoding="utf-8"))
    assert "docs/figures/compare.svg" in linked
    assert [name for name in linked if not (ROOT / name).is_file()] == []
