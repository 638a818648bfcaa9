"""The tables of a study as text for a terminal, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from shiftproof.base.files import write_bytes
from shiftproof.base.text import one_line
from shiftproof.protocol import Unit
from shiftproof.studies import SECONDS, Method, Results, published_for
from shiftproof.tables.marks import Mark, marks
from shiftproof.tables.markup import latex, markdown
from shiftproof.tables.notes import (
    combined_note,
    constant_note,
    difference_note,
    selection_note,
    shared_note,
    transductive_note,
)
from shiftproof.tables.statistics import Difference, Estimate
from shiftproof.tables.table import Cell, Comparison, MethodRow, Table, build_tables, comparisons
from shiftproof.tables.verdicts import verdicts


class Entry(NamedTuple):
    """One entry of a block, and whether it is the best or second best of its column."""

    text: str
    mark: Mark | None = None


@dataclass(frozen=True)
class Block:
    """A table as entries.

    Attributes:
        title: what the numbers are, with their unit.
        head: names of the columns; the first heads the rows' names.
        rows: entries, one per column.
        notes: lines below it.
    """

    title: str
    head: list[str]
    rows: list[list[Entry]]
    notes: list[str] = field(default_factory=list)


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
        return {"best": f"**{text}**", "second": f"_{text}_", None: text}[one.mark]

    parts = []
    for block in blocks(results, rule, baseline):
        lines = [f"**{markdown(block.title).strip()}**", ""]  # a space beside the asterisks would prevent bold
        if block.rows:
            lines.append("| " + " | ".join(entry(Entry(name)) for name in block.head) + " |")
            lines.append("|---|" + "---:|" * (len(block.head) - 1))
            lines += ["| " + " | ".join(map(entry, row)) + " |" for row in block.rows]
        parts.append("\n".join([*lines, *(f"\n{markdown(note)}" for note in block.notes)]))
    return "\n\n".join(parts)


def as_latex(results: Results, rule: str | None = None, baseline: str | None = None) -> str:
    r"""Return the tables of a study as LaTeX (package booktabs), the best in bold, the second best underlined.

    The arguments are those of `as_text`.
    """

    def entry(one: Entry) -> str:
        text = latex(one.text)
        return {"best": rf"\textbf{{{text}}}", "second": rf"\underline{{{text}}}", None: text}[one.mark]

    parts = []
    for block in blocks(results, rule, baseline):
        notes = " ".join(latex(note) for note in block.notes)
        if not block.rows:
            parts.append("\n".join(f"% {one_line(line)}" for line in [block.title, *block.notes]))
            continue
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex(block.title)}{'. ' + notes if notes else ''}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(block.head) - 1)}}}",
            r"\toprule",
            " & ".join(map(latex, block.head)) + r" \\",
            r"\midrule",
            *(" & ".join(map(entry, row)) + r" \\" for row in block.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        parts.append("\n".join(lines))
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


def blocks(results: Results, rule: str | None = None, baseline: str | None = None) -> list[Block]:
    """Return the tables of a study as blocks, in order; the arguments are those of `as_text`."""
    chosen = rule or results.plan.selection[0]
    tables = build_tables(results, chosen, baseline)
    by_rule = [tables if one == chosen else build_tables(results, one, baseline) for one in results.plan.selection]
    found = []
    for table in tables:
        found.append(_accuracy_block(table))
        if (annealer := annealer_block(table)) is not None:
            found.append(annealer)
        if len(table.rows) > 1:
            found.append(_difference_block(table))
        found.append(
            _selection_block(table, [same for one in by_rule for same in one if same.dataset == table.dataset])
        )
        if table.ranks is not None:
            found.append(_rank_block(table))
    found += _published_blocks(results, comparisons(results, tables))
    for table in [one for one in tables if one.dataset is None] or tables:
        found += _time_blocks(results, table)
    for table in tables:
        found.append(Block(f"Terms: {_terms(table)}", [], []))
    failures = list(dict.fromkeys(line for table in tables for line in table.failures))
    if failures:
        found.append(Block("Failed runs:", [], [], [f"  {line}" for line in failures]))
    return found


def _terms(table: Table) -> str:
    return "; ".join(f"{name} {value}" for name, value in table.terms.items())


def _accuracy_block(table: Table) -> Block:
    columns = zip(*(table.cells(row).values() for row in table.rows), strict=True)
    entries = [_marked(column, table.unit) for column in columns]
    rows = [
        [Entry(str(row.method)), *(column[i] for column in entries), Entry(_number(row.passes_per_step)),
         Entry(_number(row.seconds))]
        for i, row in enumerate(table.rows)
    ]  # fmt: skip
    if table.constant:
        texts = [_estimate(table.constant[name], table.unit) for name in table.headings]
        rows.append([Entry(text) for text in (table.constant_name, *texts, "-", "-")])
    notes = (transductive_note(table), constant_note(table), shared_note(table), combined_note(table))
    return Block(
        f"{table.title}: {_measure(table.unit)}",
        ["method", *table.headings, "passes/step", "s/run"],
        rows,
        [note for note in notes if note],
    )


def annealer_block(table: Table) -> Block | None:
    """Return the annealers' measurements as a block; None if no annealer reports any."""
    digits = {"similarity_before": 6, "similarity_after": 6, "accepted": 1, "extra_passes": 1, "seconds": 1}

    def entry(value: float | None, places: int) -> Entry:
        return Entry("-" if value is None else f"{value:.{places}f}")

    rows = [
        [Entry(str(row.method)), *(entry(row.annealing[name], places) for name, places in digits.items())]
        for row in table.rows
        if row.annealing
    ]
    if not rows:
        return None
    return Block(
        f"{table.title}: the annealer, mean over runs",
        ["method", "similarity before", "after", "accepted", "extra passes", "s"],
        rows,
        [
            "Similarity: cosine of the source domains' gradients, for gga the least of all pairs, for gga_l their "
            "mean; extra passes are in passes/step, each over all source domains."
        ],
    )


