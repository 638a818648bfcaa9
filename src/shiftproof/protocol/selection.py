"""Selection rules: pure functions of recorded curves.

Every accuracy is reported with the rule that selected its checkpoint and setting. Of the built-in rules, only `oracle`
looks at the target domain.

Dialects of the protocol differ in the oracle alone: it takes the best checkpoint in ``swad`` and the last one
elsewhere. "Last" means the last evaluation, which in ``domainbed`` need not follow the last update.

A run with SWAD or WiSE-FT adds one evaluation of its averaged weights to the curve, and rules then read only that one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, NamedTuple

from shiftproof.base.hparams import is_finite
from shiftproof.base.registry import Registry
from shiftproof.protocol.dialects import Protocol
from shiftproof.protocol.validation import goodness, mean_measure, training_domain_validation

Record = dict[str, Any]
"""One evaluation of a run.

It has the ``step``, the mean ``loss`` of the steps since the evaluation before, and ``domains``: by domain the scores
of its parts. Every domain has "out", its held-out images, and a target may also have "in", all others. The scores of a
part are ``count``, ``loss`` (mean loss, None if not finite) and ``measures`` by name, None where one is undefined;
in classification also ``accuracy`` and ``per_class`` (accuracies by class, None for absent classes). An evaluation of
averaged weights also has ``averaged``.
"""


@dataclass(frozen=True)
class Curves:
    """What a selection rule knows of a run.

    Attributes:
        metrics: the run's evaluations, in order; at least one. Where weights were averaged, only those of the average.
        targets: the domains that the run left out.
        protocol: the dialect.
        pairs: evaluations of the runs that leave out the target and one other domain, by the name of the other domain;
            only for rules that need them.
        metric: name of the measure that tells which evaluation is better.
    """

    metrics: Sequence[Record]
    targets: Sequence[str]
    protocol: Protocol
    pairs: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    metric: str = "accuracy"

    @property
    def sources(self) -> list[str]:
        """The domains that the run was trained on."""
        return [name for name in self.metrics[0]["domains"] if name not in self.targets]


class Choice(NamedTuple):
    """The evaluation that a rule selects.

    Attributes:
        record: one of the run's evaluations.
        validation: its score: the setting with the highest score is selected, so that of a measure that is better when
            it is small this is the negative. None if the rule has no scores, or its measure is undefined; then the
            finished setting with the lowest number is.
    """

    record: Record
    validation: float | None


@dataclass(frozen=True)
class SelectionRule:
    """A rule that selects a run's evaluation, and by its score a method's setting.

    Attributes:
        choose: selects an evaluation, and depends on nothing but its argument. None if runs that it needs are missing.
        every_step: whether it may select any evaluation. Runs then score the targets at every evaluation; otherwise
            only at those that the built-in rules select.
        needs_pairs: whether it reads runs that leave out the target and one more domain, which are trained for it.
    """

    choose: Callable[[Curves], Choice | None]
    every_step: bool = True
    needs_pairs: bool = False

    @property
    def documented(self) -> object:
        """What its docstring describes, for `Registry.summary`."""
        return self.choose


class RuleError(ValueError):
    """A selection rule of a plug-in raised an error or returned something that is no choice."""


RULES: Registry[SelectionRule] = Registry("selection rule", instances_of=SelectionRule)
"""All selection rules by name: `RULES.register(name, rule)` adds one."""


def select(
    rule: str,
    metrics: Sequence[Record],
    targets: Sequence[str],
    protocol: Protocol,
    pairs: Mapping[str, Sequence[Record]] | None = None,
    metric: str = "accuracy",
) -> dict[str, Any] | None:
    """Select a checkpoint of a run.

    Args:
        rule: one of `RULES`.
        metrics: the run's evaluations, in order; at least one.
        targets: the domains that the run left out.
        protocol: the dialect.
        pairs: evaluations of other runs, as in `Curves`.
        metric: name of the measure that tells which evaluation is better.

    Returns:
        The selected ``step``, its ``validation`` score (None if the rule has none) and its ``measures`` on the in part
        of the target, unweighted means over several targets, None where one is undefined; in classification also
        ``accuracy`` and ``class_mean``, in [0, 1]. None if runs or scores that the rule needs are missing.

    Raises:
        UnknownNameError: the rule is unknown.
        RuleError: a plug-in's rule raised an error or returned something that is no choice.
    """
    curves = Curves(readable_records(metrics), targets, protocol, pairs or {}, metric)
    choose = RULES[rule].choose
    choice = choose(curves) if RULES.place(rule).is_ours else _guarded(rule, choose, curves)
    return None if choice is None else _selected(choice, targets)


def _guarded(rule: str, choose: Callable[[Curves], Choice | None], curves: Curves) -> Choice | None:
    """Return the choice of a plug-in's rule; its errors must not look like a damaged result."""
    try:
        choice = choose(curves)
    except Exception as error:
        raise RuleError(f"selection rule '{rule}' raised {type(error).__name__}: {error}") from error
    if choice is None:
        return None
    if not isinstance(choice, Choice) or not any(choice.record is record for record in curves.metrics):
        raise RuleError(f"selection rule '{rule}' must return a Choice of one of the run's evaluations, not {choice!r}")
    score: Any = choice.validation
    if score is not None:
        if not isinstance(score, Real) or not is_finite(float(score)):
            raise RuleError(f"selection rule '{rule}' must give a finite number as validation score, not {score!r}")
        score = float(score)  # JSON does not have NumPy's numbers
    has_scores = all("in" in choice.record["domains"][target] for target in curves.targets)
    return Choice(choice.record, score) if has_scores else None  # None for a run that was trained without this rule


