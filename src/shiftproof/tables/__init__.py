"""Tables of results: statistics, comparisons with published results, and text in several formats."""

from shiftproof.tables.formats import FORMATS, annealer_block, as_csv, as_latex, as_markdown, as_text, write_csv
from shiftproof.tables.marks import marks
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
from shiftproof.tables.verdicts import verdicts

__all__ = [
    "FORMATS",
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
    "indistinguishable",
    "marks",
    "selection_note",
    "shared_note",
    "transductive_note",
    "verdicts",
    "write_csv",
]
