"""What a prediction that reads no input would score: the shares of the classes or labels, or the mean of a quantity."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftproof.data import DomainDataset, Task, split_domain
from shiftproof.protocol import score
from shiftproof.training.prepared import training_targets
from shiftproof.training.spec import RunSpec


def constant_scores(spec: RunSpec, dataset: DomainDataset) -> dict[str, dict[str, float | None]]:
    """Return every measure of a constant prediction on the in part of each target, by target.

    It predicts the shares of the classes or labels among the training rows of the sources, or their mean.

    Args:
        spec: the run's spec.
        dataset: the data set that it names.
    """
    outputs = _constant(dataset.task, training_targets(spec, dataset), len(dataset.classes))
    scores = {}
    for name in spec.targets:
        place = dataset.domain_index(name)
        domain = dataset.domains[place]
        targets = domain.targets[split_domain(domain, spec.split, spec.trial_seed, place).in_]
        scores[name] = score(dataset.task, np.broadcast_to(outputs, (len(targets), *outputs.shape)), targets)
    return scores


def _constant(task: Task, targets: NDArray[Any], classes: int) -> NDArray[np.float64]:
    if task == "regression":
        return np.asarray(targets.mean(dtype=np.float64))
    if task == "multilabel":
        share = (targets.sum(axis=0) + 0.5) / (len(targets) + 1)  # no label is certain
        return np.asarray(np.log(share / (1 - share)))
    counts = np.bincount(targets, minlength=classes).astype(np.float64)
    return np.asarray(np.log(np.maximum(counts, 0.5) / counts.sum()))
