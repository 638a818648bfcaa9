"""Validation scores computed from one evaluation of a run."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any


def training_domain_validation(record: dict[str, Any], targets: Collection[str]) -> float:
    """Return the unweighted mean accuracy on the held-out parts of the source domains.

    Args:
        record: one evaluation from a run's metrics.
        targets: the domains that are not sources.
    """
    accuracies: list[float] = [
        parts["out"]["accuracy"] for name, parts in record["domains"].items() if name not in targets
    ]
    return sum(accuracies) / len(accuracies)


def validation_loss(record: dict[str, Any], targets: Collection[str]) -> float:
    """Return the unweighted mean loss on the held-out parts of the source domains; infinite if one is not finite."""
    losses = [parts["out"]["loss"] for name, parts in record["domains"].items() if name not in targets]
    return math.inf if None in losses else math.fsum(losses) / len(losses)
