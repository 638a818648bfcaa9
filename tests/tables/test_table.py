"""The numbers of the tables, on made-up results whose answers are known or scipy's."""

import csv
import dataclasses
import io
import re

import numpy as np
import pytest
from scipy import stats

from made_up import results_of
from shiftproof.base.registry import UnknownNameError
from shiftproof.studies import Results, Study, Variant, make_plan
from shiftproof.studies.results import choose_setting
from shiftproof.tables import FORMATS, as_csv, as_latex, as_markdown, as_text, build_tables
from shiftproof.tables.table import comparisons

OPTIMIZERS = ("sgd", "adam", "genie")
TARGETS = ("0", "15", "30")


@pytest.fixture(scope="module")
def study():
    return Study(optimizers=OPTIMIZERS, targets=TARGETS, trials=4)


@pytest.fixture(scope="module")
def accuracies():
    """By optimizer, target and trial; GENIE is better on average."""
    random = np.random.default_rng(0)
    gains = np.array([0.0, 0.01, 0.05])[:, None, None]
    return 0.6 + gains + 0.03 * random.standard_normal((len(OPTIMIZERS), len(TARGETS), 4))


def _results(study, accuracies, **entries):
    plan = make_plan(study)

    def scores(spec):
        value = accuracies[
            study.optimizers.index(spec.optimizer), study.targets.index(spec.targets[0]), spec.trial_seed
        ]
        return 0.9, value, value

    return results_of(plan, scores, **entries)


def test_means_and_standard_errors_are_scipys(study, accuracies):
    [table] = build_tables(_results(study, accuracies))
    for row, values in zip(table.rows, accuracies, strict=True):
        for column, one in zip(TARGETS, values, strict=True):
            assert row.cells[column].score == pytest.approx((one.mean(), stats.sem(one)))
        assert row.mean.score == pytest.approx((values.mean(), stats.sem(values.mean(axis=0))))
        assert (row.passes_per_step, row.seconds) == (2.0, 2.0)


def _measured(study, values, metric):
    """Results whose tables show a measure, given by optimizer, target and trial; NaN where it is undefined."""
    plan = make_plan(study)

    def metrics(spec):
        value = values[study.optimizers.index(spec.optimizer), study.targets.index(spec.targets[0]), spec.trial_seed]
        measures = {"accuracy": 0.5, metric: None if np.isnan(value) else float(value)}
        part = {"count": 10, "accuracy": 0.5, "per_class": [0.5] * 10, "measures": measures}
        domains = {name: {"in": part, "out": part} for name in plan.grids[0].domains}
        return [{"step": spec.steps, "loss": 1.0, "domains": domains}]

    found = results_of(plan, lambda spec: (0.5, 0.5, 0.5), metrics=metrics)
    return Results(plan, found._found, metric)


@pytest.mark.parametrize(("metric", "worst"), [("accuracy", np.min), ("auroc", np.min), ("nll", np.max)])
def test_the_worst_target_is_taken_within_each_trial(study, accuracies, metric, worst):
    results = _results(study, accuracies) if metric == "accuracy" else _measured(study, accuracies, metric)
    [table] = build_tables(results)
    each = worst(accuracies, axis=1)
    assert not np.allclose(each.mean(axis=1), worst(accuracies.mean(axis=2), axis=1))  # of one target in all trials
    for row, values in zip(table.rows, each, strict=True):
        assert row.worst.score == pytest.approx((values.mean(), stats.sem(values)))
        if row.method != table.baseline:
            test = stats.ttest_rel(values, each[0])
            assert row.worst.difference[:3] == pytest.approx(
                ((values - each[0]).mean(), *test.confidence_interval(0.95))
            )


def test_a_trial_with_an_undefined_target_has_no_worst(study, accuracies):
    values = accuracies.copy()
    values[0, 1, 0] = np.nan
    values[1, 2, :] = np.nan
    sgd, adam, genie = build_tables(_measured(study, values, "auroc"))[0].rows
    assert (sgd.worst.trials, sgd.worst.score.mean) == (3, pytest.approx(accuracies[0, :, 1:].min(axis=0).mean()))
    assert (adam.worst.score, adam.worst.undefined) == (None, True)
    assert genie.worst.trials == 4


def test_the_worst_class_mean_is_the_least_whatever_the_measure(study, accuracies):
    """Class means are accuracies: the greater the better, also where the table's measure is not."""
    results = _results(study, accuracies)
    for result in results._found.values():
        for domain in result["metrics"][0]["domains"].values():
            domain["in"]["measures"] = {"accuracy": 0.5, "nll": 1.0}
    [table] = build_tables(Results(results.plan, results._found, "nll"))
    assert table.rows[0].worst.class_mean.mean == pytest.approx(accuracies[0].min(axis=0).mean())


