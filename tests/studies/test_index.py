"""A store of many runs: what is read of it, how often, and that its index never shows what is no longer true."""

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from made_up import results_of
from shiftproof.base.files import DamagedFileError, write_json
from shiftproof.report import write_report
from shiftproof.studies import Store, Study, make_plan, read_results, read_status
from shiftproof.studies.index import INDEX_FILE, INDEX_VERSION
from shiftproof.tables import FORMATS

RUNS = 200


@pytest.fixture(scope="module")
def plan():
    return make_plan(Study(optimizers=("sgd", "adam"), targets=("0", "45"), trials=5, hparam_trials=10))


@pytest.fixture
def expected(plan):
    """What there is of the study, in memory: different accuracies, one run that failed and one that may be retried."""

    def scores(spec):
        return tuple(int(spec.name[i : i + 4], 16) / 0xFFFF for i in (0, 4, 8))

    results = results_of(plan, scores, lambda spec: "failed" if spec in plan.distinct[:2] else "finished")
    results.result(plan.distinct[1])["retry"] = True
    return results


@pytest.fixture
def store(tmp_path, plan, expected):
    plan.write(tmp_path)
    for spec in plan.distinct:
        (tmp_path / "runs" / spec.name).mkdir(parents=True)
        write_json(tmp_path / "runs" / spec.name / "result.json", expected.result(spec))
    return Store(tmp_path)


@pytest.fixture
def reads(monkeypatch):
    """How often each result is read whole."""
    counts = Counter()
    read_text = Path.read_text

    def counted(path, *arguments, **options):
        if path.name == "result.json":
            counts[path.parent.name] += 1
        return read_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", counted)
    return counts


def _texts(results):
    return [form(results, None, None) for form in FORMATS.values()]


def test_tables_are_those_of_results_in_memory_with_and_without_the_index(store, expected):
    assert len(expected.plan.distinct) == RUNS
    for _ in range(2):
        results = read_results(store.root)
        assert results.rows == expected.rows
        assert _texts(results) == _texts(expected)
    assert len((store.root / INDEX_FILE).read_text().splitlines()) == RUNS


def test_every_result_is_read_once_and_not_again(store, plan, reads):
    _texts(read_results(store.root))
    assert reads == dict.fromkeys((spec.name for spec in plan.distinct), 1)
    reads.clear()
    _texts(read_results(store.root))
    assert "198 of 200 runs finished, 2 failed" in read_status(store.root).text()
    assert store.missing(plan) == [plan.distinct[1]]
    store.write_runs(read_results(store.root))
    assert not reads
    write_report(read_results(store.root), store.root)
    assert set(reads.values()) == {1}
    assert len(reads) == 2 * 2 * 5  # the chosen run of each method, target and trial


def test_status_and_resume_read_no_result_twice_either(store, plan, reads):
    assert store.missing(plan) == [plan.distinct[1]]
    assert reads.total() == RUNS
    assert "198 of 200 runs finished, 2 failed, 0 begun, 0 waiting" in read_status(store.root).text()
    read_results(store.root)
    assert reads.total() == RUNS


def test_what_changed_is_read_again(store, plan, expected, reads):
    read_results(store.root)
    reads.clear()
    changed, deleted = plan.distinct[3], plan.distinct[4]
    write_json(store.folder(changed) / "result.json", {**expected.result(changed), "passes": 77})
    (store.folder(deleted) / "result.json").unlink()
    results = read_results(store.root)
    assert reads == {changed.name: 1}
    [row] = [row for row in results.rows if row["run"] == changed.name]
    assert row["passes"] == 77
    assert len(results.rows) == RUNS - 1
    assert store.missing(plan) == [plan.distinct[1], deleted]
    # of equal size, at another time
    file = store.folder(plan.distinct[5]) / "result.json"
    file.write_text(file.read_text().replace('"passes": 600', '"passes": 601'))
    os.utime(file, ns=(0, 0))
    [row] = [row for row in read_results(store.root).rows if row["run"] == plan.distinct[5].name]
    assert row["passes"] == 601


def test_a_result_that_is_damaged_is_not_hidden_by_the_index(store, plan):
    read_results(store.root)
    file = store.folder(plan.distinct[7]) / "result.json"
    file.write_bytes(file.read_bytes()[:-20])
    for read in (read_results, read_status, lambda root: Store(root).missing(plan)):
        with pytest.raises(DamagedFileError, match=plan.distinct[7].name):
            read(store.root)


def test_a_damaged_index_costs_time_only(store, expected, reads):
    read_results(store.root)
    index = store.root / INDEX_FILE
    lines = index.read_bytes().splitlines(keepends=True)
    old = json.dumps([INDEX_VERSION - 1, *json.loads(lines[1])[1:]]).encode() + b"\n"
    index.write_bytes(b"".join([b"\xff\n[1, [], {}]\n3\n", old, *lines[2:-1], lines[-1][:30]]))
    reads.clear()
    assert _texts(read_results(store.root)) == _texts(expected)
    assert reads.total() == 3  # of the first line, the old one and the one that was cut short


