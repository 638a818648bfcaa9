"""Callbacks of the training loop, one per purpose."""

from shiftproof.training.callbacks.averaging import AveragedWeights, FlatAverage, Interpolation, keepers
from shiftproof.training.callbacks.checkpoints import Checkpoints
from shiftproof.training.callbacks.evaluation import ChosenEvaluation, Evaluation, TrainedScores
from shiftproof.training.callbacks.metrics_file import MetricsFile
from shiftproof.training.callbacks.predictions import Predictions
from shiftproof.training.callbacks.reports import OnProgress, OnRecord, ProgressBar, ReportEvaluations, ReportSteps
from shiftproof.training.callbacks.result_file import ResultFile
from shiftproof.training.callbacks.runs import EndStopped, Runs
from shiftproof.training.callbacks.selection import Selection
from shiftproof.training.callbacks.trackers import Trackers

__all__ = [
    "AveragedWeights",
    "Checkpoints",
    "ChosenEvaluation",
    "EndStopped",
    "Evaluation",
    "FlatAverage",
    "Interpolation",
    "MetricsFile",
    "OnProgress",
    "OnRecord",
    "Predictions",
    "ProgressBar",
    "ReportEvaluations",
    "ReportSteps",
    "ResultFile",
    "Runs",
    "Selection",
    "Trackers",
    "TrainedScores",
    "keepers",
]
