"""Runs a study here or on a Ray cluster: trains its missing runs in parallel and keeps all results."""

from __future__ import annotations

import socket
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from shiftproof.algorithms import SingleDomainWarning
from shiftproof.base.files import DamagedFileError, is_local, with_home
from shiftproof.base.plugins import Plugin, PluginError, adopt_plugins, digests, imported, keep_sources
from shiftproof.base.processes import preload
from shiftproof.data import TableFile
from shiftproof.protocol import Unit, training_domain_validation
from shiftproof.studies.plan import PLAN_FILE, Plan, read_plan, read_run_spec
from shiftproof.studies.planning import make_plan, plan_run
from shiftproof.studies.results import Results, run_row
from shiftproof.studies.store import Store, claim, claim_run, has_ended
from shiftproof.studies.study import Study
from shiftproof.studies.study_data import class_vectors_of, data_folder, open_data, open_dataset, table_of
from shiftproof.studies.workers import NodeError, RayCluster, run_on_ray, run_tasks
from shiftproof.training import (
    CHECKPOINT_FILE,
    ERROR_FILE,
    FIRST_PASS,
    RESULT_FILE,
    SPEC_FILE,
    RunPlace,
    RunSpec,
    check_combination,
    check_device,
    read_result,
    train,
    train_together,
)
from shiftproof.training.ranks import (
    ALONE,
    PRELOADED,
    Ranks,
    Strategy,
    check_devices,
    from_torchrun,
    launch,
    torchrun_group,
)
from shiftproof.training.tracking import TRACKERS, Tracking, check_trackers

TRIES = 3
"""Attempts at a run that raises an error or kills its worker, before it is recorded as failed."""


class RunTask(NamedTuple):
    """Everything a worker needs to train a run, or several that differ in their averaging only and train together."""

    runs: tuple[RunPlace, ...]
    dataset: str
    data_dir: Path | None
    weights: Path | None
    device: str
    plugins: tuple[Plugin, ...] = ()
    table: TableFile | None = None
    class_vectors: Path | None = None


def execute(task: RunTask) -> list[dict[str, Any]]:
    """Train the runs of a task and return their results; write the traceback of an error into the runs' folders.

    Raises:
        NodeError: a plug-in is missing on this machine, or is not the driver's.
    """
    try:
        adopt_plugins(task.plugins)
    except PluginError as error:
        raise NodeError(f"node {socket.gethostname()}: {error}") from error
    with ExitStack() as claims:
        # in one order, so that no two processes wait for each other
        for folder in sorted((run.folder for run in task.runs), key=str):
            claims.enter_context(claim_run(folder))
        results = {run.spec.name: read_result(run.folder) for run in task.runs}
        # those that have ended did by a process that outlived its driver or its node, or before the others
        left = [run for run in task.runs if not has_ended(results[run.spec.name])]
        if left:
            trained = _train_runs(task, left)
            results |= {run.spec.name: result for run, result in zip(left, trained, strict=True)}
    return [result for result in results.values() if result is not None]


def execute_elsewhere(task: RunTask) -> list[dict[str, Any]]:
    """Train the runs of a task on a machine that may lack files of this one.

    Raises:
        NodeError: it lacks the output, data, weights, device or a plug-in.
    """
    node = socket.gethostname()
    for what, path in (
        ("the output", task.runs[0].folder.parents[1] / PLAN_FILE),
        ("the data folder", task.data_dir),
        ("the table", task.table.file if task.table else None),
        ("the weights", task.weights),
        ("the class vectors", task.class_vectors),
    ):
        if path is not None and not path.exists():
            raise NodeError(f"node {node} does not reach {what}: there is no {path}")
    try:
        check_device(task.device)
    except ValueError as error:
        raise NodeError(f"node {node}: {error}") from error
    return execute(task)


def _train_runs(task: RunTask, runs: Sequence[RunPlace]) -> list[dict[str, Any]]:
    spec = runs[0].spec  # all that is read of it is the same in all
    try:
        # planning the study has printed the warnings about data set and methods already
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = open_dataset(
                task.dataset, task.data_dir, spec.image_size, spec.kind, task.table, task.class_vectors
            )
        for run in runs:
            _drop_what_other_plugins_began(run.folder, run.spec)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SingleDomainWarning)
            return train_together(runs, dataset, device=torch.device(task.device), weights=task.weights)
    except Exception:
        for run in runs:
            with suppress(OSError):  # a failure to write the traceback must not hide the error itself
                (run.folder / ERROR_FILE).write_text(traceback.format_exc(), encoding="utf-8")
        raise