def test_switching_between_measures_reads_every_result_once_for_each_and_writes_no_more_lines(tmp_path, reads):
    plan = make_plan(Study(datasets=("vowels",), optimizers=("sgd",), targets=("speaker00",), trials=3))
    results = results_of(plan, lambda spec: (0.5, 0.25, 0.75))
    plan.write(tmp_path)
    runs = {spec.name for spec in plan.distinct}
    for spec in plan.distinct:
        result = results.result(spec)
        for parts in result["metrics"][0]["domains"].values():
            for part in parts.values():
                part["measures"] = {"accuracy": part["accuracy"], "auroc": 0.5, "nll": 1.0}
        (tmp_path / "runs" / spec.name).mkdir(parents=True)
        write_json(tmp_path / "runs" / spec.name / "result.json", result)
    index = tmp_path / INDEX_FILE

    def switch():
        for metric in ("accuracy", None, "auroc", "nll"):
            rows = read_results(tmp_path, metric).rows
            assert ({row["run"] for row in rows}, {row["metric"] for row in rows}) == (runs, {metric or "accuracy"})

    for _ in range(3):
        switch()
        assert reads == dict.fromkeys(runs, 3)
        assert len(index.read_text().splitlines()) == 3 * len(runs)
    index.write_text(index.read_text() * 2)  # as earlier versions, which wrote rows anew at each switch, left it
    switch()
    assert reads == dict.fromkeys(runs, 3)
    for _ in range(2):
        with pytest.raises(ValueError, match="ece cannot be shown"):  # it was not recorded
            read_results(tmp_path, "ece")
        assert len(index.read_text().splitlines()) == (6 + 1) * len(runs)


def test_rows_of_other_selection_rules_are_not_taken_from_the_index(store, monkeypatch, reads):
    read_results(store.root)
    reads.clear()
    rules = ("training_domain", "oracle", "last")
    monkeypatch.setattr("shiftproof.studies.plan.BUILT_IN_RULES", rules)
    assert all(tuple(row["selection"]) == rules for row in read_results(store.root).rows)
    assert reads.total() == RUNS


def test_what_rows_hold_is_that_of_the_index_version(expected):
    """Whoever changes the entries of a row, or what they say, raises the version and writes both here."""
    row = expected.rows[-1]
    entries = (
        "algorithm annealer annealing averaging constant dataset error hparam_seed hparams metric optimizer passes "
        "protocol results_version retry run seconds selection shared status steps target trial_seed variant versions"
    )
    selected = "accuracy class_mean measures step validation"
    assert (INDEX_VERSION, " ".join(sorted(row)), " ".join(sorted(row["selection"]["last"]))) == (4, entries, selected)


def test_reading_works_where_the_index_cannot_be_written(store, expected):
    with FileLock(store.root / f".{INDEX_FILE}.lock"):
        assert _texts(read_results(store.root)) == _texts(expected)
    assert not (store.root / INDEX_FILE).exists()


def test_an_interrupted_reading_continues(store, plan, monkeypatch, reads):
    read_text = Path.read_text

    def interrupted(path, *arguments, **options):
        if path.parent.name == plan.distinct[50].name:
            raise KeyboardInterrupt
        return read_text(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", interrupted)
        with pytest.raises(KeyboardInterrupt):
            read_results(store.root)
    reads.clear()
    read_results(store.root)
    assert reads.total() == RUNS - 50


def test_a_row_is_made_anew_when_a_run_that_it_is_compared_with_ends(tmp_path):
    study = Study(
        optimizers=("sgd",), targets=("0", "15"), trials=1, selection=("leave_one_domain_out", "training_domain")
    )
    plan = make_plan(study)
    expected = results_of(plan, lambda spec: (0.5, 0.25, 0.75))
    plan.write(tmp_path)
    last = plan.distinct[-1]
    for spec in plan.distinct:
        (tmp_path / "runs" / spec.name).mkdir(parents=True)
        if spec != last:
            write_json(tmp_path / "runs" / spec.name / "result.json", expected.result(spec))

    def chosen():
        return {row["target"]: row["selection"]["leave_one_domain_out"] for row in read_results(tmp_path).rows}

    assert None in [chosen()[name] for name in last.targets if name in ("0", "15")]
    write_json(tmp_path / "runs" / last.name / "result.json", expected.result(last))
    for _ in range(2):
        assert read_results(tmp_path).rows == expected.rows
        assert None not in (chosen()["0"], chosen()["15"])


def test_a_run_at_two_places_has_a_row_at_each(tmp_path, plan, expected):
    both = replace(plan, grids=(replace(plan.grids[0], runs=(plan.runs[0], replace(plan.runs[0], hparam_seed=99))),))
    both.write(tmp_path)
    (tmp_path / "runs" / plan.runs[0].name).mkdir(parents=True)
    write_json(tmp_path / "runs" / plan.runs[0].name / "result.json", expected.result(plan.runs[0]))
    for _ in range(2):
        assert [row["hparam_seed"] for row in read_results(tmp_path).rows] == [plan.runs[0].hparam_seed, 99]
