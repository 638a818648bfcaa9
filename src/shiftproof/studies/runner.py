"""Runs a study on this machine: what is missing, in parallel, with nothing lost."""

from __future__ import annotations

import sys
import traceback
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from shiftproof.algorithms import SingleDomainWarning
from shiftproof.files import DamagedFileError, read_json
from shiftproof.studies.formats import as_csv
from shiftproof.studies.plan import Plan, method_of, read_plan, read_spec
from shiftproof.studies.planning import data_folder, make_plan, open_data, open_dataset, plan_run
from shiftproof.studies.pool import run_tasks
from shiftproof.studies.results import Results, run_row
from shiftproof.studies.store import Store, claim
from shiftproof.studies.study import Study
from shiftproof.training import RunSpec, read_result, train
from shiftproof.training.run import ERROR_FILE, SPEC_FILE
from shiftproof.training.tensorboard import check_tensorboard

TRIES = 3
"""How often a run is begun that ends in an error or takes its worker down, before it is recorded as failed."""


class RunTask(NamedTuple):
    """What a worker needs to train one run."""

    spec: RunSpec
    folder: Path
    dataset: str
    data_dir: Path | None
    weights: Path | None
    device: str
    tensorboard: bool


def execute(task: RunTask) -> dict[str, Any]:
    """Train one run and return its result; the traceback of an error is left in the run's folder."""
    try:
        # what there is to say of the data set and the methods, the study has said
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = open_dataset(task.dataset, task.data_dir, task.spec.image_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SingleDomainWarning)
            return train(
                task.spec,
                dataset,
                task.folder,
                device=torch.device(task.device),
                weights=task.weights,
                tensorboard=task.tensorboard,
            )
    except Exception:
        task.folder.mkdir(parents=True, exist_ok=True)
        (task.folder / ERROR_FILE).write_text(traceback.format_exc(), encoding="utf-8")
        raise


def time_shares(results: Results) -> dict[str, float]:
    """Return the share of each part (data, step, evaluation, checkpoints) in the time of a study's runs.

    Starting a process and opening the data are in none. On a GPU, "data" launches what "step" waits for.
    """
    parts: dict[str, float] = {}
    for spec in results.plan.distinct:
        for part, seconds in (results.result(spec) or {"seconds": {}})["seconds"].items():
            parts[part] = parts.get(part, 0.0) + seconds
    return {part: seconds / sum(parts.values()) for part, seconds in parts.items()}


def run_study(study: Study, output: Path, jobs: int, *, tensorboard: bool = False) -> Results:
    """Train what is missing of a study and return its results; its plan, rows and table are written beside the runs.

    Args:
        study: what to run.
        output: the store's folder; runs that it holds already are not trained again.
        jobs: runs trained at a time; changes no result.
        tensorboard: whether every run writes TensorBoard logs into its folder.

    Raises:
        ValueError: the study is not valid, or the output cannot be written.
        StoreBusyError: another process works on the output.
        DamagedFileError: a recorded result cannot be read.
    """
    if tensorboard:
        check_tensorboard()
    plan = make_plan(study)
    store = Store(output)
    with claim(output):
        missing = store.missing(plan.distinct)
        _tell_of_another_plan(output, plan)
        plan.write(output)
        try:
            _train_all(study, plan, store, missing, jobs, tensorboard)
        finally:
            results = store.results(plan)
            store.write_runs(results)
            store.write_text("table.csv", as_csv(results))
    return results


def _tell_of_another_plan(output: Path, plan: Plan) -> None:
    try:
        held = read_plan(output)
    except (FileNotFoundError, DamagedFileError):
        return
    if held.distinct != plan.distinct:
        print(
            f"{output} held the plan of {held.name} ({len(held.distinct)} runs); it is replaced, its runs are kept",
            file=sys.stderr,
        )


def _train_all(study: Study, plan: Plan, store: Store, specs: list[RunSpec], jobs: int, tensorboard: bool) -> None:
    keys = {grid.dataset: key for grid, key in zip(plan, study.datasets, strict=True)}
    tasks = [
        RunTask(
            spec,
            store.folder(spec),
            keys[spec.dataset],
            data_folder(study, keys[spec.dataset]),
            study.weights,
            study.device,
            tensorboard,
        )
        for spec in specs
    ]
    total = len(plan.distinct)
    with (
        closing(run_tasks(execute, tasks, jobs, TRIES)) as outcomes,  # ends the workers before the output is released
        tqdm(total=total, initial=total - len(tasks), unit="run", desc="runs") as bar,
    ):
        for outcome in outcomes:
            spec = specs[outcome.task]
            result = outcome.value or store.record_failure(spec, outcome.error or "no reason was given")
            row = run_row(spec, result)
            name = f"{method_of(spec)} on {row['target']}, trial {spec.trial_seed}, setting {spec.hparam_seed}"
            if row["status"] == "failed":
                bar.write(f"failed: {name}: {row['error']}", file=sys.stderr)
            else:
                accuracy = row["selection"]["training_domain"]["accuracy"]
                bar.set_postfix_str(f"{name}: {100 * accuracy:.1f} %", refresh=False)
            bar.update()


def train_one(
    study: Study, folder: Path, trial_seed: int, hparam_seed: int, *, tensorboard: bool = False
) -> dict[str, Any]:
    """Train the one method and target of a study in a folder of its own; return the run's line.

    Args:
        study: has one data set, one method and one set of targets.
        folder: the run's folder; a run that it holds is continued.
        trial_seed: number of the trial.
        hparam_seed: number of the hyperparameter setting; 0 is the defaults.
        tensorboard: whether it writes TensorBoard logs into its folder.

    Raises:
        ValueError: the study is not valid, or the folder holds another run or cannot be written.
        StoreBusyError: another process trains in the folder.
    """
    for name, value in (("trial seed", trial_seed), ("hparam seed", hparam_seed)):
        if value < 0:
            raise ValueError(f"{name} must be at least 0, not {value}")
    if tensorboard:
        check_tensorboard()
    spec = plan_run(study, trial_seed, hparam_seed)
    with claim(folder):
        if (folder / SPEC_FILE).exists():
            recorded = read_json(folder / SPEC_FILE, "delete the folder to train from the start")
            if read_spec(recorded).name != spec.name:
                raise ValueError(f"{folder} holds another run; choose another output")
        result = read_result(folder)
        if result is None:
            with tqdm(total=spec.steps, unit="step", desc=str(method_of(spec))) as bar:

                def show(step: int, loss: float) -> None:
                    if bar.n == 0:
                        bar.initial = bar.n = step - 1  # resumed: the speed is that of the steps taken now
                    bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                    bar.update(step - bar.n)

                result = train(
                    spec,
                    open_data(study, study.datasets[0]),
                    folder,
                    device=torch.device(study.device),
                    weights=study.weights,
                    on_progress=show,
                    tensorboard=tensorboard,
                )
    return run_row(spec, result)