def test_the_worst_stands_beside_the_mean_in_every_format(study, accuracies):
    results = _results(study, accuracies)
    for spec in results.plan.runs:
        [target] = spec.targets
        results.result(spec)["constant"] = {target: {"accuracy": {"0": 0.3, "15": 0.1, "30": 0.2}[target]}}
    worst = accuracies.min(axis=1)
    texts = [f"{100 * values.mean():.1f} ± {100 * stats.sem(values):.1f}" for values in worst]
    place = "method", "mean", "worst", *TARGETS
    rows = [re.split(r"  +", line) for line in as_text(results).splitlines()[1:6]]
    assert tuple(rows[0][: len(place)]) == place
    assert [row[2] for row in rows[1:]] == [*texts, "10.0 ± 0.0"]  # what reads no input
    rows = [line.strip("| ").split(" | ") for line in as_markdown(results).splitlines() if line.startswith("| ")]
    assert (tuple(rows[0][: len(place)]), rows[3][2].strip("*")) == (place, texts[2])
    rows = [line.split(" & ") for line in as_latex(results).splitlines() if " & " in line]
    assert (tuple(rows[0][: len(place)]), rows[1][2]) == (place, texts[0].replace("±", r"$\pm$"))
    lines = [row for row in _lines(as_csv(results, "last")) if row["target"] == "worst"]
    assert [float(row["accuracy"]) for row in lines] == pytest.approx(list(worst.mean(axis=1)))
    gain = f"{100 * (worst[2] - worst[0]).mean():+.1f}"
    differences = as_text(results).split("\n\n")[1].splitlines()
    assert re.split(r"  +", differences[1])[5] == "worst"
    assert re.split(r"  +", differences[3])[5] == gain


def test_headings_are_no_targets_names(study, accuracies):
    [table] = build_tables(_results(study, accuracies))
    assert table.headings == ["mean", "worst", *TARGETS]
    odd = ["worst", "mean", "mean of all"]
    row = dataclasses.replace(table.rows[0], cells=dict(zip(odd, table.rows[0].cells.values(), strict=True)))
    named = dataclasses.replace(table, columns=odd, rows=[row])
    assert named.headings == ["mean of all of all", "worst of all", *odd]
    assert list(named.cells(row).values()) == list(table.cells(table.rows[0]).values())


def test_differences_are_scipys_paired_t_test_and_p_values_holms(study, accuracies):
    [table] = build_tables(_results(study, accuracies))
    means = accuracies.mean(axis=1)
    p_values = []
    for i, row in enumerate(table.rows[1:], start=1):
        test = stats.ttest_rel(means[i], means[0])
        low, high = test.confidence_interval(0.95)
        difference = row.mean.difference
        assert difference[:3] == pytest.approx(((means[i] - means[0]).mean(), low, high))
        assert difference.p == pytest.approx(test.pvalue)
        p_values.append(test.pvalue)
    small, large = sorted(p_values)
    adjusted = [row.adjusted_p for row in table.rows[1:]]
    assert sorted(adjusted) == pytest.approx([min(1, 2 * small), min(1, max(large, 2 * small))])
    assert table.rows[0].adjusted_p is None


def test_how_many_p_values_were_corrected_is_said_of_several_only(study, accuracies):
    said = "p-values of Student's t over trials, corrected for 2 comparisons; won-lost-tied counts targets."
    assert said in as_text(_results(study, accuracies)).splitlines()
    two = dataclasses.replace(study, optimizers=OPTIMIZERS[:2])
    assert "corrected for" not in as_text(_results(two, accuracies))


def test_signs_and_ranks_count_targets(study, accuracies):
    [table] = build_tables(_results(study, accuracies))
    cells = accuracies.mean(axis=2)
    wins = int((cells[2] > cells[0]).sum())
    assert (table.rows[2].signs.wins, table.rows[2].signs.losses) == (wins, 3 - wins)
    assert table.rows[0].signs is None
    ranks = np.mean([stats.rankdata(-column) for column in cells.T], axis=0)
    assert table.ranks.ranks == pytest.approx(ranks)
    assert table.ranks.friedman_p == pytest.approx(stats.friedmanchisquare(*cells).pvalue)


