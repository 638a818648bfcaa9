"""A data set as a run's network takes it: columns of vectors and the unit of a quantity are fitted on training rows."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from shiftproof.data import DomainDataset, Preparation, number_columns, split_domain
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


def prepared(spec: RunSpec, dataset: DomainDataset) -> DomainDataset:
    """Prepare a data set for a run; one that is prepared, or needs no preparation, is returned as it is.

    Whatever is fitted is fitted on the training parts of the source domains: nothing of a target, and no held-out row,
    has a say in it.

    Args:
        spec: the run's spec, which determines the training rows.
        dataset: the data set.
    """
    vectors = dataset.kind == "vectors" and len(dataset.input_shape) == 1
    if isinstance(dataset, PreparedDataset) or not (vectors or dataset.task == "regression"):
        return dataset
    training = [
        (domain, split_domain(domain, spec.split, spec.trial_seed, i).in_)
        for i, domain in enumerate(dataset.domains)
        if domain.name not in spec.targets
    ]
    domains, preparation, quantity = dataset.domains, None, None
    if vectors:
        columns = dataset.columns or number_columns(dataset.input_shape[0])
        preparation = Preparation.fit(columns, np.concatenate([domain.inputs[rows] for domain, rows in training]))
        domains = tuple(replace(domain, inputs=preparation(domain.inputs)) for domain in domains)
    if dataset.task == "regression":
        targets = np.concatenate([domain.targets[rows] for domain, rows in training]).astype(np.float64)
        quantity = Quantity(float(targets.mean()), float(targets.std()) or 1.0)
    known = {field.name: getattr(dataset, field.name) for field in fields(DomainDataset)}
    changed = {"domains": domains, "columns": None, "preparation": preparation, "quantity": quantity}
    return PreparedDataset(**{**known, **changed})
