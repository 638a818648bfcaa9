"""Optimizers: GENIE, the multi-pass optimizers and the registry. Needs torch and numpy only."""

from shiftproof.optim.genie import GENIE, genie
from shiftproof.optim.registry import OPTIMIZERS, OptimizerEntry
from shiftproof.optim.sam import SAM

__all__ = ["GENIE", "OPTIMIZERS", "SAM", "OptimizerEntry", "genie"]
