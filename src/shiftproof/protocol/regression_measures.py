"""Measures of predicted numbers."""

from __future__ import annotations

import numpy as np

from shiftproof.base.extras import require
from shiftproof.protocol.predictions import Predictions


def rmse(predictions: Predictions) -> float:
    """Root of the mean squared error, in the targets' unit."""
    return _sklearns("root_mean_squared_error", predictions)


def mae(predictions: Predictions) -> float:
    """Mean absolute error, in the targets' unit."""
    return _sklearns("mean_absolute_error", predictions)


def r2(predictions: Predictions) -> float | None:
    """Coefficient of determination: 1 minus the squared errors over those of the targets' own mean."""
    return _sklearns("r2_score", predictions) if np.ptp(predictions.targets) > 0 else None


def pearson(predictions: Predictions) -> float | None:
    """Pearson's correlation of outputs and targets."""
    if np.ptp(predictions.targets) == 0 or np.ptp(predictions.outputs) == 0:
        return None
    return float(np.corrcoef(predictions.outputs, predictions.targets)[0, 1])


def _sklearns(name: str, predictions: Predictions) -> float:
    metrics = require("sklearn.metrics", "bench", "scikit-learn")  # here, because importing it takes a second or two
    return float(getattr(metrics, name)(predictions.targets, predictions.outputs))
