"""The scripts of examples/ run, and do what they say."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

from shiftproof.studies import read_results
from shiftproof.tables import build_tables

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_genie_adamw_learns_in_a_bare_loop():
    first, last = runpy.run_path(str(EXAMPLES / "genie_adamw.py"))["main"](steps=100)
    assert last < 0.6 * first


def test_arrays_of_ones_own_are_compared(tmp_path):
    lines = ["from pathlib import Path", "import compare_arrays", "if __name__ == '__main__':"]
    lines.append("    compare_arrays.main(Path('out'), steps=2, trials=1)")
    script = tmp_path / "short.py"  # a file, which the worker processes import
    script.write_text("\n".join(lines))
    path = os.pathsep.join([str(EXAMPLES), str(EXAMPLES.parent / "src")])
    subprocess.run([sys.executable, script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, check=True)
    [table] = build_tables(read_results(tmp_path / "out"))
    assert table.columns == ["north", "east", "south", "west"]
    assert [str(row.method) for row in table.rows] == ["erm + adam", "coral + adam"]
    assert all(cell.trials == 1 for row in table.rows for cell in row.cells.values())
