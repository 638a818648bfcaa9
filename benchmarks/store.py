"""How long a store of many runs takes to plan, resume, table and read for a report: `python -m benchmarks.store`."""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.command import add_output, show
from shiftproof.data import DATASETS
from shiftproof.protocol import PROTOCOLS
from shiftproof.studies import INDEX_FILE, Plan, Store, Study, make_plan, read_plan, read_results, read_status
from shiftproof.tables import as_text, write_csv
from shiftproof.training import RESULT_FILE, RunSpec

DATASETS_OF_FOUR = ("PACS", "VLCS", "OfficeHome", "TerraIncognita")
OPTIMIZERS = ("adam", "adamw", "sgd", "yogi", "adabelief", "adahessian", "sam", "gam", "fad", "genie")
TRIALS, TARGETS = 3, 4
RUNS_PER_SETTING = len(DATASETS_OF_FOUR) * len(OPTIMIZERS) * TRIALS * TARGETS
VARIANTS = 8
"""Number of made-up curves per data set and target, enough to avoid tables that are all ties."""
_NOTES = (
    "Seconds of wall time, and of processor time in brackets. Every line reads the store with nothing in memory and",
    "the files in the system's cache. First: without the index, so that every result is read whole; again: with it.",
    "Resume: making the plan, reading the recorded one and finding missing runs, before the first run starts. Report:",
    "reading the evaluations of all chosen runs and the rows of all runs, without drawing. Write: runs.jsonl and",
    "table.csv, as at the end of a study. Results are made up, as large as real ones, and alone in their folders.",
)


