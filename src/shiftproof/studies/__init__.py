"""Studies: sets of runs, their plan and store, selection rules, statistics and tables."""

from shiftproof.field_error import FieldError
from shiftproof.studies.figures.agreement import measure_agreement, write_agreement
from shiftproof.studies.formats import FORMATS, as_csv, as_latex, as_markdown, as_text
from shiftproof.studies.plan import Grid, Plan, read_plan
from shiftproof.studies.planning import make_plan
from shiftproof.studies.ray_cluster import RayCluster
from shiftproof.studies.results import Outcome, Results
from shiftproof.studies.runner import run_study, time_shares, train_one
from shiftproof.studies.status import Status, read_status
from shiftproof.studies.store import Store, StoreBusyError, read_results
from shiftproof.studies.study import Method, Study, Variant
from shiftproof.studies.study_data import open_data
from shiftproof.studies.study_file import StudyFileError, naming_lines, read_study
from shiftproof.studies.tables import Table, build_tables
from shiftproof.studies.timing import plan_text, study_costs

__all__ = [
    "FORMATS",
    "FieldError",
    "Grid",
    "Method",
    "Outcome",
    "Plan",
    "RayCluster",
    "Results",
    "Status",
    "Store",
    "StoreBusyError",
    "Study",
    "StudyFileError",
    "Table",
    "Variant",
    "as_csv",
    "as_latex",
    "as_markdown",
    "as_text",
    "build_tables",
    "make_plan",
    "measure_agreement",
    "naming_lines",
    "open_data",
    "plan_text",
    "read_plan",
    "read_results",
    "read_status",
    "read_study",
    "run_study",
    "study_costs",
    "time_shares",
    "train_one",
    "write_agreement",
]
