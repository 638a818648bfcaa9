"""The sentences below a table: told apart or not, by how much, and how many trials would tell a point."""

import dataclasses
import re

import numpy as np
import pytest
from scipy import stats

from made_up import results_of
from shiftproof.studies import Results, Study, make_plan
from shiftproof.tables import as_text, build_tables, finding, marks, verdicts
from shiftproof.tables.verdicts import MOST_TRIALS, trials_to_tell


def _results(values, metric=None):
    """Results of a study whose accuracy, or other measure, on its only target is given by optimizer and trial."""
    study = Study(optimizers=("sgd", "adam"), targets=("0",), trials=len(values[0]))
    plan = make_plan(study)

    def scores(spec):
        value = values[study.optimizers.index(spec.optimizer)][spec.trial_seed]
        return 0.9, value, value

    def metrics(spec):
        _, value, _ = scores(spec)
        part = {"count": 10, "accuracy": 0.5, "per_class": [0.5] * 10, "measures": {"accuracy": 0.5, metric: value}}
        domains = {name: {"in": part, "out": part} for name in plan.grids[0].domains}
        return [{"step": spec.steps, "loss": 1.0, "domains": domains}]

    return Results(plan, results_of(plan, scores, metrics=metric and metrics)._found, metric)


@pytest.mark.parametrize(("difference", "spread"), [(0.01, 0.005), (0.01, 0.02), (0.02, 0.03), (0.01, 0.1)])
def test_as_many_trials_have_the_power(difference, spread):
    """Against the noncentral t distribution, which the formula approximates."""

    def power(n):
        limit = stats.t.ppf(0.975, n - 1)
        return stats.nct.sf(limit, n - 1, difference * np.sqrt(n) / spread)

    n = trials_to_tell(difference, spread)
    assert power(n) > 0.79
    assert power(n - 2) < 0.8


def test_a_spread_beyond_reach_is_no_number():
    assert trials_to_tell(0.01, 1.0) is None
    assert trials_to_tell(0.01, 0.1) < MOST_TRIALS


def test_methods_that_differ_are_told_apart_with_their_interval():
    first, second = [0.70, 0.72, 0.71, 0.73], [0.75, 0.78, 0.76, 0.77]
    [sentence] = verdicts(build_tables(_results([first, second]))[0])
    low, high = stats.ttest_rel(second, first).confidence_interval()
    gain = 100 * (np.mean(second) - np.mean(first))
    assert sentence.startswith(
        f"erm + adam and erm + sgd are told apart: the first is {gain:.1f} points better, between {100 * low:.1f} and "
        f"{100 * high:.1f}; about "
    )


def test_methods_that_do_not_differ_are_bounded_on_both_sides():
    first, second = [0.70, 0.74, 0.71, 0.73], [0.73, 0.72, 0.74, 0.70]
    [sentence] = verdicts(build_tables(_results([first, second]))[0])
    low, high = stats.ttest_rel(second, first).confidence_interval()
    assert low < 0 < high
    spread = np.std(np.subtract(second, first), ddof=1)
    assert sentence == (
        f"erm + adam and erm + sgd are not told apart: the first is at most {100 * high:.1f} points better and "
        f"{-100 * low:.1f} worse; about {trials_to_tell(0.01, spread)} trials would tell a difference of 1 point."
    )
    assert sentence in as_text(_results([first, second]))


def test_where_less_is_better_the_lower_method_is_the_better_one():
    first, second = [20.0, 22.0, 21.0, 23.0], [15.0, 18.0, 16.0, 17.0]
    [table] = build_tables(_results([first, second], metric="nll"))
    [sentence] = verdicts(table)
    low, high = stats.ttest_rel(first, second).confidence_interval()
    assert sentence.startswith(
        f"erm + adam and erm + sgd are told apart: the first is 5.00 nll better, between {low:.2f} and {high:.2f}; "
    )
    [sentence] = verdicts(build_tables(_results([second, first], metric="nll"))[0])
    assert f"the first is 5.00 nll worse, between {low:.2f} and {high:.2f}; " in sentence
    first, second = [0.70, 0.74, 0.71, 0.73], [0.73, 0.72, 0.74, 0.71]  # the second is greater by half a point
    [sentence] = verdicts(build_tables(_results([first, second], metric="ece"))[0])
    low, high = stats.ttest_rel(first, second).confidence_interval()
    assert (
        f"not told apart: the first is at most {100 * high:.1f} points better and {-100 * low:.1f} worse; " in sentence
    )


