"""Tables of a study: a measure by target, its mean and worst, with errors, paired differences, ranks and terms."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from shiftproof.base.method import find_method
from shiftproof.base.registry import UnknownNameError
from shiftproof.protocol import MEASURES, Unit, over_domains
from shiftproof.studies import (
    OVERALL,
    SECONDS,
    Grid,
    Method,
    Outcome,
    Published,
    Results,
    published,
    published_for,
)
from shiftproof.tables.statistics import (
    AverageRanks,
    Difference,
    Estimate,
    SignCount,
    average_ranks,
    estimate,
    holm,
    paired_difference,
    sign_count,
)
from shiftproof.training import results_version

How = Literal["mean", "worst"]
"""How several targets are put into one number."""

Scores = dict[int, float]
"""A quantity by trial, for the trials that have it."""


@dataclass(frozen=True)
class Cell:
    """One entry of a table.

    Attributes:
        score: the table's measure, mean over the trials that finished and have one; None if none does.
        class_mean: the mean over classes of the accuracy on each class, likewise.
        difference: from the baseline, over the trials that finished for both.
        spread: standard deviation of that difference between trials; None with one trial.
        trials: number of trials that finished and have a score.
        planned: number of trials in the study; 1 of a method that combines runs of several trials.
        failed: whether a trial failed; trials that are neither finished nor failed have not run yet.
        undefined: whether the measure is undefined in a trial that finished.
        scores: the table's measure by trial.
    """

    score: Estimate | None
    class_mean: Estimate | None
    difference: Difference | None
    trials: int
    planned: int
    failed: bool
    undefined: bool = False
    spread: float | None = None
    scores: Scores = field(default_factory=dict)


@dataclass(frozen=True)
class MethodRow:
    """A method's row: its cells, their mean and worst, the comparison with the baseline, and the method's cost.

    Attributes:
        method: the method that was trained.
        cells: its cells by column.
        mean: the mean of the columns, taken within each trial.
        worst: the worst of the columns, taken within each trial, so that it may be another one in each; None where
            there is only one, and in the overall table.
        adjusted_p: p-value of the mean's difference, corrected for the number of rows by Holm's method.
        signs: on how many targets it is better and worse than the baseline.
        sweep_gain: what picking steps and settings by the target's accuracy (the oracle) would have added to the mean.
        passes_per_step: forward and backward passes of one step, including the annealer's.
        seconds: mean wall time of a run, of its share where several shared a training.
        shared: number of runs that shared a training, at most; 1 if none did.
        annealing: the annealer's measurements by name, as means over runs; empty if it reports none.
        members: number of finished runs that one of its results combines, at most; 0 of a method that is trained.
    """

    method: Method
    cells: dict[str, Cell]
    mean: Cell
    worst: Cell | None
    adjusted_p: float | None
    signs: SignCount | None
    sweep_gain: Difference | None
    passes_per_step: float | None
    seconds: float | None
    shared: int
    annealing: dict[str, float | None]
    members: int = 0


@dataclass(frozen=True)
class Table:
    """A table of a study.

    Attributes:
        title: the data set, or the name of the study for the overall table.
        dataset: what it is of; None for the overall table, whose columns are data sets.
        rule: the selection rule, for steps and settings.
        unit: the measure, and how its values are written.
        columns: targets, or data sets.
        rows: one per method.
        baseline: the method that differences are taken from.
        ranked: the methods with a score on every target, in the order of ``ranks``.
        ranks: their average ranks over targets; None with fewer than two such methods.
        terms: what the accuracies depend on, by name.
        failures: a line per failed run, with its reason.
        constant: what predictions that read no input score, by heading; empty if a run that tells is missing.
        constant_name: what these predict.
    """

    title: str
    dataset: str | None
    rule: str
    unit: Unit
    columns: list[str]
    rows: list[MethodRow]
    baseline: Method
    ranked: list[Method]
    ranks: AverageRanks | None
    terms: dict[str, Any]
    failures: list[str]
    constant: dict[str, Estimate]
    constant_name: str

    @property
    def not_above_constant(self) -> list[Method]:
        """The methods whose mean is not better than that of predictions that read no input."""
        if not self.constant:
            return []
        least = self.unit.sign * self.constant[self.mean_name].mean
        return [row.method for row in self.rows if row.mean.score and self.unit.sign * row.mean.score.mean <= least]

    @property
    def mean_name(self) -> str:
        """The heading of the mean of the columns."""
        return _heading("mean", self.columns)

    @property
    def headings(self) -> list[str]:
        """What stands above the scores of a row, in order."""
        return list(self.cells(self.rows[0]))

    def cells(self, row: MethodRow) -> dict[str, Cell]:
        """Return the cells of a row by heading: the mean, the worst if there is one, and the columns."""
        worst = {_heading("worst", self.columns): row.worst} if row.worst else {}
        return {self.mean_name: row.mean, **worst, **row.cells}

    @property
    def compared(self) -> int:
        """The number of p-values that are corrected together."""
        return sum(row.adjusted_p is not None for row in self.rows)

    @property
    def ranking(self) -> list[tuple[float, Method]]:
        """The average ranks, the best first."""
        ranks = self.ranks.ranks if self.ranks else []
        return sorted(zip(ranks, self.ranked, strict=True), key=lambda pair: pair[0])


class Comparison(NamedTuple):
    """A measured accuracy beside the published one.

    Attributes:
        method: the method that was trained.
        dataset: the data set; "mean" stands for the mean over all data sets of the published table.
        measured: the mean over its targets.
        published: the published result of the method, or of its released form.
    """

    method: Method
    dataset: str
    measured: Estimate
    published: Published


class _Part(NamedTuple):
    grid: Grid
    targets: tuple[str, ...]


def build_tables(results: Results, rule: str | None = None, baseline: str | None = None) -> list[Table]:
    """Build the tables of a study: one of each data set, and where there are several an overall one before them.

    Args:
        results: the study's results; missing runs are shown as missing.
        rule: the selection rule; None for the study's first.
        baseline: the method that differences are taken from, written as in tables; None for the study's.

    Raises:
        UnknownNameError: the study has no such rule or method.
    """
    plan = results.plan
    if rule is not None and rule not in plan.selection:
        raise UnknownNameError("selection rule of this study", rule, list(plan.selection))
    methods = list(plan.grids[0].methods)
    first = plan.baseline if baseline is None else find_method(baseline, methods)
    if first is None:
        raise UnknownNameError("method of this study", str(baseline), [str(method) for method in methods])
    chosen = rule or plan.selection[0]
    tables = []
    if len(plan.grids) > 1 and len({results.shown(grid) for grid in plan}) == 1:
        columns = {grid.dataset: [_Part(grid, targets) for targets in grid.columns] for grid in plan}
        tables.append(_Builder(results, chosen, first, None, columns).table(list(plan.grids)))
    for grid in plan:
        columns = {"+".join(targets): [_Part(grid, targets)] for targets in grid.columns}
        tables.append(_Builder(results, chosen, first, grid.dataset, columns).table([grid]))
    return tables


def comparisons(results: Results, tables: Sequence[Table]) -> list[Comparison]:
    """Return the accuracies of a study's tables that its published tables report too, with the published ones."""
    found = []
    names = {grid.dataset for grid in results.plan}
    for table in tables:
        dataset = OVERALL if table.dataset is None else table.dataset
        for row in table.rows:
            name = results.plan.published.get(row.method.variant)
            if name is None or row.mean.score is None or table.unit.metric != "accuracy":
                continue
            if row.method.averaging != "none":  # published tables are of trained weights
                continue
            if dataset == OVERALL and names != {key.dataset for key in published(name)} - {OVERALL, SECONDS}:
                continue  # the published mean is over other data sets
            figure = published_for(name, *row.method[:3], dataset)
            if figure is not None:
                found.append(Comparison(row.method, dataset, row.mean.score, figure))
    return found