def _measure(unit: Unit) -> str:
    percent, better = ", %" if unit.percent else "", "" if unit.sign > 0 else ", the lower the better"
    return f"{unit.metric} on unseen domains{percent}{better}"


def _marked(cells: Sequence[Cell], unit: Unit) -> list[Entry]:
    return [Entry(_score(cell, unit), mark) for cell, mark in zip(cells, marks(cells, unit), strict=True)]


def _difference_block(table: Table) -> Block:
    rows = [row for row in table.rows if row.method != table.baseline]
    _, *others = table.headings

    def entries(row: MethodRow) -> list[Entry]:
        _, *cells = table.cells(row).values()
        texts = [
            str(row.method),
            _signed(row.mean.difference, table.unit),
            _interval(row.mean.difference, table.unit),
            _p(row.adjusted_p),
            f"{row.signs.wins}-{row.signs.losses}-{row.signs.ties}" if row.signs else "-",
            *(_signed(cell.difference, table.unit) for cell in cells),
        ]
        return [Entry(text) for text in texts]

    return Block(
        f"{table.title}: difference from {table.baseline}, {table.unit.step}, paired by trial",
        ["method", table.mean_name, "95 % interval", "p (Holm)", "won-lost-tied", *others],
        [entries(row) for row in rows],
        [*verdicts(table), *([difference_note(table)] if table.compared > 1 else [])],
    )


def _selection_block(table: Table, by_rule: Sequence[Table]) -> Block:
    """Show the mean under every selection rule, and how much picking by the target would have added."""
    rows = [
        [
            Entry(str(row.method)),
            *(Entry(_score(same.rows[i].mean, table.unit)) for same in by_rule),
            Entry(_signed(row.sweep_gain, table.unit)),
            Entry(_interval(row.sweep_gain, table.unit)),
        ]
        for i, row in enumerate(table.rows)
    ]
    return Block(
        f"{table.title}: mean by selection rule, {'%' if table.unit.percent else table.unit.metric}",
        ["method", *(same.rule for same in by_rule), "picked on target", "95 % interval"],
        rows,
        [selection_note(table)],
    )


