"""Tables of a study: accuracy per target and mean, with standard errors, paired differences and terms."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shiftproof.studies.statistics import Difference, Estimate, estimate, paired_difference
from shiftproof.studies.study import Method, Study

Row = dict[str, Any]
"""A line of `runs.jsonl`."""

MEAN = "mean"


@dataclass(frozen=True)
class Cell:
    """One entry of a table.

    Attributes:
        accuracy: over the trials that finished, None if none has.
        class_mean: the same for the mean over classes.
        difference: from the first method, over the trials that finished for both.
        trials: trials that finished.
        planned: trials of the study.
        failed: whether a trial that did not finish failed (else it has not run yet).
    """

    accuracy: Estimate | None
    class_mean: Estimate | None
    difference: Difference | None
    trials: int
    planned: int
    failed: bool


@dataclass(frozen=True)
class MethodRow:
    """A method's row: its cells by target and for the mean, and its cost.

    Attributes:
        method: what was trained.
        cells: by column; the last is the mean over targets.
        passes_per_step: forward and backward passes of one step.
        seconds: mean wall time of a run.
    """

    method: Method
    cells: dict[str, Cell]
    passes_per_step: float | None
    seconds: float | None


@dataclass(frozen=True)
class Table:
    """The table of a study.

    Attributes:
        rows: one per method; the first is the baseline.
        terms: what the accuracies depend on, by name.
        failures: a line per failed run, with its reason.
    """

    rows: list[MethodRow]
    terms: dict[str, Any]
    failures: list[str]

    def text(self) -> str:
        """Return the table for a terminal."""
        columns = list(self.rows[0].cells)
        head = ["method", *columns, "passes/step", "s/run"]
        body = [
            [
                str(row.method),
                *(_accuracy(cell) for cell in row.cells.values()),
                _number(row.passes_per_step),
                _number(row.seconds),
            ]
            for row in self.rows
        ]
        lines = ["Accuracy on the unseen domain, %", *_aligned([head, *body])]
        if len(self.rows) > 1:
            head = ["method", MEAN, "95 % interval", *columns[:-1]]
            body = [
                [
                    str(row.method),
                    _signed(row.cells[MEAN].difference),
                    _interval(row.cells[MEAN].difference),
                    *(_signed(row.cells[column].difference) for column in columns[:-1]),
                ]
                for row in self.rows[1:]
            ]
            lines += [
                "",
                f"Difference from {self.rows[0].method}, points, paired by trial",
                *_aligned([head, *body]),
            ]
        lines += ["", "Terms: " + "; ".join(f"{name} {value}" for name, value in self.terms.items())]
        if self.failures:
            lines += ["", "Failed runs:", *(f"  {line}" for line in self.failures)]
        return "\n".join(lines)

    def csv(self) -> str:
        """Return the table as CSV, one line per method and column, accuracies in [0, 1]."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            [
                *("algorithm", "optimizer", "annealer", "target", "accuracy", "standard_error"),
                *("class_mean", "difference", "difference_low", "difference_high", "trials", "failed"),
                *("passes_per_step", "seconds", *self.terms),
            ]
        )
        for row in self.rows:
            for column, cell in row.cells.items():
                writer.writerow(
                    [
                        *(*row.method, column, *(cell.accuracy or (None, None))),
                        cell.class_mean.mean if cell.class_mean else None,
                        *(cell.difference or (None, None, None)),
                        *(cell.trials, cell.failed, row.passes_per_step, row.seconds),
                        *self.terms.values(),
                    ]
                )
        return file.getvalue()


def build_table(study: Study, rows: Sequence[Row], rule: str = "training_domain") -> Table:
    """Build the table of a study from its runs.

    Args:
        study: says which runs there should be.
        rows: lines of `runs.jsonl`; runs that are missing show as missing.
        rule: the selection rule, for checkpoints and settings.
    """
    targets = ["+".join(names) for names in study.target_sets]
    chosen = {
        (method, target, trial): choose_setting([row for row in rows if _key(row) == (method, target, trial)], rule)
        for method in study.methods
        for target in targets
        for trial in range(study.trials)
    }
    failed = {_key(row) for row in rows if row["status"] == "failed"}

    def scores(method: Method, column: str, quantity: str) -> dict[int, float]:
        """Return the accuracy of every trial that finished, averaged over targets in the mean's column."""
        wanted = targets if column == MEAN else [column]
        result = {}
        for trial in range(study.trials):
            picked = [chosen[method, target, trial] for target in wanted]
            if all(picked):
                values = [row["selection"][rule][quantity] for row in picked if row]
                result[trial] = sum(values) / len(values)
        return result

    def cell(method: Method, column: str) -> Cell:
        accuracies = scores(method, column, "accuracy")
        baseline = scores(study.methods[0], column, "accuracy")
        both = sorted(accuracies.keys() & baseline.keys())
        wanted = targets if column == MEAN else [column]
        return Cell(
            estimate(list(accuracies.values())) if accuracies else None,
            estimate(list(scores(method, column, "class_mean").values())) if accuracies else None,
            paired_difference([accuracies[t] for t in both], [baseline[t] for t in both]) if both else None,
            len(accuracies),
            study.trials,
            any(
                (method, target, trial) in failed and trial not in accuracies
                for target in wanted
                for trial in range(study.trials)
            ),
        )

    def method_row(method: Method) -> MethodRow:
        finished = [row for row in rows if _key(row)[0] == method and row["status"] == "finished"]
        return MethodRow(
            method,
            {column: cell(method, column) for column in [*targets, MEAN]},
            estimate([row["passes"] / row["steps"] for row in finished]).mean if finished else None,
            estimate([row["seconds"] for row in finished]).mean if finished else None,
        )

    failures = [
        f"{_key(row)[0]} on {row['target']}, trial {row['trial_seed']}, setting {row['hparam_seed']}: {row['error']}"
        for row in rows
        if row["status"] == "failed"
    ]
    planned = len(study.runs)
    finished = sum(row["status"] == "finished" for row in rows)
    terms = {**study.terms, "selection": rule, "runs finished": f"{finished} of {planned}"}
    return Table([method_row(method) for method in study.methods], terms, failures)


def choose_setting(rows: Sequence[Row], rule: str) -> Row | None:
    """Return the run with the highest validation among the settings of one trial, the lowest setting on a tie.

    A rule that validates nothing takes the lowest setting that finished. None if no run finished.
    """
    finished = sorted((row for row in rows if row["status"] == "finished"), key=lambda row: int(row["hparam_seed"]))
    if not finished:
        return None
    return max(finished, key=lambda row: row["selection"][rule]["validation"] or 0.0)


def _key(row: Row) -> tuple[Method, str, int]:
    return Method(row["algorithm"], row["optimizer"], row["annealer"]), row["target"], row["trial_seed"]


def _aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return [
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _accuracy(cell: Cell) -> str:
    if cell.accuracy is None:
        return "failed" if cell.failed else "missing"
    mean, error = cell.accuracy
    text = f"{100 * mean:.1f} ± {'-' if error is None else f'{100 * error:.1f}'}"
    return text if cell.trials == cell.planned else f"{text} ({cell.trials}/{cell.planned})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _signed(difference: Difference | None) -> str:
    return "-" if difference is None else f"{100 * difference.mean:+.1f}"


def _interval(difference: Difference | None) -> str:
    if difference is None or difference.low is None or difference.high is None:
        return "-"
    return f"[{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