def training_domain(curves: Curves) -> Choice:
    """Best mean of the measure on held-out inputs of the sources, the earliest on a tie.

    In ``domainbed`` and ``domainbed-head`` those images are augmented, so this validation is noisier.
    """
    metric = curves.metric
    validations = [training_domain_validation(record, curves.targets, metric) for record in curves.metrics]
    return _best(curves.metrics, validations, metric)


def best_by_validation(metrics: Sequence[Record], targets: Sequence[str], metric: str) -> Record:
    """Return the evaluation that `training_domain` chooses, whose model a run keeps."""
    return _best(metrics, [training_domain_validation(record, targets, metric) for record in metrics], metric).record


def selected_steps(
    metrics: Sequence[Record], targets: Sequence[str], protocol: Protocol, metric: str = "accuracy"
) -> set[int]:
    """Return the steps that built-in rules select from a run alone, and the last one evaluated.

    The arguments are those of `select`.
    """
    curves = Curves(readable_records(metrics), targets, protocol, metric=metric)
    alone = [RULES[rule] for rule in BUILT_IN_RULES if not RULES[rule].every_step]
    return {choice.record["step"] for rule in alone if (choice := rule.choose(curves)) is not None}


def readable_records(metrics: Sequence[Record]) -> Sequence[Record]:
    """Return the evaluations that rules read: those of averaged weights, if there are any."""
    return [record for record in metrics if "averaged" in record] or metrics


def leave_one_domain_out(curves: Curves) -> Choice | None:
    """The step at which runs without the target and one more domain are best on that domain.

    The validation score of a step is the mean over the other domains of each one's measure on its whole in part, in
    the run that left out that domain and the target. The rule takes the earliest of the best steps that all runs
    have, and reports the run that left out only the target at that step. All dialects agree on it.

    Returns:
        None if a run is missing or did not score its targets at every evaluation.
    """
    others, targets = curves.sources, curves.targets
    if len(targets) != 1 or not all(name in curves.pairs for name in others):
        return None
    pairs = [(name, _by_moment(curves.pairs[name])) for name in others]
    own = _by_moment(curves.metrics)
    validations: dict[int | str, float | None] = {}
    for moment, record in own.items():
        if all(moment in pair for _, pair in pairs):
            scores = [record["domains"][targets[0]], *(pair[moment]["domains"][name] for name, pair in pairs)]
            if not all("in" in score for score in scores):
                return None
            validations[moment] = mean_measure([score["in"] for score in scores[1:]], curves.metric)
    if not validations:
        return None
    return _best([own[moment] for moment in validations], list(validations.values()), curves.metric)


def _by_moment(metrics: Sequence[Record]) -> dict[int | str, Record]:
    """Return evaluations by a key that matches them between runs: the step, or "averaged" for averaged weights."""
    return {"averaged" if "averaged" in record else record["step"]: record for record in metrics}


def oracle(curves: Curves) -> Choice:
    """Held-out images of the target choose the setting, and in ``swad`` the step too.

    Elsewhere the checkpoint is the last, so that the target chooses only among settings. In ``swad`` it is the best
    one, the earliest on a tie, so that the target is consulted at every evaluation.
    """
    validations = [
        mean_measure([record["domains"][target]["out"] for target in curves.targets], curves.metric)
        for record in curves.metrics
    ]
    if curves.protocol.oracle == "best":
        return _best(curves.metrics, validations, curves.metric)
    return _best(curves.metrics[-1:], validations[-1:], curves.metric)


def last(curves: Curves) -> Choice:
    """The last checkpoint; without a validation score, this rule cannot choose among settings."""
    return Choice(curves.metrics[-1], None)


RULES.register("training_domain", SelectionRule(training_domain, every_step=False))
RULES.register("leave_one_domain_out", SelectionRule(leave_one_domain_out, needs_pairs=True))
RULES.register("oracle", SelectionRule(oracle, every_step=False))
RULES.register("last", SelectionRule(last, every_step=False))
BUILT_IN_RULES = tuple(RULES)
"""The rules that every run is scored by."""


def _selected(choice: Choice, targets: Sequence[str]) -> dict[str, Any]:
    scores = [choice.record["domains"][target]["in"] for target in targets]
    selected: dict[str, Any] = {"step": choice.record["step"], "validation": choice.validation}
    if all("per_class" in score for score in scores):
        class_means = [_mean([c for c in score["per_class"] if c is not None]) for score in scores]
        selected |= {"accuracy": _mean([score["accuracy"] for score in scores]), "class_mean": _mean(class_means)}
    names = scores[0].get("measures", {"accuracy": None})
    return {**selected, "measures": {name: mean_measure(scores, name) for name in names}}


def _best(records: Sequence[Record], validations: Sequence[float | None], metric: str) -> Choice:
    """Choose the record with the best validation, the earliest on a tie, or the last if it is undefined in all."""
    scores = [goodness(value, metric) for value in validations]
    best = max(scores)
    return Choice(records[scores.index(best)], best) if math.isfinite(best) else Choice(records[-1], None)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
