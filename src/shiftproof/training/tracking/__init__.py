"""Experiment trackers: TensorBoard, MLflow and W&B behind one interface."""

from shiftproof.training.tracking.registry import TRACKERS, TrackerEntry, check_trackers
from shiftproof.training.tracking.track import OpenTrackers, TrackerWarning, Tracking
from shiftproof.training.tracking.tracker import TrackedRun, Tracker

__all__ = [
    "TRACKERS",
    "OpenTrackers",
    "TrackedRun",
    "Tracker",
    "TrackerEntry",
    "TrackerWarning",
    "Tracking",
    "check_trackers",
]
