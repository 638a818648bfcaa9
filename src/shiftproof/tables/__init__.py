"""Tables of results: statistics, comparisons with published results, and text in several formats."""

from shiftproof.tables.blocks import annealer_block
from shiftproof.tables.formats import FORMATS, as_csv, as_markdown, as_text, write_csv
from shiftproof.tables.latex import as_latex
from shiftproof.tables.marks import MARK_NOTE, marks
from shiftproof.tables.notes import (
    combined_note,
    constant_note,
    difference_note,
    selection_note,
    shared_note,
    transductive_note,
)
from shiftproof.tables.statistics import AverageRanks, estimate, indistinguishable
from shiftproof.tables.table import Comparison, Table, build_tables, comparisons
from shiftproof.tables.verdicts import finding, verdicts

__all__ = [
    "FORMATS",
    "MARK_NOTE",
    "AverageRanks",
    "Comparison",
    "Table",
    "annealer_block",
    "as_csv",
    "as_latex",
    "as_markdown",
    "as_text",
    "build_tables",
    "combined_note",
    "comparisons",
    "constant_note",
    "difference_note",
    "estimate",
    "finding",
    "indistinguishable",
    "marks",
    "selection_note",
    "shared_note",
    "transductive_note",
    "verdicts",
    "write_csv",
]
