"""The rules of a fair comparison: dialects, settings to search, measures and rules of selection."""

from shiftproof.protocol.dialects import PROTOCOLS, Protocol
from shiftproof.protocol.fixed import (
    applies,
    check_fixed,
    fixed_for,
    hyperparameters,
    known_names,
    unknown_hyperparameter,
    written_for,
)
from shiftproof.protocol.measures import MEASURES, Measure, MeasureError, measures_of, over_domains, score
from shiftproof.protocol.predictions import Predictions
from shiftproof.protocol.selection import (
    BUILT_IN_RULES,
    RULES,
    Choice,
    Curves,
    Record,
    RuleError,
    SelectionRule,
    best_by_validation,
    readable_records,
    select,
    selected_steps,
)
from shiftproof.protocol.settings import SearchSpace, search_space, setting
from shiftproof.protocol.unit import Unit
from shiftproof.protocol.validation import (
    DEFAULT_METRIC,
    goodness,
    mean_measure,
    measured,
    training_domain_validation,
    validation_loss,
)

__all__ = [
    "BUILT_IN_RULES",
    "DEFAULT_METRIC",
    "MEASURES",
    "PROTOCOLS",
    "RULES",
    "Choice",
    "Curves",
    "Measure",
    "MeasureError",
    "Predictions",
    "Protocol",
    "Record",
    "RuleError",
    "SearchSpace",
    "SelectionRule",
    "Unit",
    "applies",
    "best_by_validation",
    "check_fixed",
    "fixed_for",
    "goodness",
    "hyperparameters",
    "known_names",
    "mean_measure",
    "measured",
    "measures_of",
    "over_domains",
    "readable_records",
    "score",
    "search_space",
    "select",
    "selected_steps",
    "setting",
    "training_domain_validation",
    "unknown_hyperparameter",
    "validation_loss",
    "written_for",
]
