"""The report of a comparison: one HTML page, its figures and the numbers behind them."""

from shiftproof.report.page import write_report

__all__ = ["write_report"]