def _drop_what_other_plugins_began(folder: Path, spec: RunSpec) -> None:
    """Delete what there is of a run that has not ended if another version of its plug-ins trained it.

    So no run mixes the two: neither a checkpoint nor a first pass on a part of the data.
    """
    begun = [folder / CHECKPOINT_FILE, *(folder / FIRST_PASS / name for name in (CHECKPOINT_FILE, RESULT_FILE))]
    if _changed_plugins(folder, spec) and not has_ended(read_result(folder)):
        for file in begun:
            file.unlink(missing_ok=True)


def _changed_plugins(folder: Path, spec: RunSpec) -> list[str]:
    """Return the names of a run's plug-ins of which another version began the run in its folder."""
    if not spec.plugins:
        return []
    try:
        began = read_run_spec(folder, "").plugins.values()
    except (FileNotFoundError, DamagedFileError):
        return []
    return [name for name, digest in spec.plugins.items() if digest not in began]


def time_shares(results: Results) -> dict[str, float]:
    """Return the share of each part (data, step, evaluation, checkpoints) in the time of a study's runs.

    No part counts work done once per process: starting, importing, compiling, opening the data. On a GPU, "data" only
    launches work that "step" waits for.
    """
    parts: dict[str, float] = {}
    for spec in results.plan.distinct:
        for part, seconds in (results.result(spec) or {"seconds": {}})["seconds"].items():
            parts[part] = parts.get(part, 0.0) + seconds
    return {part: seconds / sum(parts.values()) for part, seconds in parts.items()}


def run_study(
    study: Study,
    output: Path,
    workers: int | RayCluster,
    *,
    trackers: tuple[str, ...] = (),
    on_end: Callable[[Results], object] | None = None,
) -> Results:
    """Train the missing runs of a study and return its results; write its plan and rows beside the runs.

    Args:
        study: the study to run.
        output: the store's folder, on this machine or an object store; runs that it holds already are not trained
            again.
        workers: number of processes on this machine, or a Ray cluster, every node of which must reach output, data
            and weights; it does not affect results.
        trackers: names of the trackers that every run is written to.
        on_end: called with the results so far, even when training is interrupted or fails, before another process
            can claim the output.

    Raises:
        ValueError: the study is not valid, the output cannot be written, the number of workers is not above 0, a
            tracker is unknown or not installed, or the cluster cannot train these runs.
        StoreBusyError: another process is working on the output.
        DamagedFileError: a recorded result cannot be read.
        NodeError: a node does not reach output, data or weights, or lacks the device.
        OSError: there is no connection to the cluster.
    """
    _check_output(trackers, output)
    if isinstance(workers, RayCluster):
        workers.check(study.device)
    else:
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise ValueError(f"workers must be a whole number above 0 or a RayCluster, not {workers!r}")
        study.device_here()
    output = output.absolute()  # workers may have another working directory
    plan = make_plan(study)
    store = Store(output)
    with claim(output):
        missing = store.missing(plan)
        _tell_of_another_plan(output, plan)
        _tell_of_changed_plugins(store, plan)
        plugins = _needed_plugins(study, plan.distinct, trackers, plan.plugins)
        keep_sources(plugins, output)
        plan.write(output)
        try:
            _train_all(study, plan, store, missing, workers, trackers, plugins)
        finally:
            results = store.results(plan)
            store.write_runs(results)
            if on_end is not None:
                on_end(results)
    return results


def _check_output(trackers: tuple[str, ...], output: Path | str) -> None:
    if isinstance(output, str):
        raise ValueError(f"the output must be a path, not the text {output!r}: Path({output!r})")  # noqa: TRY004
    check_trackers(trackers)
    if trackers and not is_local(output):
        raise ValueError(f"trackers write beside the runs, which must then be in a local or mounted folder: {output}")


