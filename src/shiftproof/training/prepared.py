"""A data set as a run's network takes it: columns of vectors and the unit of a quantity are fitted on training rows."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shiftproof.data import Domain, DomainDataset, Preparation, number_columns, split_domain
from shiftproof.models import Quantity
from shiftproof.training.spec import RunSpec


@dataclass(frozen=True)
class PreparedDataset(DomainDataset):
    """A data set whose vectors are prepared.

    Attributes:
        preparation: what its vectors were prepared with; None if they were left as they are.
        quantity: mean and standard deviation of a regression's targets on the training rows; None for other tasks.
    """

    preparation: Preparation | None = None
    quantity: Quantity | None = None


def balanced_weights(spec: RunSpec, dataset: DomainDataset) -> Tensor:
    """Return weights of the classes that make each weigh alike over the training rows of all sources together.

    They are n / (classes * n of the class), as scikit-learn's "balanced"; a class without rows weighs 0.

    Args:
        spec: the run's spec, which determines the training rows.
        dataset: the data set.

    Returns:
        float32, shape (classes,).
    """
    known = training_targets(spec, dataset)
    counts = np.bincount(known, minlength=len(dataset.classes))
    present = np.count_nonzero(counts)
    weights = np.where(counts > 0, len(known) / (present * np.maximum(counts, 1)), 0.0)
    return torch.from_numpy(weights.astype(np.float32))


def training_targets(spec: RunSpec, dataset: DomainDataset) -> NDArray[Any]:
    """Return the targets of a run's training rows, of all sources together."""
    return np.concatenate([domain.targets[rows] for domain, rows in _training_rows(spec, dataset)])


def training_rows(spec: RunSpec, domain: Domain, position: int) -> NDArray[np.int64]:
    """Return the indices of the rows of a source domain that a run trains on.

    They are its in part, or all rows in a second pass on all data.

    Args:
        spec: the run's spec.
        domain: the domain.
        position: its position in the data set.
    """
    return np.arange(len(domain)) if spec.all_data else split_domain(domain, spec.split, spec.trial_seed, position).in_


def _training_rows(spec: RunSpec, dataset: DomainDataset) -> list[tuple[Domain, NDArray[np.int64]]]:
    """Return the source domains, each with the indices of its training rows."""
    return [
        (domain, training_rows(spec, domain, i))
        for i, domain in enumerate(dataset.domains)
        if domain.name not in spec.targets
    ]


def prepared(spec: RunSpec, dataset: DomainDataset) -> DomainDataset:
    """Prepare a data set for a run; one that is prepared, or needs no preparation, is returned as it is.

    Whatever is fitted is fitted on the training rows of the source domains: nothing of a target, and no held-out row,
    has a say in it, unless a second pass trains on all rows.

    Args:
        spec: the run's spec, which determines the training rows.
        dataset: the data set.
    """
    vectors = dataset.kind == "vectors" and len(dataset.input_shape) == 1
    if isinstance(dataset, PreparedDataset) or not (vectors or dataset.task == "regression"):
        return dataset
    domains, preparation, quantity = dataset.domains, None, None
    if vectors:
        columns = dataset.columns or number_columns(dataset.input_shape[0])
        if dataset.class_vectors is None:
            preparation = Preparation.fit(
                columns, np.concatenate([domain.inputs[rows] for domain, rows in _training_rows(spec, dataset)])
            )
        else:  # which are compared with the inputs as they are
            preparation = Preparation.unchanged(columns)
        domains = tuple(replace(domain, inputs=preparation(domain.inputs)) for domain in domains)
    if dataset.task == "regression":
        targets = training_targets(spec, dataset).astype(np.float64)
        quantity = Quantity(float(targets.mean()), float(targets.std()) or 1.0)
    known = {field.name: getattr(dataset, field.name) for field in fields(DomainDataset)}
    changed = {"domains": domains, "columns": None, "preparation": preparation, "quantity": quantity}
    return PreparedDataset(**{**known, **changed})