def test_another_baseline_can_be_chosen(study, accuracies):
    results = _results(study, accuracies)
    [table] = build_tables(results, baseline="erm + adam")
    assert table.rows[0].mean.difference.mean == pytest.approx((accuracies[0] - accuracies[1]).mean())
    assert table.rows[1].adjusted_p is None
    assert "difference from erm + adam" in as_text(results, baseline="erm + adam")
    with pytest.raises(UnknownNameError, match=r"unknown method of this study 'adam'. Did you mean erm \+ adam"):
        build_tables(results, baseline="adam")
    with pytest.raises(UnknownNameError, match="unknown selection rule of this study 'leave_one_domain_out'"):
        build_tables(results, rule="leave_one_domain_out")


def _searched(tune="per_target", protocol="shiftproof"):
    """Two settings: 1 has the higher validation, 0 the higher accuracy on the target, but on target 15."""
    study = Study(
        optimizers=("sgd",), targets=("0", "15"), trials=2, hparam_trials=2, tune=tune, protocol=protocol,
        steps=6, checkpoint_freq=5,
    )  # fmt: skip

    def scores(spec):
        if spec.targets == ("15",):
            return (0.9, 0.7, 0.7) if spec.hparam_seed == 0 else (0.8, 0.6, 0.6)
        return (0.5, 0.9, 0.9) if spec.hparam_seed == 0 else (0.7, 0.4, 0.4)

    return results_of(make_plan(study), scores)


def test_settings_are_chosen_by_validation_and_the_oracles_gain_is_told():
    [table] = build_tables(_searched())
    [row] = table.rows
    assert [row.cells[target].score.mean for target in ("0", "15")] == pytest.approx([0.4, 0.7])
    assert row.sweep_gain.mean == pytest.approx((0.9 + 0.7) / 2 - (0.4 + 0.7) / 2)
    [oracle] = build_tables(_searched(), "oracle")
    assert oracle.rows[0].mean.score.mean == pytest.approx(0.8)
    [last] = build_tables(_searched(), "last")
    assert last.rows[0].cells["0"].score.mean == pytest.approx(0.9)  # nothing validated: setting 0


def test_a_shared_setting_is_the_best_over_all_targets_and_trials():
    [table] = build_tables(_searched("shared"))  # validations 0.7 and 0.75
    assert [table.rows[0].cells[target].score.mean for target in ("0", "15")] == pytest.approx([0.4, 0.6])


def test_a_rule_that_validates_nothing_shares_the_lowest_setting_in_every_dialect():
    for dialect in ("shiftproof", "swad"):
        [table] = build_tables(_searched("shared", dialect), "last")
        assert [table.rows[0].cells[target].score.mean for target in ("0", "15")] == pytest.approx([0.9, 0.7])


def test_a_shared_setting_must_have_finished_everywhere():
    study = Study(optimizers=("sgd",), targets=("0", "15"), trials=1, hparam_trials=2, tune="shared")
    broken = lambda spec: "failed" if (spec.targets, spec.hparam_seed) == (("0",), 1) else "finished"  # noqa: E731
    results = results_of(make_plan(study), lambda spec: (0.1 + spec.hparam_seed, 0.3, 0.3), status=broken)
    [table] = build_tables(results)
    outcomes = results.outcomes(results.plan.grids[0], table.rule, table.baseline)
    assert {one.row["hparam_seed"] for one in outcomes} == {0}


def _row(hparam_seed, validation, status="finished"):
    selected = {"step": 1, "validation": validation, "accuracy": 0.5, "class_mean": 0.5}
    selection = {"training_domain": selected, "last": {**selected, "validation": None}}
    return {"hparam_seed": hparam_seed, "status": status, "selection": selection}


def test_ties_between_settings_are_broken_as_the_dialect_says():
    rows = [_row(0, 0.5), _row(1, 0.8), _row(2, 0.8)]
    for order in (rows, rows[::-1]):
        assert choose_setting(order, "training_domain", "shiftproof")["hparam_seed"] == 1
        for dialect in ("domainbed", "domainbed-head", "swad"):
            assert choose_setting(order, "training_domain", dialect)["hparam_seed"] == 2
    assert choose_setting([_row(0, 0.5, "failed")], "training_domain") is None
    assert choose_setting(rows[::-1], "last")["hparam_seed"] == 0


