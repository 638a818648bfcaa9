"""Selection rules: pure functions of recorded curves.

Which rule chose a checkpoint or a setting is a term of every accuracy: only `oracle` looks at the target domain.

Dialects of the protocol differ in the oracle alone: it takes the last checkpoint, in ``swad`` the best. "Last" is the
last evaluation, which in ``domainbed`` need not follow the last update.

A run with SWAD has one evaluation of its averaged weights beside the curve; rules then read that one alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shiftproof.base.registry import UnknownNameError
from shiftproof.protocol.dialects import Protocol
from shiftproof.protocol.measures import training_domain_validation

Record = dict[str, Any]
"""One evaluation of a run: step, loss and the scores of its domains."""

Pairs = Mapping[str, Sequence[Record]]
"""Evaluations of the runs that leave out the target and one other domain, by the other's name."""

RULES = ("training_domain", "leave_one_domain_out", "oracle", "last")


def select(
    rule: str, metrics: Sequence[Record], targets: Sequence[str], protocol: Protocol, pairs: Pairs | None = None
) -> dict[str, Any] | None:
    """Select a checkpoint of a run.

    Args:
        rule: one of `RULES`.
        metrics: the run's evaluations, in order; at least one.
        targets: the domains that it left out.
        protocol: the dialect.
        pairs: what leave-one-domain-out validation reads besides.

    Returns:
        Its ``step``, the ``validation`` that chose it (None for a rule without) and, on the in part of the target,
        ``accuracy`` and ``class_mean``, in [0, 1]; unweighted means over several targets. None where the runs that the
        rule needs are missing.

    Raises:
        UnknownNameError: there is no such rule.
    """
    metrics = [record for record in metrics if "averaged" in record] or metrics
    match rule:
        case "training_domain":
            return training_domain(metrics, targets)
        case "leave_one_domain_out":
            return leave_one_domain_out(metrics, targets, pairs or {})
        case "oracle":
            return oracle(metrics, targets, protocol)
        case "last":
            return last(metrics, targets)
    raise UnknownNameError("selection rule", rule, list(RULES))


def training_domain(metrics: Sequence[Record], targets: Sequence[str]) -> dict[str, Any]:
    """Select the checkpoint with the highest mean accuracy on held-out images of the sources, the earliest on a tie.

    In ``domainbed`` and ``domainbed-head`` those images are augmented, so this validation is noisier.
    """
    validations = [training_domain_validation(record, targets) for record in metrics]
    best = max(validations)
    return _selected(metrics[validations.index(best)], best, targets)


def leave_one_domain_out(metrics: Sequence[Record], targets: Sequence[str], pairs: Pairs) -> dict[str, Any] | None:
    """Select the step at which runs without the target and one more domain are best on that domain.

    The validation of a step is the mean over all other domains of the accuracy on the whole in part of each, in the
    run that left out it and the target. The earliest of the best steps that all runs have is taken, and the run that
    left out the target alone is reported there. Equal in all dialects.

    Returns:
        As `select`; None if a run is missing, or was not told to score its targets at every evaluation.
    """
    others = [name for name in metrics[0]["domains"] if name not in targets]
    if len(targets) != 1 or not all(name in pairs for name in others):
        return None
    curves = [(name, _curve(pairs[name])) for name in others]
    validations = {}
    for moment, record in _curve(metrics).items():
        if all(moment in curve for _, curve in curves):
            scores = [record["domains"][targets[0]], *(curve[moment]["domains"][name] for name, curve in curves)]
            if not all("in" in score for score in scores):
                return None
            validations[moment] = _mean([score["in"]["accuracy"] for score in scores[1:]])
    if not validations:
        return None
    best = max(validations, key=lambda moment: validations[moment])
    return _selected(_curve(metrics)[best], validations[best], targets)


def _curve(metrics: Sequence[Record]) -> dict[int | str, Record]:
    """Return evaluations by what they have in common between runs: the step, or that their weights are averaged."""
    return {"averaged" if "averaged" in record else record["step"]: record for record in metrics}


def oracle(metrics: Sequence[Record], targets: Sequence[str], protocol: Protocol) -> dict[str, Any]:
    """Select by held-out images of the target.

    The last checkpoint is taken, so that only settings are chosen by the target. In ``swad`` it is the best
    checkpoint, the earliest on a tie: the target is asked as often as there are evaluations.
    """
    validations = [_mean([record["domains"][t]["out"]["accuracy"] for t in targets]) for record in metrics]
    chosen = validations.index(max(validations)) if protocol.oracle == "best" else len(metrics) - 1
    return _selected(metrics[chosen], validations[chosen], targets)


def last(metrics: Sequence[Record], targets: Sequence[str]) -> dict[str, Any]:
    """Take the last checkpoint; nothing is validated, so it chooses among no settings."""
    return _selected(metrics[-1], None, targets)


def _selected(record: Record, validation: float | None, targets: Sequence[str]) -> dict[str, Any]:
    scores = [record["domains"][target]["in"] for target in targets]
    class_means = [_mean([c for c in score["per_class"] if c is not None]) for score in scores]
    return {
        "step": record["step"],
        "validation": validation,
        "accuracy": _mean([score["accuracy"] for score in scores]),
        "class_mean": _mean(class_means),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