def bench_store(runs: int = 10_000) -> dict[str, Any]:
    """Time the operations on a store of made-up results in a temporary folder.

    The study compares optimizers on the published data sets of four domains, at full length, with as many settings
    per method as needed.

    Args:
        runs: least number of runs, which is rounded up to a whole number of settings.

    Returns:
        JSON values: ``setting``, ``notes`` and ``rows``, each with ``name``, seconds without the index (``first``) and
        with it (``again``), and the same in processor time (``first_processor``, ``again_processor``).

    Raises:
        ValueError: ``runs`` is below 1.
    """
    if runs < 1:
        raise ValueError(f"runs must be a whole number above 0, not {runs}")
    study = Study(
        datasets=DATASETS_OF_FOUR,
        optimizers=OPTIMIZERS,
        trials=TRIALS,
        hparam_trials=-(-runs // RUNS_PER_SETTING),
        search="protocol",
        protocol="swad",
        model="squeezenet1_1",  # planning builds the network, so a small one saves time
    )
    with tempfile.TemporaryDirectory(prefix="shiftproof-store-") as folder:
        store = Store(Path(folder))
        plan = make_plan(study, absent=True)
        plan.write(store.root)
        written = write_made_up_results(plan, store)
        rows = [_timed(name, work, store) for name, work in _operations(study, store).items()]
        files = {
            "result.json, MB": written / 1e6,
            "study.json, MB": (store.root / "study.json").stat().st_size / 1e6,
            "index, MB": (store.root / INDEX_FILE).stat().st_size / 1e6,
        }
    spec = plan.runs[0]
    evaluations = PROTOCOLS[spec.protocol].evaluations(spec.steps, spec.checkpoint_freq)
    return {
        "setting": {"runs": len(plan.distinct), "steps": spec.steps, "evaluations": evaluations, **files},
        "notes": list(_NOTES),
        "rows": rows,
    }


def store_table(result: dict[str, Any]) -> str:
    """Return the result of `bench_store` as text."""
    setting = result["setting"].items()
    lines = [", ".join(f"{name} {v:,.1f}" if isinstance(v, float) else f"{name} {v:,}" for name, v in setting), ""]
    lines.append(f"{'':12}{'first':>18}{'again':>18}")
    for row in result["rows"]:
        seconds = (f"{row[which]:.2f} ({row[f'{which}_processor']:.2f})" for which in ("first", "again"))
        lines.append(f"{row['name']:12}" + "".join(f"{one:>18}" for one in seconds))
    return "\n".join([*lines, "", *result["notes"]])


def write_made_up_results(plan: Plan, store: Store) -> int:
    """Write a made-up result for every run of a plan on data sets that are not at hand; return the bytes written."""

    @cache
    def metrics(dataset: str, targets: tuple[str, ...], variant: int) -> str:
        [grid] = [grid for grid in plan if grid.dataset == dataset]
        spec = next(spec for spec in grid.runs if spec.targets == targets)
        evaluations = _evaluations(spec, grid.domains, random.Random(f"{dataset} {targets} {variant}"))  # noqa: S311
        return json.dumps(evaluations, indent=1).replace("\n", "\n ")

    written = 0
    for spec in tqdm(plan.distinct, unit="run", desc="writing", leave=False):
        # the evaluations, most of the file, are slow to serialise, so their text is cached
        text = json.dumps(_result(spec), indent=1).removesuffix("\n}")
        variant = int(spec.name, 16) % VARIANTS
        content = f'{text},\n "metrics": {metrics(spec.dataset, spec.targets, variant)}\n}}\n'.encode()
        store.folder(spec).mkdir(parents=True)
        (store.folder(spec) / RESULT_FILE).write_bytes(content)
        written += len(content)
    return written


def _result(spec: RunSpec) -> dict[str, Any]:
    """Return a run's result without its evaluations, which come last."""
    return {
        "spec": asdict(spec),
        "status": "finished",
        "error": None,
        "steps": spec.steps,
        "seconds": {"data": 100.0, "step": 900.0, "evaluation": 90.0, "checkpoints": 10.0},
        "passes": spec.steps,
        "annealer": None,
        "weights_sha256": spec.name * 4,
        "versions": {"shiftproof": "0.1.0", "torch": "2.15.0", "torchvision": "0.29.2", "numpy": "2.4.6"},
    }


def _evaluations(spec: RunSpec, domains: tuple[str, ...], draws: random.Random) -> list[dict[str, Any]]:
    outline, protocol = DATASETS[spec.dataset].outline, PROTOCOLS[spec.protocol]
    assert outline is not None  # noqa: S101  (published sets have one)
    images = outline.images // len(domains)

    def score(part: str) -> dict[str, Any]:
        per_class = [draws.uniform(0.5, 0.9) for _ in range(outline.classes)]
        count = images // 5 if part == "out" else images - images // 5
        return {"count": count, "accuracy": sum(per_class) / len(per_class), "per_class": per_class, "loss": 0.75}

    def parts(domain: str) -> tuple[str, ...]:
        return ("in", "out") if domain in spec.targets else ("out",)

    steps = [step for step in range(1, spec.steps + 1) if protocol.evaluated(step, spec.steps, spec.checkpoint_freq)]
    return [
        {
            "step": step,
            "loss": draws.random(),
            "domains": {d: {part: score(part) for part in parts(d)} for d in domains},
        }
        for step in steps
    ]


def _operations(study: Study, store: Store) -> dict[str, Callable[[], object]]:
    def resume() -> None:
        plan = make_plan(study, absent=True)
        if read_plan(store.root).distinct != plan.distinct or store.missing(plan):
            raise AssertionError("the store does not hold the study")

    def report() -> None:
        results = read_results(store.root)
        rule = results.plan.selection[0]
        for grid in results.plan:
            for method in grid.methods:
                for outcome in results.outcomes(grid, rule, method):
                    len(outcome.metrics)
        len(results.rows)

    def write() -> None:
        results = read_results(store.root)
        store.write_runs(results)
        write_csv(results, store.root)

    return {
        "resume": resume,
        "status": lambda: read_status(store.root).text(),
        "table": lambda: as_text(read_results(store.root)),
        "report": report,
        "write": write,
    }


def _timed(name: str, work: Callable[[], object], store: Store) -> dict[str, Any]:
    (store.root / INDEX_FILE).unlink(missing_ok=True)
    first, first_processor = _seconds(work)
    read_results(store.root)
    again, again_processor = _seconds(work)
    return {
        "name": name,
        "first": first,
        "first_processor": first_processor,
        "again": again,
        "again_processor": again_processor,
    }


def _seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return wall time and processor time."""
    begin, begin_processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begin, time.process_time() - begin_processor


def main(arguments: Sequence[str] | None = None) -> None:
    """Time what is done with a store and show what it took."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.store", description="Time what is done with a store of many runs, which are made up."
    )
    parser.add_argument("--runs", type=int, default=10_000, metavar="N", help="at least (default: %(default)s)")
    add_output(parser)
    options = parser.parse_args(arguments)
    result = bench_store(options.runs)
    show(result, store_table(result), options.output)


if __name__ == "__main__":
    main()