def _tell_of_another_plan(output: Path, plan: Plan) -> None:
    try:
        held = read_plan(output)
    except (FileNotFoundError, DamagedFileError):
        return
    if [spec.name for spec in held.distinct] != [spec.name for spec in plan.distinct]:
        print(
            f"{output} held the plan of {held.name} ({len(held.distinct)} runs); it is replaced, its runs are kept",
            file=sys.stderr,
        )


def _tell_of_changed_plugins(store: Store, plan: Plan) -> None:
    """Print a line for every plug-in that has changed since it was last used for runs of the plan."""
    changed: Counter[str] = Counter()
    for spec in plan.distinct:
        changed.update(_changed_plugins(store.folder(spec), spec))
    for name, runs in changed.items():
        print(
            f"the plug-in {name} has changed since {runs} of these runs were trained or begun: those that have ended "
            "are kept, the others start again; choose another output to train all of them with this version",
            file=sys.stderr,
        )


def _needed_plugins(
    study: Study, specs: Iterable[RunSpec], trackers: tuple[str, ...], rules: Iterable[str] = ()
) -> tuple[Plugin, ...]:
    """Return the plug-ins that the study names, and those of installed packages that its parts are of.

    Args:
        study: the study.
        specs: its runs.
        trackers: names of the trackers of its runs.
        rules: names of the plug-ins that its selection rules come from.
    """
    of_runs = [name for spec in specs for name in spec.plugins]
    return imported([*study.imports, *rules, *digests([(TRACKERS, name) for name in trackers]), *of_runs])


def _tags(study: str, spec: RunSpec) -> dict[str, str]:
    """Return the tags that identify a run in a tracker."""
    return {
        "study": study,
        "method": str(spec.method),
        "target": "+".join(spec.targets),
        "trial": str(spec.trial_seed),
        "setting": str(spec.hparam_seed),
    }


def _train_all(
    study: Study,
    plan: Plan,
    store: Store,
    specs: list[RunSpec],
    workers: int | RayCluster,
    trackers: tuple[str, ...],
    plugins: tuple[Plugin, ...],
) -> None:
    keys = {grid.dataset: key for grid, key in zip(plan, study.datasets, strict=True)}
    trainings: dict[str, list[RunSpec]] = {}
    for spec in specs:
        trainings.setdefault(spec.training, []).append(spec)
    together = list(trainings.values())
    weights = None if study.weights_file is None else with_home(study.weights_file).absolute()
    tasks = []
    for runs in together:
        key = keys[runs[0].dataset]
        places = [
            RunPlace(spec, store.folder(spec), Tracking(trackers, store.root, _tags(plan.name, spec))) for spec in runs
        ]
        data_dir, table = data_folder(study, key), table_of(study, key)
        vectors = class_vectors_of(study)
        tasks.append(RunTask(tuple(places), key, data_dir, weights, study.device, plugins, table, vectors))
    total = len(plan.distinct)
    if isinstance(workers, RayCluster):
        outcomes = run_on_ray(execute_elsewhere, tasks, workers, TRIES)
    else:
        preload(PRELOADED)
        outcomes = run_tasks(execute if is_local(store.root) else execute_elsewhere, tasks, workers, TRIES)
    with (
        closing(outcomes),  # stops the workers before the claim on the output ends
        tqdm(total=total, initial=total - len(specs), unit="run", desc="runs") as bar,
    ):
        for outcome in outcomes:
            runs = together[outcome.task]
            error = outcome.error or "no reason was given"
            results = outcome.value or [store.record_failure(spec, error) for spec in runs]
            for spec, result in zip(runs, results, strict=True):
                row = run_row(spec, result)
                if row["status"] == "failed":
                    bar.write(f"failed: {spec.label()}: {row['error']}", file=sys.stderr)
                else:
                    value = row["selection"]["training_domain"]["measures"][row["metric"]]
                    bar.set_postfix_str(f"{spec.label()}: {Unit.of(row['metric']).with_unit(value)}", refresh=False)
                bar.update()


