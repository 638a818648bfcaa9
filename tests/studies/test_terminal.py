"""The command as a process: pipes that close, terminals without letters, interrupts while modules are imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from processes import heed_interrupts
from shiftproof.cli import main
from shiftproof.studies import Study, make_plan

SOURCE = Path(__file__).parents[2] / "src"


def _run(arguments, before="", **environment):
    path = os.pathsep.join(filter(None, [str(before), str(SOURCE), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "shiftproof", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, **environment},
        preexec_fn=heed_interrupts,
    )


@pytest.mark.parametrize("what", ["status", "table"])  # shorter and longer than what Python keeps before it writes
def test_a_pipe_that_nobody_reads_ends_the_command_silently(what, tmp_path):
    store = _store(tmp_path, "a very long name " * 1000 if what == "table" else "short")
    process = _run(["study", what, store])
    process.stdout.close()  # before anything is written
    assert (process.wait(), process.stderr.read()) == (141, b"")


def test_another_broken_pipe_is_an_error(monkeypatch, tmp_path, capfd):
    def broken(folder):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("shiftproof.studies.read_status", broken)
    assert main(["study", "status", str(tmp_path)]) == 1
    assert capfd.readouterr().err == "shiftproof: error: [Errno 32] Broken pipe\n"


def _store(folder, name="étude ± 写真"):
    """The output of a study none of whose runs has ended."""
    make_plan(Study(name=name, optimizers=("sgd",), targets=("0",), trials=1)).write(folder)
    return folder


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_a_terminal_has_no_letters_for_is_an_escape(encoding, tmp_path):
    process = _run(["study", "status", _store(tmp_path)], PYTHONIOENCODING=encoding)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    name = {"ascii": r"\xe9tude \xb1 \u5199\u771f", "latin-1": r"étude ± \u5199\u771f"}[encoding]
    assert out.decode(encoding).startswith(f"{name}: 0 of 1 runs finished")


INTERRUPTED_IMPORT = """\
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    while True:
        pass
except KeyboardInterrupt:
    raise ImportError("cannot load module more than once per process")  # as numpy says
"""


def test_an_interrupt_while_torch_is_imported_ends_the_command(tmp_path):
    (tmp_path / "torch.py").write_text(INTERRUPTED_IMPORT)
    process = _run(["study", "status", tmp_path], before=tmp_path)
    assert process.communicate() == (b"", b"interrupted; the same command continues where it stopped\n")
    assert process.returncode == 130


def test_an_interrupt_while_the_command_line_is_imported_ends_it(tmp_path):
    (tmp_path / "argparse.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nwhile True:\n    pass\n"
    )
    process = _run(["--version"], before=tmp_path)
    assert process.communicate() == (b"", b"interrupted\n")
    assert process.returncode == 130
