"""The rules of a fair comparison: dialects of the protocol, settings to search and rules of selection."""

from shiftproof.protocol.dialects import PROTOCOLS, Protocol
from shiftproof.protocol.measures import training_domain_validation, validation_loss
from shiftproof.protocol.selection import RULES, Record, select
from shiftproof.protocol.settings import SearchSpace, check_fixed, hyperparameters, known_names, search_space, setting

__all__ = [
    "PROTOCOLS",
    "RULES",
    "Protocol",
    "Record",
    "SearchSpace",
    "check_fixed",
    "hyperparameters",
    "known_names",
    "search_space",
    "select",
    "setting",
    "training_domain_validation",
    "validation_loss",
]