def train_one(
    study: Study,
    folder: Path,
    trial_seed: int,
    hparam_seed: int,
    *,
    trackers: tuple[str, ...] = (),
    devices: int = 1,
    strategy: Strategy = "ddp",
) -> dict[str, Any] | None:
    """Train the one method and target of a study in its own folder; return the run's line of `runs.jsonl`.

    Under `torchrun`, every process calls this and they train together; all but the first return None.

    Args:
        study: a study with one data set, one method and one set of targets.
        folder: the run's folder; a run that it holds is continued, on any number of devices.
        trial_seed: number of the trial.
        hparam_seed: number of the hyperparameter setting; 0 is the defaults.
        trackers: names of the trackers that the run is written to.
        devices: number of this machine's devices that train it, each in its own process; `torchrun` sets its own
            number.
        strategy: how several devices share the run, "ddp" or "fsdp".

    Raises:
        ValueError: the study is not valid, the folder holds another run or cannot be written, a tracker is unknown or
            not installed, or the run cannot be trained on that many devices.
        StoreBusyError: another process is training in the folder.
        ChildProcessError: one of the processes failed.
    """
    for name, value in (("trial seed", trial_seed), ("hparam seed", hparam_seed)):
        if value < 0:
            raise ValueError(f"{name} must be at least 0, not {value}")
    _check_output(trackers, folder)
    here = study.device_here()
    check_devices(study.device, devices, strategy)
    spec = plan_run(study, trial_seed, hparam_seed)
    work = partial(_train_rank, spec, study, folder, trackers, _needed_plugins(study, [spec], trackers))
    if from_torchrun():
        with torchrun_group(study.device, strategy) as (ranks, device):
            if ranks.first:
                with _own_folder(folder, spec):
                    work(ranks, device)
            else:
                work(ranks, device)
                return None
    else:
        with _own_folder(folder, spec):
            if devices > 1 and read_result(folder) is None:
                sources = len(open_data(study, study.datasets[0]).domains) - len(spec.targets)
                check_combination(spec, sources, Ranks(0, devices, strategy))
                launch(work, study.device, devices, strategy)
            elif devices == 1:
                work(ALONE, here)
    result = read_result(folder)
    assert result is not None  # noqa: S101  (it was trained)
    return run_row(spec, result)


@contextmanager
def _own_folder(folder: Path, spec: RunSpec) -> Iterator[None]:
    """Keep other processes out of a folder, and raise ValueError if it holds another run."""
    with claim(folder):
        remedy = "choose another output, or delete the folder to train from the start"
        if (folder / SPEC_FILE).exists():
            held = read_run_spec(folder, remedy)
            if held.name != spec.name:
                raise ValueError(f"{folder} holds another run; choose another output")
            if (changed := _changed_plugins(folder, spec)) and read_result(folder) is not None:
                names = ", ".join(changed)
                print(f"{names} changed since the run in {folder} was trained; the run is kept", file=sys.stderr)
        _drop_what_other_plugins_began(folder, spec)
        keep_sources(imported(spec.plugins), folder)
        yield


def _train_rank(
    spec: RunSpec,
    study: Study,
    folder: Path,
    trackers: tuple[str, ...],
    plugins: tuple[Plugin, ...],
    ranks: Ranks,
    device: torch.device,
) -> None:
    """Train a run as one of the processes that share it, unless it has ended."""
    adopt_plugins(plugins)
    ended = torch.tensor(ranks.first and read_result(folder) is not None, device=device)  # the first owns the folder
    if bool(ranks.agreed(ended.float())):
        return
    unit, validated = Unit.of(spec.selecting_metric), ""
    with tqdm(total=spec.steps, unit="step", desc=str(spec.method), disable=not ranks.first) as bar:

        def show(step: int, loss: float) -> None:
            if bar.n == 0:
                bar.initial = bar.n = step - 1  # after a resumption, the speed is measured on new steps only
            bar.set_postfix_str(f"loss {loss:.3f}{validated}", refresh=False)
            bar.update(step - bar.n)

        def show_validation(record: dict[str, Any]) -> None:
            nonlocal validated
            value = training_domain_validation(record, spec.targets, unit.metric)
            validated = f", validation {unit.with_unit(value)} at step {record['step']}"
            bar.set_postfix_str(f"loss {record['loss']:.3f}{validated}", refresh=True)

        train(
            spec,
            open_data(study, study.datasets[0]),
            folder,
            device=device,
            weights=study.weights_file,
            on_progress=show,
            on_record=show_validation,
            tracking=Tracking(trackers, tags=_tags(study.name, spec)),
            ranks=ranks,
        )
