"""Averages of the weights over the steps of a run, one per kind.

Floating-point tensors of the algorithm's state are averaged, buffers included; integer tensors keep their latest
values. An average holds a bounded number of copies of the weights, all of which the run's checkpoints include.
"""

from shiftproof.training.averaging.build import MOVING, SWADS, Average, build_average, check_trained_alone
from shiftproof.training.averaging.moving import BMA, EMA, SMA, MovingAverage
from shiftproof.training.averaging.released_swad import ReleasedSWAD
from shiftproof.training.averaging.state import State, blend, copy_state
from shiftproof.training.averaging.swad import CONVERGENCE, PATIENCE, SWAD, TOLERANCE, Segment
from shiftproof.training.averaging.wise_ft import COEFFICIENTS, WiSEFT

__all__ = [
    "BMA",
    "COEFFICIENTS",
    "CONVERGENCE",
    "EMA",
    "MOVING",
    "PATIENCE",
    "SMA",
    "SWAD",
    "SWADS",
    "TOLERANCE",
    "Average",
    "MovingAverage",
    "ReleasedSWAD",
    "Segment",
    "State",
    "WiSEFT",
    "blend",
    "build_average",
    "check_trained_alone",
    "copy_state",
]