def test_one_trial_and_equal_trials_tell_nothing():
    [sentence] = verdicts(build_tables(_results([[0.7], [0.8]]))[0])
    assert sentence == "erm + adam and erm + sgd are compared in one trial, which tells nothing."
    [sentence] = verdicts(build_tables(_results([[0.7, 0.8], [0.7, 0.8]]))[0])
    assert sentence == "erm + adam and erm + sgd are the same in every trial."
    for first, second, side in (([0.7, 0.8], [0.725, 0.825], "better"), ([0.725, 0.825], [0.7, 0.8], "worse")):
        [sentence] = verdicts(build_tables(_results([first, second]))[0])
        assert sentence == (
            f"erm + adam and erm + sgd differ by as much in every trial, the first 2.5 points {side}: without a spread "
            "there is no interval."
        )


def test_trials_that_the_baseline_lacks_compare_nothing():
    """Of three trials the baseline has one: no sentence may say what every trial shows."""
    results = _results([[0.7, 0.7, 0.7], [0.8, 0.9, 0.8]])
    found = {
        spec.name: results.result(spec)
        for spec in results.plan.runs
        if spec.optimizer == "adam" or spec.trial_seed == 0
    }
    [sentence] = verdicts(build_tables(Results(results.plan, found))[0])
    assert sentence == "erm + adam and erm + sgd are compared in one trial, which tells nothing."


def test_a_method_without_a_complete_trial_is_not_compared():
    results = _results([[0.7, 0.7], [0.8, 0.9]])
    sgd = {spec.name: results.result(spec) for spec in results.plan.runs if spec.optimizer == "sgd"}
    [sentence] = verdicts(build_tables(Results(results.plan, sgd))[0])
    assert sentence == "erm + adam and erm + sgd: not compared yet; no trial of both is complete."


def test_the_largest_class_stands_below_and_what_is_not_above_it_is_named():
    results = _results([[0.30, 0.31], [0.50, 0.52]])
    for result in results._found.values():
        result["constant"] = {"0": {"accuracy": 0.4}}
    [table] = build_tables(results)
    assert table.constant["0"].mean == table.constant["mean"].mean == pytest.approx(0.4)
    assert [str(method) for method in table.not_above_constant] == ["erm + sgd"]
    lines = as_text(results).splitlines()
    assert any(line.startswith("largest class") and line.split()[2:5] == ["40.0", "±", "0.0"] for line in lines)
    assert "Not better than largest class, predicted without reading an input: erm + sgd." in lines


@pytest.mark.parametrize(
    ("task", "metric", "name"),
    [
        ("classification", "worst_class", "largest class"),
        ("classification", "auroc", "class shares"),
        ("classification", "nll", "class shares"),
        ("multilabel", "accuracy", "label shares"),
        ("multilabel", "average_precision", "label shares"),
        ("regression", "r2", "mean of the sources"),
    ],
)
def test_the_last_row_is_called_what_it_predicts(task, metric, name):
    plan = make_plan(Study(optimizers=("sgd", "adam"), targets=("0",), trials=1))
    [grid] = plan
    runs = tuple(dataclasses.replace(spec, task=task) for spec in grid.runs)
    plan = dataclasses.replace(plan, grids=(dataclasses.replace(grid, runs=runs),))
    part = {"count": 10, "measures": {metric: 0.5}}
    domains = {domain: {"in": part, "out": part} for domain in grid.domains}
    made = results_of(plan, None, metrics=lambda spec: [{"step": spec.steps, "loss": 1.0, "domains": domains}])
    for result in made._found.values():
        result["constant"] = {"0": {metric: 0.25}}
    lines = as_text(Results(plan, made._found, metric)).splitlines()
    assert [line for line in lines if re.match(rf"{name}  +0?\.?25", line)]