def test_leave_one_domain_out_reads_the_runs_of_pairs():
    """Setting 1 has the better pair runs, setting 0 the better validation on its own sources."""
    study = Study(
        optimizers=("sgd",), targets=("0",), trials=1, hparam_trials=2,
        selection=("leave_one_domain_out", "training_domain"),
    )  # fmt: skip
    plan = make_plan(study)

    def scores(spec):
        if len(spec.targets) == 2:
            return 0.5, 0.6 + 0.1 * spec.hparam_seed, 0.5
        return (0.9, 0.3, 0.3) if spec.hparam_seed == 0 else (0.8, 0.4, 0.4)

    results = results_of(plan, scores)
    [table] = build_tables(results)
    assert table.rule == "leave_one_domain_out"
    assert table.rows[0].mean.score.mean == pytest.approx(0.4)
    assert build_tables(results, "training_domain")[0].rows[0].mean.score.mean == pytest.approx(0.3)
    [outcome] = results.outcomes(plan.grids[0], "leave_one_domain_out", plan.baseline)
    assert outcome.selected["validation"] == pytest.approx(0.7)
    without = [spec for spec in plan.runs if spec.targets != ("0", "15")]
    partial = results_of(plan, scores, status=lambda spec: "finished" if spec in without else None)
    assert build_tables(partial)[0].rows[0].mean.score is None


def test_a_method_whose_every_setting_failed_is_failed_under_shared_tuning_too():
    study = Study(optimizers=("sgd",), targets=("0",), trials=2, hparam_trials=2, tune="shared")
    results = results_of(make_plan(study), lambda spec: (0, 0, 0), status=lambda spec: "failed")
    [table] = build_tables(results)
    assert table.rows[0].cells["0"].failed


def test_a_study_may_have_the_name_of_a_data_set(several):
    named = dataclasses.replace(several.plan, name="rotated_digits")
    results = Results(named, {spec.name: several.result(spec) for spec in named.distinct})
    text = as_text(results)
    assert [(table.title, table.dataset) for table in build_tables(results)] == [
        ("rotated_digits", None), ("rotated_digits", "rotated_digits"), ("colored_digits", "colored_digits")
    ]  # fmt: skip
    assert [block for block in as_text(several).split("\n\n") if block.startswith("rotated_digits: mean by")] == [
        block for block in text.split("\n\n") if block.startswith("rotated_digits: mean by")
    ][1:]


def test_gaps_and_failures_are_shown(study, accuracies):
    def status(spec):
        if (spec.optimizer, spec.targets) == ("adam", ("0",)):
            return "failed" if spec.trial_seed == 0 else None
        return None if (spec.optimizer, spec.trial_seed) == ("sgd", 3) else "finished"

    results = _results(study, accuracies, status=status)
    [table] = build_tables(results)
    sgd, adam, genie = table.rows
    assert sgd.mean.trials == 3
    assert adam.cells["0"].score is None
    assert adam.cells["0"].failed
    assert adam.mean.score is None
    assert genie.mean.difference.mean == pytest.approx((accuracies[2] - accuracies[0]).mean(axis=0)[:3].mean())
    assert table.failures == ["erm + adam on 0, trial 0, setting 0: it broke"]
    assert table.terms["runs finished"] == "29 of 36"
    text = as_text(results)
    assert "(3/4)" in text
    assert "failed" in text
    assert "missing" in as_text(results_of(make_plan(study), lambda spec: (0, 0, 0), status=lambda spec: None))


@pytest.fixture(scope="module")
def several():
    study = Study(
        name="two sets", datasets=("rotated_digits", "colored_digits"), optimizers=("sgd", "genie"), trials=2,
        targets=("0", "15", "minus90"),
    )  # fmt: skip

    def scores(spec):
        value = {"0": 0.2, "15": 0.4, "minus90": 0.9}[spec.targets[0]] + 0.1 * (spec.optimizer == "genie")
        return 0.9, value + 0.02 * spec.trial_seed, value

    return results_of(make_plan(study), scores)


def test_several_data_sets_have_a_table_over_all_and_one_each(several):
    over, digits, colored = build_tables(several)
    assert (over.title, over.columns) == ("two sets", ["rotated_digits", "colored_digits"])
    assert (digits.columns, colored.columns) == (["0", "15"], ["minus90"])
    worst = [[row.worst and row.worst.score.mean for row in table.rows] for table in (over, digits, colored)]
    assert worst == [[None, None], pytest.approx([0.21, 0.31]), [None, None]]  # data sets are not compared
    sgd, genie = over.rows
    assert sgd.mean.score.mean == pytest.approx(((0.2 + 0.4) / 2 + 0.9) / 2 + 0.01)  # data sets count alike
    assert genie.mean.difference.mean == pytest.approx(0.1)
    assert (genie.signs.wins, over.ranks.cells) == (3, 3)
    assert over.terms["dataset"] == "rotated_digits, colored_digits"


