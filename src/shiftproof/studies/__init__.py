"""Studies: sets of runs, their plan and store, workers and results.

Names are imported on first use, so that parsing a command line does not import torch.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shiftproof.base.field_error import FieldError
    from shiftproof.base.method import Method
    from shiftproof.studies.catalogue import LISTED, Listed, list_names
    from shiftproof.studies.checks import names_by_field
    from shiftproof.studies.combining import combine_runs
    from shiftproof.studies.encoding import encode
    from shiftproof.studies.field_info import GROUPS, TABLE_FIELDS, One, default_of, default_text, info_of, option_names
    from shiftproof.studies.index import INDEX_FILE
    from shiftproof.studies.named_files import named_studies, study_path
    from shiftproof.studies.plan import Grid, Plan, read_plan, read_run_spec
    from shiftproof.studies.planning import make_plan, plan_run
    from shiftproof.studies.published_results import OVERALL, SECONDS, Published, published, published_for
    from shiftproof.studies.results import Outcome, Results, Row
    from shiftproof.studies.runner import run_study, time_shares, train_one
    from shiftproof.studies.status import Status, read_status
    from shiftproof.studies.store import Store, StoreBusyError, read_results
    from shiftproof.studies.study import Study, Variant, field_types
    from shiftproof.studies.study_data import open_data, open_data_of, open_dataset, table_of
    from shiftproof.studies.study_file import SCALES, StudyFileError, naming_lines, read_study
    from shiftproof.studies.timing import plan_text, study_costs
    from shiftproof.studies.workers import RayCluster

_PLACES = {
    "combine_runs": "shiftproof.studies.combining",
    "encode": "shiftproof.studies.encoding",
    "default_of": "shiftproof.studies.field_info",
    "default_text": "shiftproof.studies.field_info",
    "field_types": "shiftproof.studies.study",
    "FieldError": "shiftproof.base.field_error",
    "Grid": "shiftproof.studies.plan",
    "GROUPS": "shiftproof.studies.field_info",
    "INDEX_FILE": "shiftproof.studies.index",
    "info_of": "shiftproof.studies.field_info",
    "list_names": "shiftproof.studies.catalogue",
    "LISTED": "shiftproof.studies.catalogue",
    "Listed": "shiftproof.studies.catalogue",
    "make_plan": "shiftproof.studies.planning",
    "Method": "shiftproof.base.method",
    "named_studies": "shiftproof.studies.named_files",
    "names_by_field": "shiftproof.studies.checks",
    "naming_lines": "shiftproof.studies.study_file",
    "One": "shiftproof.studies.field_info",
    "open_data": "shiftproof.studies.study_data",
    "open_data_of": "shiftproof.studies.study_data",
    "open_dataset": "shiftproof.studies.study_data",
    "option_names": "shiftproof.studies.field_info",
    "Outcome": "shiftproof.studies.results",
    "OVERALL": "shiftproof.studies.published_results",
    "Plan": "shiftproof.studies.plan",
    "plan_run": "shiftproof.studies.planning",
    "plan_text": "shiftproof.studies.timing",
    "Published": "shiftproof.studies.published_results",
    "published": "shiftproof.studies.published_results",
    "published_for": "shiftproof.studies.published_results",
    "RayCluster": "shiftproof.studies.workers",
    "read_plan": "shiftproof.studies.plan",
    "read_results": "shiftproof.studies.store",
    "read_run_spec": "shiftproof.studies.plan",
    "read_status": "shiftproof.studies.status",
    "read_study": "shiftproof.studies.study_file",
    "Results": "shiftproof.studies.results",
    "Row": "shiftproof.studies.results",
    "run_study": "shiftproof.studies.runner",
    "SCALES": "shiftproof.studies.study_file",
    "SECONDS": "shiftproof.studies.published_results",
    "Status": "shiftproof.studies.status",
    "Store": "shiftproof.studies.store",
    "StoreBusyError": "shiftproof.studies.store",
    "Study": "shiftproof.studies.study",
    "study_costs": "shiftproof.studies.timing",
    "study_path": "shiftproof.studies.named_files",
    "StudyFileError": "shiftproof.studies.study_file",
    "TABLE_FIELDS": "shiftproof.studies.field_info",
    "table_of": "shiftproof.studies.study_data",
    "time_shares": "shiftproof.studies.runner",
    "train_one": "shiftproof.studies.runner",
    "Variant": "shiftproof.studies.study",
}

_MOVED = {
    **dict.fromkeys(
        ("FORMATS", "Table", "as_csv", "as_latex", "as_markdown", "as_text", "build_tables"), "shiftproof.tables"
    ),
    **dict.fromkeys(("measure_agreement", "write_agreement"), "shiftproof.figures"),
}
"""Names that were here once, with the folders that have them now, which lie above this one."""

__all__ = [
    "GROUPS",
    "INDEX_FILE",
    "LISTED",
    "OVERALL",
    "SCALES",
    "SECONDS",
    "TABLE_FIELDS",
    "FieldError",
    "Grid",
    "Listed",
    "Method",
    "One",
    "Outcome",
    "Plan",
    "Published",
    "RayCluster",
    "Results",
    "Row",
    "Status",
    "Store",
    "StoreBusyError",
    "Study",
    "StudyFileError",
    "Variant",
    "combine_runs",
    "default_of",
    "default_text",
    "encode",
    "field_types",
    "info_of",
    "list_names",
    "make_plan",
    "named_studies",
    "names_by_field",
    "naming_lines",
    "open_data",
    "open_data_of",
    "open_dataset",
    "option_names",
    "plan_run",
    "plan_text",
    "published",
    "published_for",
    "read_plan",
    "read_results",
    "read_run_spec",
    "read_status",
    "read_study",
    "run_study",
    "study_costs",
    "study_path",
    "table_of",
    "time_shares",
    "train_one",
]


def __getattr__(name: str) -> Any:
    if name in _MOVED:
        place = _MOVED[name]
        warnings.warn(
            f"{name} has moved: import it from {place}, not from {__name__}", DeprecationWarning, stacklevel=2
        )
        return getattr(import_module(place), name)
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
