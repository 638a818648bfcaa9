"""Selection rules: pure functions of a run's recorded curve, in the `shiftproof` dialect.

Which rule chose a checkpoint or a setting is a term of every accuracy: only `oracle` looks at the target domain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from shiftproof.training.evaluation import training_domain_validation

Record = dict[str, Any]
"""One evaluation of a run: step, loss and the scores of its domains."""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _selected(record: Record, validation: float | None, targets: Sequence[str]) -> dict[str, Any]:
    """Report a checkpoint: accuracies on the in part of the target, unweighted means over several targets."""
    scores = [record["domains"][target]["in"] for target in targets]
    class_means = [_mean([c for c in score["per_class"] if c is not None]) for score in scores]
    return {
        "step": record["step"],
        "validation": validation,
        "accuracy": _mean([score["accuracy"] for score in scores]),
        "class_mean": _mean(class_means),
    }


def training_domain(metrics: Sequence[Record], targets: Sequence[str]) -> dict[str, Any]:
    """Select the checkpoint with the highest mean accuracy on held-out images of the sources, the earliest on a tie."""
    validations = [training_domain_validation(record, targets) for record in metrics]
    best = max(validations)
    return _selected(metrics[validations.index(best)], best, targets)


def oracle(metrics: Sequence[Record], targets: Sequence[str]) -> dict[str, Any]:
    """Take the last checkpoint; its validation is the accuracy on held-out images of the target."""
    last = metrics[-1]
    return _selected(last, _mean([last["domains"][t]["out"]["accuracy"] for t in targets]), targets)


def last(metrics: Sequence[Record], targets: Sequence[str]) -> dict[str, Any]:
    """Take the last checkpoint; nothing is validated, so it chooses among no settings."""
    return _selected(metrics[-1], None, targets)


RULES: dict[str, Callable[[Sequence[Record], Sequence[str]], dict[str, Any]]] = {
    "training_domain": training_domain,
    "oracle": oracle,
    "last": last,
}
