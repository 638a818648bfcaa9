"""Combines the finished runs of a study, and adds the results to its plan as rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from shiftproof.algorithms import ALGORITHMS
from shiftproof.base.choices import COMBINATIONS, OVERS, Combination, Over
from shiftproof.base.method import Method, find_method
from shiftproof.base.plugins import import_plugins
from shiftproof.base.registry import UnknownNameError
from shiftproof.data import DATASETS, DomainDataset, TableFile
from shiftproof.studies.plan import Grid, Plan, read_plan
from shiftproof.studies.results import Results
from shiftproof.studies.store import Store, claim, has_ended
from shiftproof.studies.study_data import open_data_of
from shiftproof.training import (
    WEIGHTS_FILE,
    Member,
    RunSpec,
    check_device,
    combine,
    combined_spec,
    read_description,
)

_PREPARED = ("preparation", "quantity")
"""What a model's description says of its inputs and its unit, both fitted on the training rows of a trial."""


def combine_runs(
    folder: Path,
    *,
    ways: Sequence[Combination] | None = None,
    over: Over | None = None,
    methods: Sequence[str] = (),
    data_dir: Path | None = None,
    table: TableFile | None = None,
    device: str = "cpu",
) -> Results:
    """Combine the models that a study's finished runs keep, add rows of the results, and return its results.

    Each combination is kept as a run of the store, and is not computed again. Its row follows that of its method, and
    takes the place of an earlier one of the same way.

    Args:
        folder: the study's store.
        ways: "diwa", the mean of all weights; "diwa_greedy", that of those which validation takes; and "ensemble", the
            mean of predictions. None for all that there are.
        over: whether the settings of each trial are combined ("settings"), or all runs of a target ("trials"), which
            then has one result. None for settings where the study has several.
        methods: the methods whose runs are combined, written as in tables; empty for all.
        data_dir: folder that holds the data set, unless embedded.
        table: the table that the runs were trained on, if any, with the same meaning of its columns.
        device: the device to compute on.

    Raises:
        FileNotFoundError: the folder holds no study.
        ValueError: there is no such method, there are not two finished runs to combine, some keep no model or cannot be
            combined in this way, or the data set is not theirs.
        StoreBusyError: another process is working on the store.
        DamagedFileError: a file of the store cannot be read.
    """
    import_plugins()
    read_plan(folder)
    check_device(device)
    with claim(folder):
        plan, store = read_plan(folder), Store(folder)
        over = over or ("settings" if any(grid.hparam_trials > 1 for grid in plan) else "trials")
        ways = _checked_ways(ways, over, plan)
        groups = _groups(store, plan, _chosen(plan, methods), over)
        _check_models(store, groups, ways)
        trial = 0 if over == "trials" else None
        made = [(combined_spec(way, group, trial), group) for group in groups for way in ways]
        missing = {spec.name: (spec, group) for spec, group in made if not has_ended(store.result(spec))}
        for spec, group in tqdm(missing.values(), "combinations", unit="combination", disable=not missing):
            dataset = _open(folder, plan, spec, data_dir, table)
            members = [_member(store, one) for one in group]
            combine(spec, members, dataset, store.folder(spec), torch.device(device))
        plan = _with_rows(plan, [spec for spec, _ in made])
        plan.write(folder)
        results = store.results(plan)
        store.write_runs(results)
    return results


def _checked_ways(ways: Sequence[Combination] | None, over: Over, plan: Plan) -> Sequence[Combination]:
    if over not in OVERS:
        raise UnknownNameError("part of a study to combine runs over", over, list(OVERS))
    for way in ways or ():
        if way not in COMBINATIONS:
            raise UnknownNameError("way to combine runs", way, list(COMBINATIONS))
    reason = None
    if over == "trials":
        reason = (
            "among runs of several trials: each has trained on inputs that another holds out, and no validation is "
            "left; combine the settings of each trial (over settings)"
        )
    elif any(spec.all_data for spec in plan.runs):
        reason = "among runs on all data: they have trained on the inputs that it would choose by"
    if reason is None:
        return tuple(dict.fromkeys(ways or COMBINATIONS))
    if ways and "diwa_greedy" in ways:
        raise ValueError(f"diwa_greedy cannot choose {reason}")
    return tuple(dict.fromkeys(ways or ("diwa", "ensemble")))


def _chosen(plan: Plan, names: Sequence[str]) -> list[Method]:
    """Return the methods to combine.

    Raises:
        ValueError: one is unknown, combined itself or transductive, or two would make the same row.
    """
    trained = _trained(plan.grids[0].methods)
    chosen = [find_method(name, trained) for name in names] if names else list(trained)
    methods: dict[Method, Method] = {}
    for name, method in zip(names or map(str, trained), chosen, strict=True):
        if method is None:
            raise UnknownNameError("method of this study", name, list(map(str, trained)))
        if method.algorithm in ALGORITHMS and ALGORITHMS[method.algorithm].transductive:
            raise ValueError(
                f"{method} cannot be combined: its predictions depend on the inputs beside them; name other methods"
            )
        other = methods.setdefault(method._replace(averaging="none"), method)
        if other != method:
            raise ValueError(f"{other} and {method} would make the same row, of any averaging: name one of them")
    return list(methods.values())


