"""The plan of a study: the runs that there should be and what its tables are made of, readable without any data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from shiftproof.base.choices import Tuning
from shiftproof.base.files import DamagedFileError, read_json, write_bytes
from shiftproof.base.method import Method
from shiftproof.training import SPEC_FILE, RunSpec

PLAN_FILE = "study.json"
ABSENT = "not at hand"
"""The fingerprint of data that a plan was made without."""


@dataclass(frozen=True)
class Grid:
    """The part of a study on one data set.

    Attributes:
        dataset: its name.
        domains: names of its domains, in order.
        classes: names of its classes, in order; empty where the data are not at hand.
        images: number of images of all domains.
        methods: the rows of its table.
        columns: the domains that are left out together, one entry per column.
        trials: number of trials.
        hparam_trials: settings per method.
        terms: what its accuracies depend on, by name.
        runs: its runs, trial by trial, and after them those that only leave-one-domain-out validation needs.
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
        """Whether the data were there when this was planned."""
        return all(spec.data_fingerprint != ABSENT for spec in self.runs)

    @property
    def targets(self) -> list[str]:
        """The names of the columns."""
        return ["+".join(column) for column in self.columns]

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
        name: of the study.
        grids: its data sets.
        baseline: the method that differences are taken from.
        tune: whether a setting is chosen per target and trial, or one for all of a data set.
        protocol: the dialect, which says how ties are broken.
        selection: rules, the table's first.
        published: the published table that a variant stands beside, by the variant's name.
    """

    name: str
    grids: tuple[Grid, ...]
    baseline: Method
    tune: Tuning
    protocol: str
    selection: tuple[str, ...]
    published: dict[str, str]

    @property
    def runs(self) -> list[RunSpec]:
        """All runs; two of equal hash are one run that stands at several places."""
        return [spec for grid in self.grids for spec in grid.runs]

    @property
    def distinct(self) -> list[RunSpec]:
        """The runs that there are to train."""
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
    remedy = "run the study again, which writes it anew and trains nothing twice"
    content = read_json(path, remedy)
    try:
        grids = tuple(_grid(entries) for entries in content.pop("grids"))
        baseline, selection = Method(*content.pop("baseline")), tuple(content.pop("selection"))
        return Plan(grids=grids, baseline=baseline, selection=selection, **content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(path, f"{type(error).__name__}: {error}", remedy) from error


def _grid(entries: dict[str, Any]) -> Grid:
    return Grid(
        **{
            **entries,
            "domains": tuple(entries["domains"]),
            "classes": tuple(entries["classes"]),
            "methods": tuple(Method(*method) for method in entries["methods"]),
            "columns": tuple(tuple(column) for column in entries["columns"]),
            "runs": tuple(read_spec(spec) for spec in entries["runs"]),
        }
    )


def read_spec(entries: Any) -> RunSpec:
    """Return a run's spec from what JSON gives of it.

    Raises:
        ValueError: it is no spec of this version.
    """
    if not isinstance(entries, dict):
        raise ValueError("it is no mapping")  # noqa: TRY004  (of a file's content)
    # the version was not recorded before it was 4
    values = {"results_version": 3, **entries}
    if isinstance(values.get("targets"), list):
        values["targets"] = tuple(values["targets"])
    if unknown := values.keys() - _SPEC_TYPES.keys():
        raise ValueError(f"this version does not know its {', '.join(sorted(unknown))}")
    for name, value in values.items():
        if type(value) not in _SPEC_TYPES[name] or (name == "targets" and not all(type(one) is str for one in value)):
            raise ValueError(f"no valid {name}: {value!r}")
    try:
        return RunSpec(**values)
    except TypeError as error:
        raise ValueError(str(error).removeprefix("RunSpec.__init__() ")) from error


def read_run_spec(folder: Path, remedy: str) -> RunSpec:
    """Return the spec of the run in a folder.

    Raises:
        DamagedFileError: it is no spec of this version; the message ends in ``remedy``.
    """
    path = folder / SPEC_FILE
    entries = read_json(path, remedy)
    try:
        return read_spec(entries)
    except ValueError as error:
        raise DamagedFileError(path, str(error), remedy) from error


def _types(hint: Any) -> set[type]:
    """Return the types that a value of a field may have; true is no number, and a whole number is one."""
    if get_origin(hint) in (Union, UnionType):
        return set().union(*map(_types, get_args(hint)))
    if get_origin(hint) is Literal:
        return {str}
    return {float, int} if hint is float else {get_origin(hint) or hint}


_SPEC_TYPES = {name: _types(hint) for name, hint in get_type_hints(RunSpec).items()}