def _lines(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_the_formats_say_the_same(several):
    over = build_tables(several)[0]
    mean = f"{100 * over.rows[1].mean.score.mean:.1f} ± {100 * over.rows[1].mean.score.error:.1f}"
    assert mean in as_text(several)
    assert f"| {mean} |" in as_markdown(several)  # not bold: differences that are all equal have no interval
    assert f" & {mean.replace('±', chr(36) + chr(92) + 'pm' + chr(36))} & " in as_latex(several)
    lines = [row for row in _lines(as_csv(several)) if (row["table"], row["target"]) == ("two sets", "mean")]
    assert len(lines) == 2 * 3  # rules
    assert float(lines[1]["accuracy"]) == pytest.approx(over.rows[1].mean.score.mean)
    whole = {(row["table"], row["target"]) for row in _lines(as_csv(several)) if row["sweep_gain"]}
    assert whole == {(table.title, "mean") for table in build_tables(several)}
    assert set(FORMATS) == {"text", "markdown", "latex", "csv"}


def test_latex_escapes_names_and_is_balanced(several):
    text = as_latex(several)
    assert r"rotated\_digits" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == text.count(r"\toprule")
    for line in text.splitlines():
        if line.endswith(r"\\"):
            assert line.count("{") == line.count("}")


def test_measured_stands_beside_published():
    digits = Study(optimizers=("adam", "genie"), targets=("0",), trials=1, published="optimizers")
    plan = make_plan(digits)
    [grid] = plan
    runs = tuple(dataclasses.replace(spec, dataset="PACS") for spec in grid.runs)
    pacs = dataclasses.replace(grid, dataset="PACS", runs=runs)
    results = results_of(dataclasses.replace(plan, grids=(pacs,)), lambda spec: (0.9, 0.8, 0.8))
    adam, genie = comparisons(results, build_tables(results))
    assert (adam.published.value, adam.published.released_form) == (pytest.approx(0.842), False)
    assert (genie.published.value, genie.published.released_form) == (pytest.approx(0.878), True)
    text = as_text(results)
    assert "-4.2" in text
    assert "erm + genie (published: released form)" in text
    assert "targets 0 only" in text
    digits = results_of(plan, lambda spec: (0.9, 0.8, 0.8))
    assert comparisons(digits, build_tables(digits)) == []  # nothing is published of the digits


def test_a_mean_stands_beside_the_published_one_over_the_same_data_sets_only():
    plan = make_plan(Study(optimizers=("adam",), targets=("0",), trials=1, published="optimizers"))
    [grid] = plan
    names = ["PACS", "VLCS", "OfficeHome", "TerraIncognita", "DomainNet"]
    for measured, means in ((names, ["mean"]), (names[:2], []), ([*names, "rotated_digits"], [])):
        grids = [
            dataclasses.replace(
                grid, dataset=name, runs=tuple(dataclasses.replace(spec, dataset=name) for spec in grid.runs)
            )
            for name in measured
        ]
        results = results_of(dataclasses.replace(plan, grids=tuple(grids)), lambda spec: (0.9, 0.8, 0.8))
        compared = comparisons(results, build_tables(results))
        assert [one.dataset for one in compared] == [*means, *(name for name in measured if name in names)]
        if means:
            assert compared[0].published.value == pytest.approx(0.633)


def test_variants_stand_beside_their_own_tables():
    variants = (Variant("1x", published="convergence_5000"), Variant("2x", times=2, published="convergence_10000"))
    plan = make_plan(Study(optimizers=("adam",), variants=variants, targets=("0",), trials=1))
    [grid] = plan
    runs = tuple(dataclasses.replace(spec, dataset="PACS") for spec in grid.runs)
    pacs = dataclasses.replace(grid, dataset="PACS", runs=runs)
    results = results_of(dataclasses.replace(plan, grids=(pacs,)), lambda spec: (0.9, 0.8, 0.8))
    compared = comparisons(results, build_tables(results))
    assert [one.published.value for one in compared] == pytest.approx([0.842, 0.861])
    [line] = [line for line in as_text(results).splitlines() if line.startswith("erm + adam, 2x") and "10934" in line]
    assert line.split()[-4:] == ["2.0", "10934", "1.00", "2.01"]  # 10,934 s against 5,443 s


@pytest.mark.parametrize(("targets", "over"), [(("0",), "Over 1 target; "), (("0", "15"), "Over 2 targets; ")])
def test_ranks_say_over_how_many_targets(targets, over):
    plan = make_plan(Study(optimizers=("sgd", "adam"), targets=targets, trials=1))
    results = results_of(plan, lambda spec: (0.5, 0.25, 0.75), lambda spec: "finished")
    assert over in as_text(results)
