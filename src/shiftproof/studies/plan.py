"""The plan of a study: its runs and everything its tables need besides results, readable without any data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from shiftproof.base.choices import Tuning
from shiftproof.base.files import DamagedFileError, read_json, write_bytes
from shiftproof.base.method import Method
from shiftproof.protocol import BUILT_IN_RULES, DEFAULT_METRIC
from shiftproof.training import SPEC_FILE, RunSpec

PLAN_FILE = "study.json"
ABSENT = "not at hand"
"""The fingerprint in plans that were made without the data."""


@dataclass(frozen=True)
class Grid:
    """The part of a study on one data set.

    Attributes:
        dataset: its name.
        domains: names of its domains, in order.
        classes: names of its classes, in order; empty if the data are not at hand.
        images: number of images in all domains.
        methods: the rows of its table.
        columns: one entry per column of its table: the domains left out together.
        trials: number of trials.
        hparam_trials: settings per method.
        terms: what its accuracies depend on, by name.
        runs: its runs, trial by trial, followed by those that only leave-one-domain-out validation needs and by those
            that combine finished runs.
    """

    dataset: str
    domains: tuple[str, ...]
    classes: tuple[str, ...]
    images: int
    methods: tuple[Method, ...]
    columns: tuple[tuple[str, ...], ...]
    trials: int
    hparam_trials: int
    terms: dict[str, Any]
    runs: tuple[RunSpec, ...]

    @property
    def at_hand(self) -> bool:
        """Whether the data were available when this was planned."""
        return all(spec.data_fingerprint != ABSENT for spec in self.runs)

    @property
    def targets(self) -> list[str]:
        """The names of the columns."""
        return ["+".join(column) for column in self.columns]

    @cached_property
    def over_trials(self) -> set[Method]:
        """The methods that combine runs of several trials, and so have one result per target."""
        trials = {spec.name: spec.trial_seed for spec in self.runs}
        return {spec.method for spec in self.runs if len({trials.get(name) for name in spec.members}) > 1}

    @cached_property
    def settings(self) -> dict[tuple[Method, tuple[str, ...], int], list[RunSpec]]:
        """The runs by method, domains left out and trial; one per setting, in order."""
        result: dict[tuple[Method, tuple[str, ...], int], list[RunSpec]] = {}
        for spec in self.runs:
            result.setdefault((spec.method, spec.targets, spec.trial_seed), []).append(spec)
        return result


@dataclass(frozen=True)
class Plan:
    """A study, run by run.

    Attributes:
        name: name of the study.
        grids: one grid per data set.
        baseline: the method that differences are taken from.
        tune: whether a setting is selected per target and trial, or for a whole data set.
        protocol: the dialect, which decides ties.
        selection: the selection rules; tables use the first.
        published: the published table to compare each variant with, by the variant's name.
        plugins: digests of the plug-ins that its selection rules come from, by name.
        metric: the measure that selects and that tables show; None for the default of each data set's task.
    """

    name: str
    grids: tuple[Grid, ...]
    baseline: Method
    tune: Tuning
    protocol: str
    selection: tuple[str, ...]
    published: dict[str, str]
    plugins: dict[str, str] = field(default_factory=dict)
    metric: str | None = None

    def metric_of(self, grid: Grid) -> str:
        """Return the measure that selects steps and settings on a data set."""
        return self.metric or DEFAULT_METRIC[grid.runs[0].task]

    @property
    def rules(self) -> tuple[str, ...]:
        """The selection rules that its runs are scored by: the built-in ones, and those of plug-ins that it names."""
        return tuple(dict.fromkeys([*BUILT_IN_RULES, *self.selection]))

    @property
    def runs(self) -> list[RunSpec]:
        """All runs; a run with several places in the study is listed once for each."""
        return [spec for grid in self.grids for spec in grid.runs]

    @property
    def distinct(self) -> list[RunSpec]:
        """The runs to train, each listed once."""
        return list({spec.name: spec for spec in self.runs}.values())

    def __iter__(self) -> Iterator[Grid]:
        return iter(self.grids)

    def write(self, folder: Path) -> None:
        """Write the plan into a store, atomically."""
        write_bytes(folder / PLAN_FILE, (json.dumps(asdict(self)) + "\n").encode())


def read_plan(folder: Path) -> Plan:
    """Read the plan of the study that a folder holds.

    Raises:
        FileNotFoundError: the folder holds no study.
        DamagedFileError: the plan cannot be read.
    """
    path = folder / PLAN_FILE
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no study: there is no {PLAN_FILE} in it")
    remedy = "run the study again, which rewrites it and trains nothing twice"
    content = read_json(path, remedy)
    try:
        grids = tuple(_grid(entries) for entries in content.pop("grids"))
        baseline, selection = _method(content.pop("baseline"), grids[0].runs), tuple(content.pop("selection"))
        return Plan(grids=grids, baseline=baseline, selection=selection, **content)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise DamagedFileError(path, f"{type(error).__name__}: {error}", remedy) from error


def _grid(entries: dict[str, Any]) -> Grid:
    runs = tuple(read_spec(spec) for spec in entries["runs"])
    return Grid(
        **{
            **entries,
            "domains": tuple(entries["domains"]),
            "classes": tuple(entries["classes"]),
            "methods": tuple(_method(method, runs) for method in entries["methods"]),
            "columns": tuple(tuple(column) for column in entries["columns"]),
            "runs": runs,
        }
    )


def _method(entries: Sequence[Any], runs: Sequence[RunSpec]) -> Method:
    """Return a method from its parsed JSON; before averaging was part of it, all runs of a plan had the same."""
    method = Method(*entries)
    return method if len(entries) == len(Method._fields) else method._replace(averaging=runs[0].averaging)


def read_spec(entries: Any) -> RunSpec:
    """Return a run's spec from its parsed JSON.

    Raises:
        ValueError: it is not a spec of this version.
    """
    if not isinstance(entries, dict):
        raise ValueError("it is not a mapping")  # noqa: TRY004  (a fault of the file, not of the caller)
    # specs before version 4 did not record their version
    values = {"results_version": 3, **entries}
    values |= {name: tuple(values[name]) for name in _NAMES if isinstance(values.get(name), list)}
    if unknown := values.keys() - _SPEC_TYPES.keys():
        raise ValueError(f"this version does not know its {', '.join(sorted(unknown))}")
    for name, value in values.items():
        if type(value) not in _SPEC_TYPES[name] or (name in _NAMES and not all(type(one) is str for one in value)):
            raise ValueError(f"invalid {name}: {value!r}")
    try:
        return RunSpec(**values)
    except TypeError as error:
        raise ValueError(str(error).removeprefix("RunSpec.__init__() ")) from error


def read_run_spec(folder: Path, remedy: str) -> RunSpec:
    """Return the spec of the run in a folder.

    Raises:
        DamagedFileError: it is not a spec of this version; the message ends with ``remedy``.
    """
    path = folder / SPEC_FILE
    entries = read_json(path, remedy)
    try:
        return read_spec(entries)
    except ValueError as error:
        raise DamagedFileError(path, str(error), remedy) from error


def _types(hint: Any) -> set[type]:
    """Return the exact types that a field's value may have: a float may be an int, an int may not be a bool."""
    if get_origin(hint) in (Union, UnionType):
        return set().union(*map(_types, get_args(hint)))
    if get_origin(hint) is Literal:
        return {str}
    return {float, int} if hint is float else {get_origin(hint) or hint}


_NAMES = ("targets", "members")
_SPEC_TYPES = {name: _types(hint) for name, hint in get_type_hints(RunSpec).items()}
