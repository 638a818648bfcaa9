"""GENIE and GENIEAdamW: the optimizer classes, their functional core and the implementations of their step."""

from shiftproof.optim.genie.adamw import GENIEAdamW
from shiftproof.optim.genie.build import kernel_error
from shiftproof.optim.genie.functional import genie, genie_adamw
from shiftproof.optim.genie.fused_cpu import INSTRUCTION_SETS, instruction_set, limited_instructions
from shiftproof.optim.genie.optimizer import GENIE
from shiftproof.optim.genie.rule import FORMS
from shiftproof.optim.genie.statistics import GroupStatistics

__all__ = [
    "FORMS",
    "GENIE",
    "INSTRUCTION_SETS",
    "GENIEAdamW",
    "GroupStatistics",
    "genie",
    "genie_adamw",
    "instruction_set",
    "kernel_error",
    "limited_instructions",
]