class _Builder:
    """Builds one table.

    Args:
        results: the study's results.
        rule: the selection rule.
        baseline: the method that differences are taken from.
        dataset: what the table is of; None for the overall one.
        columns: the targets over which each column takes the mean.
    """

    def __init__(
        self, results: Results, rule: str, baseline: Method, dataset: str | None, columns: dict[str, list[_Part]]
    ) -> None:
        self.results, self.rule, self.baseline, self.dataset, self.columns = results, rule, baseline, dataset, columns
        self.has_worst = dataset is not None and len(columns) > 1  # the worst data set is only the hardest one
        self.parts = [part for parts in columns.values() for part in parts]
        self.metric = results.shown(self.parts[0].grid)
        self.sign = Unit.of(self.metric).sign
        self.trials = self.parts[0].grid.trials

    def table(self, grids: Sequence[Grid]) -> Table:
        rows = [self._row(method, grids) for method in grids[0].methods]
        others = [row for row in rows if row.method != self.baseline]
        adjusted = dict(
            zip(
                [row.method for row in others],
                holm([row.mean.difference.p if row.mean.difference else None for row in others]),
                strict=True,
            )
        )
        ranked, ranks = self._ranks([row.method for row in rows])
        return Table(
            self.results.plan.name if self.dataset is None else self.dataset,
            self.dataset,
            self.rule,
            Unit.of(self.metric, max((abs(row.mean.score.mean) for row in rows if row.mean.score), default=0.0)),
            list(self.columns),
            [replace(row, adjusted_p=adjusted.get(row.method)) for row in rows],
            self.baseline,
            ranked,
            ranks,
            self._terms(grids),
            [line for grid in grids for line in _failures(self.results, grid)],
            self._constant(),
            self._constant_name(),
        )

    def _constant(self) -> dict[str, Estimate]:
        """Return what predictions that read no input score, over the trials in which all columns tell."""
        known: dict[tuple[str, tuple[str, ...]], Scores] = {}
        for grid in {part.grid.dataset: part.grid for part in self.parts}.values():
            for row in (row for rows in self.results.rows_by_method(grid).values() for row in rows):
                told = row["constant"] or {}
                value = over_domains([scores.get(self.metric) for scores in told.values()], "mean", self.sign > 0)
                if value is not None:
                    known.setdefault((grid.dataset, tuple(told)), {})[row["trial_seed"]] = value
        columns = {
            column: _over([known.get((part.grid.dataset, part.targets), {}) for part in parts])
            for column, parts in self.columns.items()
        }
        found = {_heading("mean", columns): _over(list(columns.values()))}
        if self.has_worst:
            found[_heading("worst", columns)] = _over(list(columns.values()), "worst", self.sign > 0)
        trials = found[_heading("mean", columns)].keys()
        return {name: estimate([one[t] for t in trials]) for name, one in (found | columns).items() if trials}

    def _constant_name(self) -> str:
        tasks = {part.grid.runs[0].task for part in self.parts}
        if "regression" in tasks:
            return "mean of the sources"
        if "multilabel" in tasks:
            return "label shares"
        return "largest class" if MEASURES[self.metric].of_labels else "class shares"

    def _row(self, method: Method, grids: Sequence[Grid]) -> MethodRow:
        finished = [
            row
            for grid in grids
            for row in self.results.rows_by_method(grid).get(method, [])
            if row["status"] == "finished"
        ]
        return MethodRow(
            method,
            {column: self._cell(method, parts) for column, parts in self.columns.items()},
            self._over_cell(method, "mean"),
            self._over_cell(method, "worst") if self.has_worst else None,
            None,
            self._signs(method) if method != self.baseline else None,
            self._sweep_gain(method),
            estimate([row["passes"] / row["steps"] for row in finished]).mean if finished else None,
            estimate([row["seconds"] for row in finished]).mean if finished else None,
            max((row["shared"] for row in finished), default=1),
            _annealing([row["annealing"] for row in finished if row["annealing"] is not None]),
            max((len(spec.members) for grid in grids for spec in grid.runs if spec.method == method), default=0),
        )

    def _cell(self, method: Method, parts: Sequence[_Part]) -> Cell:
        return self._entry(method, parts, lambda m, quantity: self._column(m, parts, quantity))

    def _over_cell(self, method: Method, how: How) -> Cell:
        return self._entry(method, self.parts, lambda m, quantity: self._over_columns(m, quantity, self.rule, how))

    def _entry(self, method: Method, parts: Sequence[_Part], scores: Callable[[Method, str], Scores]) -> Cell:
        found = scores(method, self.metric)
        ours, theirs = self._beside(method, found, scores(self.baseline, self.metric))
        class_means = scores(method, "class_mean")
        outcomes = [self._outcome(method, part, trial) for part in parts for trial in range(self.trials)]
        return Cell(
            estimate(list(found.values())) if found else None,
            estimate(list(class_means.values())) if class_means else None,
            _paired(ours, theirs),
            len(found),
            1 if self._is_over_trials(method) else self.trials,
            any(one.status == "failed" and one.trial not in found for one in outcomes),
            any(one.selected is not None and _value(one.selected, self.metric) is None for one in outcomes),
            _spread(ours, theirs),
            found,
        )

    def _beside(self, method: Method, ours: Scores, theirs: Scores) -> tuple[Scores, Scores]:
        """Return the scores of a method and of the baseline, by trial, or their means if one combines all trials."""
        if not any(map(self._is_over_trials, (method, self.baseline))):
            return ours, theirs
        means = [{0: statistics.fmean(scores.values())} if scores else {} for scores in (ours, theirs)]
        return means[0], means[1]

    def _is_over_trials(self, method: Method) -> bool:
        return any(method in part.grid.over_trials for part in self.parts)

    def _outcome(self, method: Method, part: _Part, trial: int, rule: str | None = None) -> Outcome:
        return self.results.outcome(part.grid, rule or self.rule, method, part.targets, trial)

    def _column(self, method: Method, parts: Sequence[_Part], quantity: str, rule: str | None = None) -> Scores:
        """Return the mean over the parts of a column, by trial, for the trials that have all parts."""
        return _over([self._part(method, part, quantity, rule) for part in parts])

    def _part(self, method: Method, part: _Part, quantity: str, rule: str | None) -> Scores:
        picked = {trial: self._outcome(method, part, trial, rule).selected for trial in range(self.trials)}
        return {t: value for t, one in picked.items() if one and (value := _value(one, quantity)) is not None}

    def _over_columns(self, method: Method, quantity: str, rule: str, how: How = "mean") -> Scores:
        """Return the mean or the worst of the columns, by trial, for the trials that have all columns."""
        columns = [self._column(method, parts, quantity, rule) for parts in self.columns.values()]
        return _over(columns, how, self.sign > 0 or quantity == "class_mean")

    def _sweep_gain(self, method: Method) -> Difference | None:
        scores = [self._over_columns(method, self.metric, rule) for rule in ("oracle", self.rule)]
        return _paired(*scores)

    def _signs(self, method: Method) -> SignCount | None:
        pairs = []
        for part in self.parts:
            columns = (self._column(m, [part], self.metric) for m in (method, self.baseline))
            ours, theirs = self._beside(method, *columns)
            if both := sorted(ours.keys() & theirs.keys()):
                pairs.append([self.sign * sum(s[trial] for trial in both) / len(both) for s in (ours, theirs)])
        return sign_count([pair[0] for pair in pairs], [pair[1] for pair in pairs]) if pairs else None

    def _ranks(self, methods: Sequence[Method]) -> tuple[list[Method], AverageRanks | None]:
        """Rank the methods on every target, by their mean over the trials that all of them have.

        What combines several trials has no trials of its own, and is not ranked.
        """
        ranked = [method for method in methods if not self._is_over_trials(method)]
        scores = {m: [self._column(m, [part], self.metric) for part in self.parts] for m in ranked}
        scores = {m: cells for m, cells in scores.items() if all(cells)}
        common = [
            sorted(set.intersection(*(set(cells[i]) for cells in scores.values()))) if scores else []
            for i in range(len(self.parts))
        ]
        if len(scores) < 2 or not all(common):
            return [], None
        means = [
            [
                self.sign * sum(cell[trial] for trial in trials) / len(trials)
                for cell, trials in zip(cells, common, strict=True)
            ]
            for cells in scores.values()
        ]
        return list(scores), average_ranks(means)

    def _terms(self, grids: Sequence[Grid]) -> dict[str, Any]:
        names = dict.fromkeys(name for grid in grids for name in grid.terms)
        terms = {}
        for name in names:
            values = {grid.dataset: grid.terms.get(name, "-") for grid in grids}
            same = len(set(map(str, values.values()))) == 1
            each = ", ".join(f"{value} on {dataset}" for dataset, value in values.items())
            terms[name] = next(iter(values.values())) if same else ", ".join(values) if name == "dataset" else each
        planned = {spec.name for grid in grids for spec in grid.runs}
        rows = [row for grid in grids for each in self.results.rows_by_method(grid).values() for row in each]
        finished = {row["run"] for row in rows if row["status"] == "finished"}
        specs = [spec for grid in grids for spec in grid.runs]
        versions = {
            (spec.results_version, results_version(spec.algorithm, spec.class_weights), spec.algorithm)
            for spec in specs
        }
        outdated = sorted(version for version in versions if version[0] != version[1])
        if outdated:  # the same runs would give other numbers today
            held, todays, which = (" ".join(map(str, dict.fromkeys(of))) for of in zip(*outdated, strict=True))
            of_some = "" if len(outdated) == len(versions) else f" of {which}"
            terms["results version"] = f"{held}{of_some}, earlier than today's {todays}"
        by = {self.results.plan.metric_of(grid) for grid in grids}
        rule = self.rule if by == {self.metric} else f"{self.rule}, by {' and '.join(sorted(by))}"
        return {**terms, "selection": rule, "runs finished": f"{len(finished)} of {len(planned)}"}


