"""GENIE handed states of any shape, type, device, layout and order, in processes of their own; see `fuzz_worker`."""

from pathlib import Path

import pytest

from processes import run_processes

WORKER = str(Path(__file__).parent / "fuzz_worker.py")


def run_cases(seed, cases, file):
    printed = run_processes(WORKER, str(seed), str(cases), str(file))
    assert f"{cases} cases passed" in printed, f"{printed}\nthe last case, for fuzz_worker.py FILE: {file.read_text()}"


def test_three_hundred_states_neither_crash_nor_step_wrongly(tmp_path):
    run_cases(0, 300, tmp_path / "case.json")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_five_thousand_states_neither_crash_nor_step_wrongly(seed, tmp_path):
    run_cases(seed, 250, tmp_path / "case.json")


def test_a_crash_names_its_case(tmp_path):
    """The case is written before it runs; here the process is told to die in it."""
    file = tmp_path / "case.json"
    script = tmp_path / "worker.py"
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(Path(WORKER).parent)!r})\nimport fuzz_worker\n"
        "fuzz_worker.run = lambda spec: os.abort()\nfuzz_worker.main()\n"
    )
    printed = run_processes(str(script), "0", "10", str(file))
    assert "cases passed" not in printed
    assert '"params"' in file.read_text()
