"""Studies: sets of runs, their plan and store, workers and results.

What is named here is imported when it is first asked for: a command line that only parses needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shiftproof.base.field_error import FieldError
    from shiftproof.studies.plan import Grid, Plan, read_plan
    from shiftproof.studies.planning import make_plan
    from shiftproof.studies.results import Outcome, Results
    from shiftproof.studies.runner import run_study, time_shares, train_one
    from shiftproof.studies.status import Status, read_status
    from shiftproof.studies.store import Store, StoreBusyError, read_results
    from shiftproof.studies.study import Method, Study, Variant
    from shiftproof.studies.study_data import open_data
    from shiftproof.studies.study_file import StudyFileError, naming_lines, read_study
    from shiftproof.studies.timing import plan_text, study_costs
    from shiftproof.studies.workers.ray import RayCluster

_PLACES = {
    "FieldError": "shiftproof.base.field_error",
    "Grid": "shiftproof.studies.plan",
    "Method": "shiftproof.studies.study",
    "Outcome": "shiftproof.studies.results",
    "Plan": "shiftproof.studies.plan",
    "RayCluster": "shiftproof.studies.workers.ray",
    "Results": "shiftproof.studies.results",
    "Status": "shiftproof.studies.status",
    "Store": "shiftproof.studies.store",
    "StoreBusyError": "shiftproof.studies.store",
    "Study": "shiftproof.studies.study",
    "StudyFileError": "shiftproof.studies.study_file",
    "Variant": "shiftproof.studies.study",
    "make_plan": "shiftproof.studies.planning",
    "naming_lines": "shiftproof.studies.study_file",
    "open_data": "shiftproof.studies.study_data",
    "plan_text": "shiftproof.studies.timing",
    "read_plan": "shiftproof.studies.plan",
    "read_results": "shiftproof.studies.store",
    "read_status": "shiftproof.studies.status",
    "read_study": "shiftproof.studies.study_file",
    "run_study": "shiftproof.studies.runner",
    "study_costs": "shiftproof.studies.timing",
    "time_shares": "shiftproof.studies.runner",
    "train_one": "shiftproof.studies.runner",
}

__all__ = [
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
    "Variant",
    "make_plan",
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
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
