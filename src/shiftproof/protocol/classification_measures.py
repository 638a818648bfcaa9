"""Measures of classes, of which a row has one, and of labels, of which it has any number.

They are written in NumPy on what `Predictions` counts once: scikit-learn checks and sorts anew for every measure and
class, which takes five times as long on small domains. The tests compare them with scikit-learn's.
"""

from __future__ import annotations

import numpy as np

from shiftproof.protocol.predictions import Predictions, ThresholdCounts

BINS = 15
"""Bins of the expected calibration error, as in the tables of Guo et al."""


def accuracy(predictions: Predictions) -> float:
    """Share of rows whose top class is right; of labels, mean over them of the share right at probability 0.5."""
    return float((predictions.predicted == predictions.targets).mean())


def balanced_accuracy(predictions: Predictions) -> float | None:
    """Mean recall of the classes that occur; of labels, mean over those with both values of each one's recalls."""
    tp, fp, fn, tn = predictions.counts
    if predictions.task == "classification":
        occur = tp + fn > 0
        return float((tp[occur] / (tp + fn)[occur]).mean())
    both = (tp + fn > 0) & (tn + fp > 0)
    if not both.any():
        return None
    return float((tp[both] / (tp + fn)[both] + tn[both] / (tn + fp)[both]).mean() / 2)


def macro_f1(predictions: Predictions) -> float | None:
    """Mean F1 of the classes that occur or are predicted; of labels, of those that occur."""
    tp, fp, fn, _ = predictions.counts
    counted = tp + fn > 0
    if predictions.task == "classification":
        counted |= fp > 0  # as in scikit-learn
    if not counted.any():
        return None
    return float((2 * tp[counted] / (2 * tp + fp + fn)[counted]).mean())


def worst_class(predictions: Predictions) -> float | None:
    """Least recall of the classes that occur; of labels, least F1 of those that occur."""
    tp, fp, fn, _ = predictions.counts
    occur = tp + fn > 0
    if predictions.task == "classification":
        return float((tp[occur] / (tp + fn)[occur]).min())
    if not occur.any():
        return None
    return float((2 * tp[occur] / (2 * tp + fp + fn)[occur]).min())


def auroc(predictions: Predictions) -> float | None:
    """Area under the ROC curve: of class 1 of two, else mean over classes against the others, or over labels."""
    areas = [_area(counts, len(predictions)) for counts in predictions.threshold_counts]
    return float(np.mean(areas)) if areas else None


def _area(counts: ThresholdCounts, rows: int) -> float:
    """Return the share of pairs of a row that has the label and one that lacks it in which it scores higher.

    A pair that scores the same counts half, so pairs are counted twice. Rows that have the label count n * n among
    themselves, whatever they score.
    """
    n = len(counts.tp)
    pairs = 2 * n * (rows - n)
    wrong = (counts.reached + counts.exceeded).sum() - n * n
    return float((pairs - wrong) / pairs)


def average_precision(predictions: Predictions) -> float | None:
    """Precision averaged over recall: of class 1 of two, else mean over classes against the others, or over labels."""
    averages = [(tp / reached).mean() for tp, reached, _ in predictions.threshold_counts]
    return float(np.mean(averages)) if averages else None


def nll(predictions: Predictions) -> float:
    """Mean negative log likelihood in nats; of labels, mean binary cross-entropy over rows and labels."""
    if predictions.task == "classification":
        return float(-predictions.log_probabilities[np.arange(len(predictions)), predictions.targets].mean())
    signed = np.where(predictions.targets == 1, predictions.outputs, -predictions.outputs)
    return float(np.logaddexp(0.0, -signed).mean())


def ece(predictions: Predictions) -> float:
    """Expected calibration error of the top class, or of the labels' probabilities, in 15 bins of equal width.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3: the sum over bins m of
    |B_m| / n * |acc(B_m) - conf(B_m)|. Bins hold their upper ends. For labels, B_m has the label probabilities in bin
    m, conf is their mean and acc the share of labels that are there.
    """
    if predictions.task == "classification":
        confidence = np.exp(predictions.log_probabilities.max(axis=1))
        right = predictions.predicted == predictions.targets
    else:
        confidence, right = predictions.probabilities.ravel(), predictions.targets.ravel()
    bins = np.searchsorted(np.linspace(0.0, 1.0, BINS + 1)[1:-1], confidence)
    return float(np.abs(np.bincount(bins, right - confidence)).sum() / len(confidence))
