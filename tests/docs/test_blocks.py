"""The code blocks of the docs run, page by page, and their commands are ones that the parser takes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sybil import Document

from benchmarks.command_line_page import commands as every_command
from docs.pages import FENCED, PAGES, commands, name, python_blocks
from plugin_files import forgotten
from shiftproof.cli import main
from shiftproof.cli.parser import make_parser

RAN_ELSEWHERE = {
    "how_to/clients.md": "tests/clients, one library at a time",
}
"""Pages whose blocks other tests run, and check what they give."""


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A run with its model, as the pages have it in runs/one."""
    folder = tmp_path_factory.mktemp("docs") / "one"
    train = ["train", "--dataset", "rotated_digits", "--target", "75", "--steps", "2", "--batch-size", "2"]
    assert main([*train, "--output", str(folder)]) == 0
    assert main(["export", str(folder), "--output", str(folder.parent / "model.pt2")]) == 0
    return folder


@pytest.fixture
def place(run_folder, tmp_path, monkeypatch):
    """The current folder, with what the pages take for granted: a run, its exported model, and pictures."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run_folder, "runs/one")
    shutil.copy(run_folder.parent / "model.pt2", ".")
    Path("new_pictures").mkdir()
    for path in ("picture.png", "new_pictures/a.png", "new_pictures/b.png"):
        Image.fromarray(np.zeros((30, 20), dtype=np.uint8)).save(path)


def _genie(names, printed):
    factor, noisy, kept = map(float, printed.split())
    assert 0 < factor <= 1
    assert (noisy, kept) == (0, 1)  # GENIEAdamW has no noise, and by default no mask


def _multipass(names, printed):
    assert 0 < names["loss"].item() < 2


def _diagnostics(names, printed):
    assert {line.split(":")[0] for line in printed.splitlines()} == {
        "osgr", "osgr_frozen", "transfer", "transfer_frozen"
    }  # fmt: skip
    assert Path("recorded.svg").stat().st_size


def _model(names, printed):
    one, first, second, shape = printed.splitlines()
    assert first == f"new_pictures/a.png {one} None"
    assert second == f"new_pictures/b.png {one} None"
    assert shape == "torch.Size([5, 10])"


def _own_loop(names, printed):
    assert "10 46" in printed.splitlines()  # as the page says


CHECKED = {
    "explanation/genie.md": _genie,
    "explanation/multipass.md": _multipass,
    "how_to/diagnostics.md": _diagnostics,
    "how_to/using_a_model.md": _model,
    "tutorials/own_loop.md": _own_loop,
}
"""What the blocks of a page must leave in their names, print and write, where the page says so."""


def _documents():
    for page in PAGES:
        document = Document.parse(str(page), python_blocks)
        if list(document.examples()) and name(page) not in RAN_ELSEWHERE:
            yield pytest.param(document, id=name(page))


@pytest.mark.parametrize("document", list(_documents()))
@pytest.mark.usefixtures("place")
def test_the_python_blocks_of_a_page_run(document, capsys):
    document.namespace["picture"] = Image.open("picture.png")
    with forgotten():
        for example in document.examples():
            example.evaluate()
    if check := CHECKED.get(name(Path(document.path))):
        check(document.namespace, capsys.readouterr().out)


def test_blocks_that_do_not_run_have_a_reason():
    markers = [page for page in PAGES if "<!-- not run" in page.read_text(encoding="utf-8")]
    for page in markers:
        text = page.read_text(encoding="utf-8")
        reasons = [block["reason"] for block in FENCED.finditer(text) if block["reason"]]
        assert len(reasons) == text.count("<!-- not run"), f"{name(page)}: a marker is not right before a block"
        assert all(len(reason.split()) > 2 for reason in reasons)


@pytest.mark.parametrize("page", [pytest.param(page, id=name(page)) for page in PAGES])
def test_the_commands_of_a_page_parse(page, monkeypatch, capsys):
    monkeypatch.setattr("shiftproof.cli.study.study_file", Path)  # files of the reader's
    text = page.read_text(encoding="utf-8").replace("s3://", "memory://")  # no package for S3 is among the extras
    for arguments in commands(text):
        if "..." in arguments:  # stands for options given before
            assert {one for one in arguments if one.startswith("--")} <= _options_of(arguments), arguments
            continue
        try:
            make_parser().parse_args(arguments)
        except SystemExit as end:
            assert end.code == 0, f"shiftproof {' '.join(arguments)}: {capsys.readouterr().err}"  # noqa: PT017


def _options_of(arguments):
    """Return the options of a command, or of all commands of a group where `...` stands for one."""
    prefix = " ".join(["shiftproof", *arguments]).split(" ...")[0].split(" --")[0]
    found = [command for command, _ in every_command(make_parser()) if prefix.startswith(command.prog)]
    found = found or [command for command, _ in every_command(make_parser()) if command.prog.startswith(prefix)]
    assert found, f"{prefix} is no command"
    return {option for command in found for option in command._option_string_actions}


def test_pages_that_are_checked_or_left_out_exist():
    assert CHECKED.keys() | RAN_ELSEWHERE.keys() <= {name(page) for page in PAGES}
