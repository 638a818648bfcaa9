"""Studies: sets of runs, their store, selection rules, statistics and tables."""

from shiftproof.studies.runner import run_study, time_shares, train_one
from shiftproof.studies.store import Store, StoreBusyError
from shiftproof.studies.study import Method, Study
from shiftproof.studies.tables import Table, build_table

__all__ = [
    "Method",
    "Store",
    "StoreBusyError",
    "Study",
    "Table",
    "build_table",
    "run_study",
    "time_shares",
    "train_one",
]
