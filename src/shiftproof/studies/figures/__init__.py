"""The figures: each trains what it needs, keeps it, and draws it."""

from shiftproof.studies.figures.agreement import measure_agreement, write_agreement
from shiftproof.studies.figures.balance import figure_balance
from shiftproof.studies.figures.diagnosis import DIAGNOSES, diagnose
from shiftproof.studies.figures.embedding import figure_embedding
from shiftproof.studies.figures.landscape import figure_landscape
from shiftproof.studies.figures.osgr import figure_osgr
from shiftproof.studies.figures.sensitivity import figure_sensitivity
from shiftproof.studies.figures.traces import DIAGNOSTICS_FOLDER

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
