"""Optimizers: GENIE, GENIEAdamW, the multi-pass optimizers and the registry. Needs torch and numpy only."""

from shiftproof.optim.adabelief import AdaBelief
from shiftproof.optim.adahessian import AdaHessian
from shiftproof.optim.fad import FAD
from shiftproof.optim.gam import GAM
from shiftproof.optim.genie import GENIE, GENIEAdamW, genie, genie_adamw
from shiftproof.optim.gsam import GSAM
from shiftproof.optim.msvag import MSVAG
from shiftproof.optim.multipass import Landscape, MultiPass
from shiftproof.optim.registry import NO_OPTIMIZER, OPTIMIZERS, LearningRates, OptimizerEntry
from shiftproof.optim.sagm import SAGM
from shiftproof.optim.sam import ASAM, SAM
from shiftproof.optim.signum import Signum
from shiftproof.optim.yogi import Yogi

__all__ = [
    "ASAM",
    "FAD",
    "GAM",
    "GENIE",
    "GSAM",
    "MSVAG",
    "NO_OPTIMIZER",
    "OPTIMIZERS",
    "SAGM",
    "SAM",
    "AdaBelief",
    "AdaHessian",
    "GENIEAdamW",
    "Landscape",
    "LearningRates",
    "MultiPass",
    "OptimizerEntry",
    "Signum",
    "Yogi",
    "genie",
    "genie_adamw",
]
