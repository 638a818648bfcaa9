"""How many runs an hour a kept trunk makes of those that compute it at every step: `python -m benchmarks.trunk`."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.command import add_output, add_study, show, study_of, with_target
from shiftproof.studies import Study, open_data, plan_run
from shiftproof.training import train

_NOTES = (
    "Seconds of whole runs, from building the network to the saved model, that take turns on one thread; means, least",
    "and most in brackets. The trunk's outputs are computed before, by a run that is not counted: what it took beyond",
    "the others is the building.",
)


def bench_trunk(study: Study, trained: Sequence[str], *, rounds: int = 2) -> dict[str, Any]:
    """Time runs that read the kept outputs of their trunk beside runs that compute it at every step.

    Args:
        study: a study with one data set and method, and weights; without targets, all domains but three are left out.
        trained: the parts to train, as in `Study.trained`.
        rounds: runs of each kind.

    Returns:
        By part: ``kept`` and ``computed``, seconds of each run; ``building``, seconds that making the outputs took; and
        ``ratio``, that of the mean seconds.

    Raises:
        ValueError: the study cannot be planned.
    """
    study = with_target(study, open_data(study, study.datasets[0]))
    parts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in trained:
            kept = replace(study, trained=part)
            computed = replace(kept, cache="none")
            first = _seconds(kept, Path(folder, "first"))
            seconds: dict[str, list[float]] = {"kept": [], "computed": []}
            for number in range(rounds):
                for name, one in (("kept", kept), ("computed", computed)):
                    seconds[name].append(_seconds(one, Path(folder, f"{name} {number} {part.replace(':', ' ')}")))
            means = {name: fmean(values) for name, values in seconds.items()}
            parts[part] = {
                **seconds,
                "building": max(0.0, first - means["kept"]),
                "ratio": means["computed"] / means["kept"],
            }
    return {"parts": parts, "steps": plan_run(replace(study, trained="all"), 0, 0).steps}


def _seconds(study: Study, folder: Path) -> float:
    """Return the seconds of a run, whose folder is not there yet."""
    spec, data = plan_run(study, 0, 0), open_data(study, study.datasets[0])
    begin = time.perf_counter()
    result = train(spec, data, folder, device=torch.device(study.device), weights=study.weights_file)
    seconds = time.perf_counter() - begin
    if result["status"] != "finished":
        raise ValueError(f"a run of the benchmark failed: {result['error']}")
    return seconds


def trunk_table(result: dict[str, Any]) -> str:
    """Return the numbers of `bench_trunk` as a table."""
    lines = [f"{'trained':12} {'kept, s':>22} {'computed, s':>22} {'ratio':>7} {'building, s':>12}"]
    for part, one in result["parts"].items():
        ranges = [f"{fmean(v):.2f} [{min(v):.2f}, {max(v):.2f}]" for v in (one["kept"], one["computed"])]
        lines.append(f"{part:12} {ranges[0]:>22} {ranges[1]:>22} {one['ratio']:7.1f} {one['building']:12.1f}")
    return "\n".join([*lines, *_NOTES])


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the runs and show what they took."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.trunk", description="Time runs with a kept trunk beside runs without."
    )
    add_study(parser)
    parser.add_argument("--steps", type=int, default=200, metavar="N", help="of a run (default: %(default)s)")
    parser.add_argument("--train", nargs="+", default=["head", "blocks:1"], metavar="PART", help="parts to train")
    parser.add_argument("--normalisation", metavar="NAME", help="of the weights, if it is not the model's")
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="runs of each (default: %(default)s)")
    add_output(parser)
    options = parser.parse_args(arguments)
    study = replace(study_of(options), steps=options.steps, normalisation=options.normalisation)
    result = bench_trunk(study, options.train, rounds=options.rounds)
    show(result, trunk_table(result), options.output)


if __name__ == "__main__":
    main()