def _rank_block(table: Table) -> Block:
    assert table.ranks is not None  # noqa: S101  (asked before)
    ranks = table.ranks
    notes = [
        f"Over {ranks.cells} target{'' if ranks.cells == 1 else 's'}; "
        f"Friedman p {_p(ranks.friedman_p)}; critical difference at 5 % "
        f"{'-' if ranks.critical_difference is None else f'{ranks.critical_difference:.2f}'} (Nemenyi)."
    ]
    return Block(
        f"{table.title}: average rank over targets, 1 the best",
        ["method", "rank"],
        [[Entry(str(method)), Entry(f"{rank:.2f}")] for rank, method in table.ranking],
        notes,
    )


def _published_blocks(results: Results, compared: Sequence[Comparison]) -> list[Block]:
    if not compared:
        return []
    rows = [
        [
            Entry(text)
            for text in (
                f"{one.method}{' (published: released form)' if one.published.released_form else ''}",
                one.dataset,
                _estimate(one.measured, Unit()),
                f"{100 * one.published.value:.1f}"
                + (f" ± {100 * one.published.error:.1f}" if one.published.error is not None else ""),
                f"{100 * (one.measured.mean - one.published.value):+.1f}",
                one.published.selection,
                one.published.tuning,
                one.published.source,
            )
        ]
        for one in compared
    ]
    notes = []
    for grid in results.plan:
        if any(one.dataset == grid.dataset for one in compared):
            some = "" if len(grid.columns) == len(grid.domains) else f"; targets {', '.join(grid.targets)} only"
            terms = ("protocol", "settings per method", "trials", "steps", "model", "image size")
            said = "; ".join(f"{name} {grid.terms[name]}" for name in terms if name in grid.terms)
            notes.append(f"Measured on {grid.dataset}: {said}{some}. Published: ResNet-50 at 224 pixels, all targets.")
    return [
        Block(
            "Measured beside published, mean accuracy, %",
            ["method", "data set", "measured", "published", "difference", "selection", "tuning", "source"],
            rows,
            notes,
        )
    ]


def _time_blocks(results: Results, table: Table) -> list[Block]:
    """Show training times beside published ones, both relative to the baseline's, because machines differ."""

    def published_seconds(method: Method) -> float | None:
        name = results.plan.published.get(method.variant) if method.averaging == "none" else None
        found = name and published_for(name, *method[:3], SECONDS)
        return found.value if found else None

    rows = {row.method: (row.seconds, published_seconds(row.method)) for row in table.rows}
    ours, theirs = rows[table.baseline]
    if not ours or not theirs:
        return []
    return [
        Block(
            f"Seconds per run, and relative to {table.baseline}'s, beside published (released form of GENIE)",
            ["method", "measured", "published", "measured, relative", "published, relative"],
            [
                [
                    Entry(text)
                    for text in (
                        str(method),
                        f"{here:.1f}",
                        f"{there:.0f}",
                        f"{here / ours:.2f}",
                        f"{there / theirs:.2f}",
                    )
                ]
                for method, (here, there) in rows.items()
                if here and there
            ],
        )
    ]


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


def _score(cell: Cell, unit: Unit) -> str:
    if cell.score is None:
        return "failed" if cell.failed else "undefined" if cell.undefined else "missing"
    text = _estimate(cell.score, unit)
    return text if cell.trials == cell.planned else f"{text} ({cell.trials}/{cell.planned})"


def _estimate(value: Estimate, unit: Unit) -> str:
    return f"{unit.text(value.mean)} ± {'-' if value.error is None else unit.text(value.error)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _signed(difference: Difference | None, unit: Unit) -> str:
    return "-" if difference is None else unit.signed(difference.mean)


def _interval(difference: Difference | None, unit: Unit) -> str:
    if difference is None or difference.low is None or difference.high is None:
        return "-"
    return f"[{unit.signed(difference.low)}, {unit.signed(difference.high)}]"


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"
