"""GENIE: the optimizer class, its functional core and the implementations of its step."""

from shiftproof.optim.genie.build import kernel_error
from shiftproof.optim.genie.functional import genie
from shiftproof.optim.genie.optimizer import GENIE
from shiftproof.optim.genie.rule import FORMS
from shiftproof.optim.genie.statistics import GroupStatistics

__all__ = ["FORMS", "GENIE", "GroupStatistics", "genie", "kernel_error"]
