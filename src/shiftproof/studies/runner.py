"""Runs a study on this machine: what is missing, in parallel, with nothing lost."""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from shiftproof.files import read_json
from shiftproof.studies.pool import run_tasks
from shiftproof.studies.store import Store, claim, run_row
from shiftproof.studies.study import Study, open_dataset
from shiftproof.studies.tables import Table, build_table
from shiftproof.training import RunSpec, read_result, train
from shiftproof.training.run import ERROR_FILE, SPEC_FILE


class RunTask(NamedTuple):
    """What a worker needs to train one run."""

    spec: RunSpec
    folder: Path
    dataset: str
    data_dir: Path | None
    weights: Path | None
    device: str


def execute(task: RunTask) -> dict[str, Any]:
    """Train one run and return its result; the traceback of an error is left in the run's folder."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what there is to say of the data set, the study has said
            dataset = open_dataset(task.dataset, task.data_dir, task.spec.image_size)
        return train(
            task.spec,
            dataset,
            task.folder,
            device=torch.device(task.device),
            weights=task.weights,
        )
    except Exception:
        task.folder.mkdir(parents=True, exist_ok=True)
        (task.folder / ERROR_FILE).write_text(traceback.format_exc(), encoding="utf-8")
        raise


def time_shares(store: Store, specs: list[RunSpec]) -> dict[str, float]:
    """Return the share of each part (data, step, evaluation, checkpoints) in the time of a study's runs.

    Starting a process and opening the data are in none. On a GPU, "data" launches what "step" waits for.
    """
    parts: dict[str, float] = {}
    for spec in specs:
        for part, seconds in (store.result(spec) or {"seconds": {}})["seconds"].items():
            parts[part] = parts.get(part, 0.0) + seconds
    return {part: seconds / sum(parts.values()) for part, seconds in parts.items()}


def run_study(study: Study, output: Path, jobs: int) -> Table:
    """Train what is missing of a study and return its table, which is also written to ``table.csv``.

    Args:
        study: what to run.
        output: the store's folder; runs that it holds already are not trained again.
        jobs: runs trained at a time; changes no result.

    Raises:
        ValueError: the study is not valid, or the output cannot be written.
        StoreBusyError: another process works on the output.
        DamagedFileError: a recorded result cannot be read.
    """
    specs = study.runs
    store = Store(output)
    with claim(output):
        missing = store.missing(specs)
        try:
            _train_all(study, store, missing, len(specs), jobs)
        finally:
            rows = store.write_runs(specs)
            table = build_table(study, rows)
            store.write_text("table.csv", table.csv())
    return table


def _train_all(study: Study, store: Store, specs: list[RunSpec], total: int, jobs: int) -> None:
    tasks = [
        RunTask(spec, store.folder(spec), study.dataset, study.data_dir, study.weights, study.device) for spec in specs
    ]
    with (
        closing(run_tasks(execute, tasks, jobs)) as outcomes,  # ends the workers before the output is released
        tqdm(total=total, initial=total - len(tasks), unit="run", desc="runs") as bar,
    ):
        for outcome in outcomes:
            spec = specs[outcome.task]
            result = outcome.value or store.record_failure(spec, outcome.error or "no reason was given")
            row = run_row(spec, result)
            name = f"{spec.optimizer} on {row['target']}, trial {spec.trial_seed}, setting {spec.hparam_seed}"
            if row["status"] == "failed":
                bar.write(f"failed: {spec.algorithm} {name}: {row['error']}", file=sys.stderr)
            else:
                accuracy = row["selection"]["training_domain"]["accuracy"]
                bar.set_postfix_str(f"{spec.algorithm} {name}: {100 * accuracy:.1f} %", refresh=False)
            bar.update()


def train_one(study: Study, folder: Path, trial_seed: int, hparam_seed: int) -> dict[str, Any]:
    """Train the one method and target of a study in a folder of its own; return the run's line.

    Args:
        study: has one method and one set of targets.
        folder: the run's folder; a run that it holds is continued.
        trial_seed: number of the trial.
        hparam_seed: number of the hyperparameter setting; 0 is the defaults.

    Raises:
        ValueError: the study is not valid, or the folder holds another run or cannot be written.
        StoreBusyError: another process trains in the folder.
    """
    for name, value in (("trial seed", trial_seed), ("hparam seed", hparam_seed)):
        if value < 0:
            raise ValueError(f"{name} must be at least 0, not {value}")
    spec = study.spec(study.methods[0], study.target_sets[0], trial_seed, hparam_seed)
    study.check_buildable([spec])
    with claim(folder):
        if (folder / SPEC_FILE).exists():
            recorded = read_json(folder / SPEC_FILE, "delete the folder to train from the start")
            if recorded != json.loads(json.dumps(asdict(spec))):
                raise ValueError(f"{folder} holds another run; choose another output")
        result = read_result(folder)
        if result is None:
            with tqdm(total=spec.steps, unit="step", desc=str(study.methods[0])) as bar:

                def show(step: int, loss: float) -> None:
                    if bar.n == 0:
                        bar.initial = bar.n = step - 1  # resumed: the speed is that of the steps taken now
                    bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                    bar.update(step - bar.n)

                result = train(
                    spec,
                    study.data,
                    folder,
                    device=torch.device(study.device),
                    weights=study.weights,
                    on_progress=show,
                )
    return run_row(spec, result)
