"""The checks, in their order, and what is read from each."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.check_gpu.checks import Check
from benchmarks.check_gpu.figures import Figure, Goal
from benchmarks.check_gpu.sizes import Sizes

STEP = Goal(1.05)
BANDWIDTH = Goal(90, at_least=True)
SPEED = Goal(95, at_least=True)
EVALUATION = Goal(5)
NONE = Goal(0, required=True)
ROUNDING = Goal(1e-4, required=True)
"""Of the way that the weights went."""
_STEPPED = ("GENIEAdamW", "GENIE paper", "GENIE released")
_SECONDS_OF_TESTS = {
    "tests/optim/test_genie_triton.py": 70.0,  # kernels of every form and type are compiled
    "tests/test_gpu.py": 25.0,
    "tests/training/test_gpu.py": 50.0,  # some are compiled
}
_SECONDS_OF_OTHER_TESTS = 15.0


def plan(root: Path, work: Path, sizes: Sizes) -> list[Check]:
    """Return the checks.

    Args:
        root: the checkout.
        work: a folder for what they write.
        sizes: how large they are.
    """
    machine = Check(
        "machine",
        _module("benchmarks.check_gpu.machine", sizes.device, work / "machine.json"),
        seconds=15,
        output=work / "machine.json",
    )
    pictures = work / "pictures"
    cached = {"SHIFTPROOF_CACHE": str(work / "cache")}
    made = Check(
        "pictures",
        _module("benchmarks.check_gpu.pictures", pictures, sizes.side, *_pairs(sizes)),
        seconds=15,
        after=("machine",),
        modules=("PIL",),
    )
    data = ("--data-dir", pictures, "--target", sizes.target, "--device", sizes.device, *sizes.network)
    return [
        machine,
        *(_tests(file, root, work, sizes) for file in _files_with_tests(root)),
        *(_steps(name, options, work, sizes) for name, options in sizes.steps.items()),
        Check(
            "a world of one",
            _module("benchmarks.check_gpu.world", sizes.device, work / "world.json"),
            seconds=20,
            output=work / "world.json",
            figures=_world,
            after=("machine",),
        ),
        made,
        Check(
            "the data path",
            _shiftproof("bench", "data", *data, *sizes.data, "--output", work / "data.json"),
            seconds=120,
            output=work / "data.json",
            figures=partial(_data, sizes),
            after=("machine", "pictures"),
            modules=("PIL", "torchvision"),
            environment=cached,
        ),
        *(
            check
            for name, options in sizes.runs.items()
            for check in _twice(name, (*data, "--dataset", "folder", *sizes.run, *options), work, cached)
        ),
    ]


def _module(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", name, *map(str, arguments)]


def _shiftproof(*arguments: object) -> list[str]:
    return _module("shiftproof", *arguments)


def _pairs(sizes: Sizes) -> list[str]:
    return [f"{domain}={count}" for domain, count in sizes.pictures.items()]


# ----------------------------------------------------------------------------------------------------- tests


def _files_with_tests(root: Path) -> list[Path]:
    return [
        file for file in sorted((root / "tests").rglob("test_*.py")) if "mark.cuda" in file.read_text(encoding="utf-8")
    ]


def _tests(file: Path, root: Path, work: Path, sizes: Sizes) -> Check:
    name = file.relative_to(root).as_posix()
    output = work / f"{name.replace('/', '.')}.json"
    return Check(
        name,
        _module("benchmarks.check_gpu.gpu_tests", name, output),
        seconds=_SECONDS_OF_TESTS.get(name, _SECONDS_OF_OTHER_TESTS),
        output=output,
        figures=partial(_outcomes, sizes),
        after=("machine",),
        modules=("pytest",),
    )


def _outcomes(sizes: Sizes, details: dict[str, Any]) -> list[Figure]:
    skipped = NONE if sizes.device == "cuda" else None  # without a GPU, all of them
    return [
        Figure("tests passed", len(details["passed"])),
        Figure("tests failed", len(details["failed"]), goal=NONE),
        Figure("tests skipped", len(details["skipped"]), goal=skipped),
    ]


# ----------------------------------------------------------------------------------------------------- steps


def _steps(name: str, options: Sequence[str], work: Path, sizes: Sizes) -> Check:
    output = work / f"steps, {name}.json"
    return Check(
        f"a step, {name}",
        _shiftproof("bench", "optimizer", *options, "--device", sizes.device, "--output", output),
        seconds=30,
        output=output,
        figures=partial(_rows, sizes),
        after=("machine",),
    )


def _rows(sizes: Sizes, details: dict[str, Any]) -> list[Figure]:
    rows = {row["name"]: row for row in details["rows"]}
    figures = [Figure("copying a tensor", details["setting"]["copy, GB per second"], "GB/s")]
    for graph in ("", ", graph") if sizes.device == "cuda" else ("",):
        names = [f"AdamW, fused{graph}", *(f"{ours}, fused{graph}" for ours in _STEPPED)]
        for name, row in ((name, rows[name]) for name in names):
            if "error" in row:
                raise ValueError(f"{name}: {row['error']}")
            judged = sizes.judged and name.startswith("GENIE")
            figures.append(Figure(name, row["milliseconds"], "ms"))
            if name != "AdamW, fused":
                figures.append(Figure(f"{name}: of fused AdamW", row["ratio"], goal=STEP if judged else None))
            share = 100 * row["bandwidth"]
            figures.append(Figure(f"{name}: of the bandwidth of copying", share, "%", BANDWIDTH if judged else None))
    return figures


# ------------------------------------------------------------------------------------------ world, data, runs


def _world(details: dict[str, Any]) -> list[Figure]:
    return [
        Figure(f"{case} in {details['backend']}: difference from one process", difference, goal=ROUNDING)
        for case, difference in details["differences"].items()
    ]


def _data(sizes: Sizes, details: dict[str, Any]) -> list[Figure]:
    ways = details["ways"]
    ours, usual = ways["shiftproof"], ways["usual way"]
    protocol = ours["runs"][-1]
    return [
        Figure("data alone", ours["images_per_second"], "images/s"),
        Figure("data alone, the usual way", usual["images_per_second"], "images/s"),
        Figure("100 steps", ours["costs"]["data"] + ours["costs"]["training"], "s"),
        Figure("speed, of that with data for nothing", 100 * ours["speed"], "%", SPEED if sizes.judged else None),
        Figure("the same, the usual way", 100 * usual["speed"], "%"),
        Figure(f"a run of {protocol['steps']} steps", protocol["seconds"], "s"),
        Figure("evaluation, of such a run", 100 * protocol["evaluation"], "%", EVALUATION if sizes.judged else None),
    ]


def _twice(name: str, options: Sequence[object], work: Path, environment: dict[str, str]) -> list[Check]:
    checks: list[Check] = []
    first: Path | None = None
    for which in ("first", "second"):
        folder = work / f"{name}, {which}"
        checks.append(
            Check(
                f"a run in {name}, {which} time",
                _shiftproof("train", *options, "--output", folder),
                seconds=20,
                output=folder / "result.json",
                figures=partial(_equal, first),
                after=("machine", "pictures", *(check.name for check in checks)),
                modules=("PIL", "torchvision"),
                environment=environment,
            )
        )
        first = folder / "result.json"
    return checks


def _equal(first: Path | None, details: dict[str, Any]) -> list[Figure]:
    if first is None:
        return []
    earlier = json.loads(first.read_text(encoding="utf-8"))
    different = {key for key in earlier.keys() | details.keys() if earlier.get(key) != details.get(key)} - {"seconds"}
    of = f" ({', '.join(sorted(different))})" if different else ""
    return [Figure(f"entries of the result that differ from the first time{of}", len(different), goal=NONE)]
