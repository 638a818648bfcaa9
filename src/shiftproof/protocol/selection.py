"""Selection rules: pure functions of recorded curves.

Every accuracy is reported with the rule that selected its checkpoint and setting: only `oracle` looks at the target
domain.

Dialects of the protocol differ in the oracle alone: it takes the best checkpoint in ``swad`` and the last one
elsewhere. "Last" means the last evaluation, which in ``domainbed`` need not follow the last update.

A run with SWAD adds one evaluation of its averaged weights to the curve, and rules then read only that one.
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
"""Evaluations of the runs that leave out the target and one other domain, by the name of the other domain."""

RULES = ("training_domain", "leave_one_domain_out", "oracle", "last")


def select(
    rule: str, metrics: Sequence[Record], targets: Sequence[str], protocol: Protocol, pairs: Pairs | None = None
) -> dict[str, Any] | None:
    """Select a checkpoint of a run.

    Args:
        rule: one of `RULES`.
        metrics: the run's evaluations, in order; at least one.
        targets: the domains that the run left out.
        protocol: the dialect.
        pairs: evaluations of other runs, which only leave-one-domain-out validation reads.

    Returns:
        The selected ``step``, its ``validation`` score (None if the rule has none) and its ``accuracy`` and
        ``class_mean`` on the in part of the target, in [0, 1]; unweighted means over several targets. None if runs
        that the rule needs are missing.

    Raises:
        UnknownNameError: the rule is unknown.
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

    The validation score of a step is the mean over the other domains of each one's accuracy on its whole in part, in
    the run that left out that domain and the target. The rule takes the earliest of the best steps that all runs
    have, and reports the run that left out only the target at that step. All dialects agree on it.

    Returns:
        As `select`; None if a run is missing or did not score its targets at every evaluation.
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
    """Return evaluations by a key that matches them between runs: the step, or "averaged" for averaged weights."""
    return {"averaged" if "averaged" in record else record["step"]: record for record in metrics}


def oracle(metrics: Sequence[Record], targets: Sequence[str], protocol: Protocol) -> dict[str, Any]:
    """Select by held-out images of the target.

    The checkpoint is the last, so that the target chooses only among settings. In ``swad`` it is the best one, the
    earliest on a tie, so that the target is consulted at every evaluation.
    """
    validations = [_mean([record["domains"][t]["out"]["accuracy"] for t in targets]) for record in metrics]
    chosen = validations.index(max(validations)) if protocol.oracle == "best" else len(metrics) - 1
    return _selected(metrics[chosen], validations[chosen], targets)


def last(metrics: Sequence[Record], targets: Sequence[str]) -> dict[str, Any]:
    """Take the last checkpoint; without a validation score, this rule cannot choose among settings."""
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
