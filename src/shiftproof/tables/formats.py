"""The tables of a study as text for a terminal, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from shiftproof.base.files import write_bytes
from shiftproof.base.text import one_line
from shiftproof.studies import Results
from shiftproof.tables.blocks import Block, Entry, blocks
from shiftproof.tables.latex import as_latex
from shiftproof.tables.marks import MARK_NOTE
from shiftproof.tables.markup import markdown
from shiftproof.tables.table import Cell, MethodRow, Table, build_tables


def as_text(results: Results, rule: str | None = None, baseline: str | None = None) -> str:
    """Return the tables of a study for a terminal.

    Args:
        results: the study's results.
        rule: the selection rule; None for the study's first.
        baseline: the method that differences are taken from; None for the study's.

    Raises:
        UnknownNameError: the study has no such rule or method.
    """
    return "\n\n".join(
        "\n".join([one_line(block.title), *_aligned(block), *map(one_line, block.notes)])
        for block in blocks(results, rule, baseline)
    )


def as_markdown(results: Results, rule: str | None = None, baseline: str | None = None) -> str:
    """Return the tables of a study as Markdown; the arguments are those of `as_text`."""

    def entry(one: Entry) -> str:
        text = markdown(one.text)
        return f"**{text}**" if one.best else text

    parts = []
    for block in blocks(results, rule, baseline):
        lines = [f"**{markdown(block.title).strip()}**", ""]  # a space beside the asterisks would prevent bold
        if block.rows:
            lines.append("| " + " | ".join(entry(Entry(name)) for name in block.head) + " |")
            lines.append("|---|" + "---:|" * (len(block.head) - 1))
            lines += ["| " + " | ".join(map(entry, row)) + " |" for row in block.rows]
        notes = [MARK_NOTE, *block.notes] if block.marked else block.notes
        parts.append("\n".join([*lines, *(f"\n{markdown(note)}" for note in notes)]))
    return "\n\n".join(parts)


def as_csv(results: Results, rule: str | None = None, baseline: str | None = None) -> str:
    """Return the tables of a study as CSV, with a line per table, method and column and accuracies in [0, 1].

    Without ``rule``, the tables of all rules of the study follow each other. The arguments are those of `as_text`.
    """
    rules = results.plan.selection if rule is None else (rule,)
    lines = [line for one in rules for table in build_tables(results, one, baseline) for line in _csv_lines(table)]
    names = dict.fromkeys(name for part in zip(*lines, strict=True) for values in part for name in values)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(names), lineterminator="\n")
    writer.writeheader()
    # a term of a method's column, as averaging is, says of all rows together what the column says of each
    writer.writerows({**line.terms, **line.annealing, **line.measured} for line in lines)
    return file.getvalue()


class _CSVLine(NamedTuple):
    """A line of CSV, by the names of its columns: what was measured, what annealers did and the terms come in turn."""

    measured: dict[str, Any]
    annealing: dict[str, Any]
    terms: dict[str, Any]


def _csv_lines(table: Table) -> Iterator[_CSVLine]:
    """Yield a line for every method and column, and for the mean of the columns, which is tested, and the worst."""
    for row in table.rows:
        annealing = {f"annealer_{name}": value for name, value in row.annealing.items()}
        tested = {"adjusted_p": row.adjusted_p, "sweep_gain": row.sweep_gain.mean if row.sweep_gain else None}
        for name, cell in {**row.cells, **table.cells(row)}.items():
            measured = _measured(table, row, name, cell)
            yield _CSVLine(measured | tested if cell is row.mean else measured, annealing, table.terms)


def _measured(table: Table, row: MethodRow, column: str, cell: Cell) -> dict[str, Any]:
    difference = cell.difference
    return {
        "table": table.title,
        **row.method._asdict(),
        "target": column,
        table.unit.metric: cell.score.mean if cell.score else None,
        "standard_error": cell.score.error if cell.score else None,
        "class_mean": cell.class_mean.mean if cell.class_mean else None,
        "difference": difference.mean if difference else None,
        "difference_low": difference.low if difference else None,
        "difference_high": difference.high if difference else None,
        "p": difference.p if difference else None,
        "adjusted_p": None,
        "trials_finished": cell.trials,
        "failed": cell.failed,
        "sweep_gain": None,
        "passes_per_step": row.passes_per_step,
        "seconds": row.seconds,
        "shared": row.shared,
    }


def write_csv(results: Results, output: Path) -> Path:
    """Write the tables of a study as `table.csv` into its output folder, and return the file's path.

    Characters that cannot be encoded, as in the name of a folder, are escaped.
    """
    path = output / "table.csv"
    write_bytes(path, as_csv(results).encode(errors="backslashreplace"))
    return path


FORMATS: dict[str, Callable[[Results, str | None, str | None], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "latex": as_latex,
    "csv": as_csv,
}
"""The functions that write tables, by the name of the format."""


def _aligned(block: Block) -> list[str]:
    rows = [block.head, *([entry.text for entry in row] for row in block.rows)] if block.rows else []
    lines = [list(map(one_line, row)) for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(block.head))] if lines else []
    return [
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