def _trained(methods: Iterable[Method]) -> list[Method]:
    return [method for method in methods if method.averaging not in COMBINATIONS]


def _groups(store: Store, plan: Plan, methods: Sequence[Method], over: Over) -> list[tuple[RunSpec, ...]]:
    """Return the finished runs of a method and target that are combined, in order, wherever there are two.

    Raises:
        ValueError: there are nowhere two.
    """
    results = store.results(plan)
    together: dict[tuple[str, Method, tuple[str, ...], int | None], dict[str, RunSpec]] = {}
    for grid in plan:
        for spec in grid.runs:
            row = results.row(grid, spec)
            if spec.method in methods and spec.targets in grid.columns and row and row["status"] == "finished":
                key = grid.dataset, spec.method, spec.targets, spec.trial_seed if over == "settings" else None
                together.setdefault(key, {})[spec.name] = spec  # settings of equal values are one run
    if not together:
        raise ValueError(f"no run of {', '.join(map(str, methods))} has finished: there is nothing to combine")
    several = [tuple(runs.values()) for runs in together.values() if len(runs) > 1]
    if not several:
        where = " and trial: combine them over trials" if over == "settings" else ""
        raise ValueError(f"{len(together)} runs have finished, no two of them of the same target{where}")
    return several


def _check_models(store: Store, groups: Sequence[Sequence[RunSpec]], ways: Sequence[Combination]) -> None:
    """Check that all runs keep a model, and that weights which would be averaged belong to the same network.

    Raises:
        ValueError: some do not; the message has their number.
    """
    specs = {spec.name: spec for group in groups for spec in group}
    described: dict[str, dict[str, Any]] = {}
    for name, spec in specs.items():
        try:
            described[name] = read_description(store.folder(spec))
            (store.folder(spec) / WEIGHTS_FILE).stat()
        except FileNotFoundError:
            described.pop(name, None)
    if lost := specs.keys() - described.keys():
        first = next(name for name in specs if name in lost)
        raise ValueError(
            f"{len(lost)} of {len(specs)} runs keep no model and cannot be combined, the first in "
            f"{store.folder(specs[first])}: delete their result.json and run the study again"
        )
    averages = [way for way in ways if way != "ensemble"]
    if not averages:
        return
    for what, differs in (("another architecture", _architecture), ("inputs prepared otherwise", _preparation)):
        others = sum(
            differs(described[one.name]) != differs(described[group[0].name]) for group in groups for one in group
        )
        if others:
            raise ValueError(
                f"{others} of {len(specs)} runs have {what} than the first that their weights would be averaged with: "
                "combine them as an ensemble"
            )


def _architecture(description: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in description.items() if name not in (*_PREPARED, "plugins")}


def _preparation(description: dict[str, Any]) -> list[Any]:
    return [description.get(name) for name in _PREPARED]


def _member(store: Store, spec: RunSpec) -> Member:
    result = store.result(spec)
    if result is None:
        raise FileNotFoundError(f"the result of run {spec.name} was deleted while it was read")
    return Member(spec, store.folder(spec), result)


def _open(folder: Path, plan: Plan, spec: RunSpec, data_dir: Path | None, table: TableFile | None) -> DomainDataset:
    """Open the data set of a combination; one of several that needs no folder gets none."""
    without = spec.dataset in DATASETS and DATASETS[spec.dataset].embedded and len(plan.grids) > 1
    return open_data_of(folder, spec, None if without else data_dir, table)


def _with_rows(plan: Plan, made: Sequence[RunSpec]) -> Plan:
    """Return a plan with combinations, in the place of those of the same methods.

    Every data set has all methods, with no runs of those that could not be combined on it.
    """
    again = {spec.method for spec in made}
    specs = [spec for spec in plan.runs if spec.method not in again] + list(made)
    averagings = {spec.name: spec.averaging for spec in specs}
    origins = {
        spec.method: spec.method._replace(averaging=averagings[spec.members[0]]) for spec in specs if spec.members
    }
    methods = tuple(one for method in _trained(plan.grids[0].methods) for one in (method, *_made_of(method, origins)))

    def with_rows(grid: Grid) -> Grid:
        return replace(grid, methods=methods, runs=tuple(spec for spec in specs if spec.dataset == grid.dataset))

    return replace(plan, grids=tuple(map(with_rows, plan)))


def _made_of(method: Method, origins: dict[Method, Method]) -> Iterator[Method]:
    """Yield the methods that combine runs of a method."""
    for way in COMBINATIONS:
        combined = method._replace(averaging=way)
        if origins.get(combined) == method:
            yield combined