def test_one_run_without_it_leaves_the_largest_class_out():
    results = _results([[0.30, 0.31], [0.50, 0.52]])
    [table] = build_tables(results)
    assert table.constant == {}
    assert dataclasses.replace(table).not_above_constant == []


def _finding(values, metric=None):
    return finding(build_tables(_results(values, metric))[0])


def test_the_finding_names_the_best_and_counts_what_is_told_apart():
    first, second = [0.70, 0.72, 0.71, 0.73], [0.75, 0.78, 0.76, 0.77]
    score = f"{100 * np.mean(second):.1f} ± {100 * stats.sem(second):.1f} %"
    assert _finding([first, second]) == (
        f"erm + adam has the highest mean accuracy, {score}, told apart from every other. "
        "Told apart from erm + sgd: erm + adam (better)."
    )
    close = [0.73, 0.72, 0.74, 0.70]
    assert _finding([first, close]) == (
        f"erm + adam has the highest mean accuracy, {100 * np.mean(close):.1f} ± {100 * stats.sem(close):.1f} %. "
        "These trials tell no method apart from erm + sgd."
    )


def test_the_finding_of_an_error_and_of_one_trial():
    found = _finding([[20.0, 22.0, 21.0, 23.0], [15.0, 18.0, 16.0, 17.0]], metric="nll")
    assert found.startswith("erm + adam has the lowest mean nll, 16.50 ± 0.65, told apart from every other. ")
    assert found.endswith("erm + adam (better).")
    assert _finding([[0.5], [0.75]]) == (
        "erm + adam has the highest mean accuracy, 75.0 %. One trial does not tell methods apart."
    )


def test_the_finding_prefers_a_method_that_finished_every_trial():
    study = Study(optimizers=("sgd", "adam", "genie"), targets=("0",), trials=2)
    scores = {"sgd": 0.5, "adam": 0.9, "genie": 0.7}

    def status(spec):
        return "failed" if spec.optimizer == "adam" and spec.trial_seed == 1 else "finished"

    results = results_of(make_plan(study), lambda spec: (0.9, *[scores[spec.optimizer]] * 2), status)
    assert finding(build_tables(results)[0]).startswith("erm + genie has the highest mean accuracy, 70.0 ± 0.0 %. ")
    nothing = results_of(make_plan(study), lambda spec: (0.9, 0.5, 0.5), lambda spec: None)
    assert finding(build_tables(nothing)[0]) == "No method has a score on every unseen domain yet."


@pytest.mark.parametrize("baseline", ["erm + sgd", "erm + adam"])
def test_the_finding_does_not_tell_apart_what_the_correction_denies(baseline):
    """Both intervals of the best exclude 0, but of two differences together neither is told apart."""
    study = Study(optimizers=("sgd", "adam", "genie"), targets=("0",), trials=4)
    values = {"sgd": [0.70, 0.72, 0.71, 0.73], "adam": [0.74, 0.74, 0.75, 0.74], "genie": [0.73, 0.71, 0.72, 0.73]}
    pvalues = [stats.ttest_rel(values["adam"], values[name]).pvalue for name in ("sgd", "genie")]
    assert 0.025 < min(pvalues) < max(pvalues) < 0.05
    results = results_of(make_plan(study), lambda spec: (0.9, *[values[spec.optimizer][spec.trial_seed]] * 2))
    [table] = build_tables(results, baseline=baseline)
    assert marks([row.mean for row in table.rows], table.unit) == [False, True, False]  # bold, which is not corrected
    assert finding(table).startswith("erm + adam has the highest mean accuracy, 74.2 ± 0.3 %. These trials tell no ")
