"""The papers' figures: each trains and stores the runs that it needs, then draws them."""

from shiftproof.figures.agreement import measure_agreement, write_agreement
from shiftproof.figures.balance import figure_balance
from shiftproof.figures.diagnosis import DIAGNOSES, diagnose
from shiftproof.figures.embedding import figure_embedding
from shiftproof.figures.landscape import figure_landscape
from shiftproof.figures.osgr import figure_osgr
from shiftproof.figures.sensitivity import figure_sensitivity
from shiftproof.figures.traces import DIAGNOSTICS_FOLDER

__all__ = [
    "DIAGNOSES",
    "DIAGNOSTICS_FOLDER",
    "diagnose",
    "figure_balance",
    "figure_embedding",
    "figure_landscape",
    "figure_osgr",
    "figure_sensitivity",
    "measure_agreement",
    "write_agreement",
]
