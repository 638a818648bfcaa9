"""GENIE: the optimizer class, its functional core and the implementations of its step."""

from shiftproof.optim.genie.functional import genie
from shiftproof.optim.genie.optimizer import GENIE

__all__ = ["GENIE", "genie"]
