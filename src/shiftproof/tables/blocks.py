"""The tables of a study as blocks of entries, which every format writes in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from shiftproof.protocol import Unit
from shiftproof.studies import SECONDS, Method, Results, published_for
from shiftproof.tables.marks import marks
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
    """One entry of a block, and whether it is the best of its column, as `marks` has it."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Block:
    """A table as entries.

    Attributes:
        name: what it shows, in a word or two, of which data set or study.
        title: what the numbers are, with their unit.
        head: names of the columns; the first heads the rows' names.
        rows: entries, one per column.
        notes: lines below it.
        terms: what its numbers depend on, of a table of scores.
    """

    name: str
    title: str
    head: list[str]
    rows: list[list[Entry]]
    notes: list[str] = field(default_factory=list)
    terms: str = ""

    @property
    def marked(self) -> bool:
        """Whether an entry is marked as the best of its column."""
        return any(entry.best for row in self.rows for entry in row)


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
        found.append(Block("terms", f"Terms: {_terms(table)}", [], []))
    failures = list(dict.fromkeys(line for table in tables for line in table.failures))
    if failures:
        found.append(Block("failures", "Failed runs:", [], [], [f"  {line}" for line in failures]))
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
        f"{table.title} accuracy",
        f"{table.title}: {_measure(table.unit)}",
        ["method", *table.headings, "passes/step", "s/run"],
        rows,
        [note for note in notes if note],
        _terms(table),
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
        f"{table.title} annealer",
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
        f"{table.title} differences",
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
        f"{table.title} selection",
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
        f"{table.title} ranks",
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
            "published",
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
            f"{table.title} seconds",
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


def _score(cell: Cell, unit: Unit) -> str:
    if cell.score is None:
        return "failed" if cell.failed else "undefined" if cell.undefined else "missing"
    text = _estimate(cell.score, unit)
    return text if cell.trials == cell.planned else f"{text} ({cell.trials}/{cell.planned})"


def _estimate(value: Estimate, unit: Unit) -> str:
    return unit.text(value.mean) if value.error is None else f"{unit.text(value.mean)} ± {unit.text(value.error)}"


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
