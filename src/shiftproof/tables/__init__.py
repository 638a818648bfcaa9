"""What results say, as tables: statistics, comparisons, and their text in several formats."""

from shiftproof.tables.formats import FORMATS, as_csv, as_latex, as_markdown, as_text, write_csv
from shiftproof.tables.table import Table, build_tables

__all__ = ["FORMATS", "Table", "as_csv", "as_latex", "as_markdown", "as_text", "build_tables", "write_csv"]
