"""Run a file's tests for a GPU and write how each ended: `python -m benchmarks.check_gpu.gpu_tests TESTS FILE`.

Written after every test, so that those which have ended are known when one never does. Its name is printed last.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from shiftproof.base.files import write_json


class Outcomes:
    """A plugin of pytest that keeps a file of the names of tests by how they ended."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._found: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
        write_json(self._file, self._found)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take note of a test, or of its setup or teardown where that went wrong or was skipped."""
        if report.when == "call" or report.outcome != "passed":
            self._found[report.outcome].append(report.nodeid)
            write_json(self._file, self._found)


if __name__ == "__main__":
    tests, file = sys.argv[1:]
    options = ["-m", "cuda", "-p", "no:cacheprovider", "-vv", "--color=no", "--tb=short"]
    sys.exit(pytest.main([*options, tests], plugins=[Outcomes(Path(file))]))
