"""Tables of results: statistics, comparisons with published results, and text in several formats."""

from shiftproof.tables.formats import FORMATS, as_csv, as_latex, as_markdown, as_text, write_csv
from shiftproof.tables.statistics import AverageRanks, estimate, indistinguishable
from shiftproof.tables.table import Comparison, Table, build_tables, comparisons

__all__ = [
    "FORMATS",
    "AverageRanks",
    "Comparison",
    "Table",
    "as_csv",
    "as_latex",
    "as_markdown",
    "as_text",
    "build_tables",
    "comparisons",
    "estimate",
    "indistinguishable",
    "write_csv",
]