def _heading(how: How, columns: Collection[str]) -> str:
    """Return a name that none of the columns has."""
    name: str = how
    while name in columns:
        name += " of all"
    return name


def _over(parts: Sequence[Scores], how: How = "mean", greater_is_better: bool = True) -> Scores:
    """Return the mean or the worst of a quantity's parts within each trial, for the trials that have all parts."""
    over = {
        trial: over_domains([part.get(trial) for part in parts], how, greater_is_better) for trial in sorted(parts[0])
    }
    return {trial: value for trial, value in over.items() if value is not None}


def _value(selected: dict[str, Any], quantity: str) -> float | None:
    """Return a measure, or the class mean, of a selected checkpoint."""
    values = selected if quantity == "class_mean" else selected["measures"]
    value: float | None = values.get(quantity)
    return value


def _annealing(reports: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    """Return the mean of every quantity over the runs that have it, None if none has."""
    means: dict[str, float | None] = {}
    for name in reports[0] if reports else ():
        values = [value for report in reports if (value := report.get(name)) is not None]
        means[name] = sum(values) / len(values) if values else None
    return means


def _paired(values: Scores, baseline: Scores) -> Difference | None:
    both = sorted(values.keys() & baseline.keys())
    return paired_difference([values[t] for t in both], [baseline[t] for t in both]) if both else None


def _spread(values: Scores, baseline: Scores) -> float | None:
    both = sorted(values.keys() & baseline.keys())
    return statistics.stdev(values[t] - baseline[t] for t in both) if len(both) > 1 else None


def _failures(results: Results, grid: Grid) -> list[str]:
    return [
        f"{spec.label()}: " + row["error"].partition("\n")[0]
        for spec in grid.runs
        if (row := results.row(grid, spec)) and row["status"] == "failed"
    ]
