"""Runs in an output that cannot be read: a study's own stop it by name, all others are named and passed over."""

import json
from dataclasses import asdict

import pytest

from made_up import results_of
from shiftproof.base.files import DamagedFileError, write_json
from shiftproof.cli import main
from shiftproof.report import write_report
from shiftproof.studies import Store, Study, make_plan, read_results, read_status
from shiftproof.tables import FORMATS, build_tables

STUDY = Study(optimizers=("sgd", "adam"), targets=("0", "45"), trials=1)
MANY_DIGITS = "1" + "0" * 400


@pytest.fixture(scope="module")
def plan():
    return make_plan(STUDY)


@pytest.fixture
def store(tmp_path, plan):
    """A store that holds the whole study."""
    plan.write(tmp_path)
    expected = results_of(plan, lambda spec: (0.5, 0.25, 0.75))
    for spec in plan.distinct:
        (tmp_path / "runs" / spec.name).mkdir(parents=True)
        result = {**expected.result(spec), "spec": asdict(spec)}
        write_json(tmp_path / "runs" / spec.name / "result.json", result)
    return Store(tmp_path)


def _without(entries, name):
    return {key: value for key, value in entries.items() if key != name}


def _score(entries, **changes):
    """Change what the first evaluation says of the first domain."""
    record = entries["metrics"][0]
    name = next(iter(record["domains"]))
    parts = {**record["domains"][name], "out": {**record["domains"][name]["out"], **changes}}
    return {**entries, "metrics": [{**record, "domains": {**record["domains"], name: parts}}]}


def _spec(entries, **changes):
    return {**entries, "spec": {**entries["spec"], **changes}}


RESULTS = {
    "empty": lambda r: "",
    "no JSON": lambda r: "{",
    "cut short": lambda r: json.dumps(r)[:-30],
    "bytes": lambda r: b"\xff\xfe",
    "list": lambda r: [],
    "null": lambda r: None,
    "number": lambda r: 3,
    "nested": lambda r: "[" * 100_000,
    "no metrics": lambda r: {**r, "metrics": []},
    "empty metrics": lambda r: {**r, "metrics": [{}]},
    "metrics of another type": lambda r: {**r, "metrics": {"step": 1}},
    "a record of another type": lambda r: {**r, "metrics": [3]},
    "no domains": lambda r: {**r, "metrics": [_without(r["metrics"][0], "domains")]},
    "no loss": lambda r: {**r, "metrics": [_without(r["metrics"][0], "loss")]},
    "a step of another type": lambda r: {**r, "metrics": [{**r["metrics"][0], "step": "last"}]},
    "domains of another type": lambda r: {**r, "metrics": [{**r["metrics"][0], "domains": ["0"]}]},
    "other domains": lambda r: {**r, "metrics": [{**r["metrics"][0], "domains": {"x": {}}}]},
    "no domain": lambda r: {**r, "metrics": [{**r["metrics"][0], "domains": {}}]},
    "an accuracy of another type": lambda r: _score(r, accuracy="high"),
    "an accuracy that is none": lambda r: _score(r, accuracy=float("nan")),
    "an accuracy without end": lambda r: json.dumps(_score(r, accuracy=7)).replace(": 7", ": 1e999"),
    "an accuracy beyond a float": lambda r: json.dumps(_score(r, accuracy=7)).replace(": 7", f": {MANY_DIGITS}"),
    "no classes": lambda r: _score(r, per_class=None),
    "no status": lambda r: _without(r, "status"),
    "an unknown status": lambda r: {**r, "status": "running"},
    "a status of another type": lambda r: {**r, "status": ["finished"]},
    "no seconds": lambda r: _without(r, "seconds"),
    "seconds of another type": lambda r: {**r, "seconds": 3.0},
    "no passes": lambda r: _without(r, "passes"),
    "passes of another type": lambda r: {**r, "passes": "many"},
    "no steps were taken": lambda r: {**r, "steps": 0},
    "an annealer of another type": lambda r: {**r, "annealer": [1]},
    "versions of another type": lambda r: {**r, "versions": "1.0"},
    "no error": lambda r: {**r, "status": "failed", "error": None},
}  # fmt: skip
SPECS = {
    "no spec": lambda r: _without(r, "spec"),
    "an empty spec": lambda r: {**r, "spec": {}},
    "a spec of another type": lambda r: {**r, "spec": ["dataset"]},
    "a field more": lambda r: _spec(r, kind_of_tomorrow="x"),
    "a field less": lambda r: {**r, "spec": _without(r["spec"], "optimizer")},
    "another protocol": lambda r: _spec(r, protocol="of_tomorrow"),
    "hparams of another type": lambda r: _spec(r, hparams=[1]),
    "targets of another type": lambda r: _spec(r, targets="0"),
    "steps of another type": lambda r: _spec(r, steps="5"),
    "steps that are true": lambda r: _spec(r, steps=True),
    "a rate without end": lambda r: json.dumps(_spec(r, hparams={"optimizer.lr": 7})).replace(": 7", ": Infinity"),
    "a target that it has not": lambda r: _spec(r, targets=["1000"]),
}


def _write(file, content):
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(content if isinstance(content, str) else json.dumps(content))


def _read_all(store, plan):
    """All that reads a store; returns what it says."""
    results = read_results(store.root)
    write_report(results, store.root)
    store.write_runs(results)
    return [
        *(form(results, None, None) for form in FORMATS.values()),
        read_status(store.root).text(),
        store.missing(plan),
        results.rows,
    ]


def test_runs_of_others_that_cannot_be_read_are_named_and_passed_over(store, plan, capsys):
    undisturbed = _read_all(store, plan)
    assert capsys.readouterr().err == ""
    [own, *_] = plan.distinct
    whole = json.loads((store.folder(own) / "result.json").read_text())
    runs = store.root / "runs"
    for name, damaged in {**RESULTS, **SPECS}.items():
        (runs / name).mkdir()
        _write(runs / name / "result.json", damaged(whole))
        _write(runs / name / "spec.json", ["a list"])
    (runs / "a folder" / "result.json").mkdir(parents=True)
    (runs / "empty folder").mkdir()
    (runs / "notes.txt").write_text("of mine")
    (runs / "whole").mkdir()
    other = _spec(whole, trial_seed=5, variant="of another study")
    write_json(runs / "whole" / "result.json", {**other, "a field more": 1})

    assert _read_all(store, plan) == undisturbed
    lines = capsys.readouterr().err.splitlines()
    named = {
        name for name in {**RESULTS, **SPECS, "a folder": None} if any(f"{runs / name}, not a run" in x for x in lines)
    }
    assert named == {*RESULTS, *SPECS, "a folder"}
    assert len(lines) == len(named)
    assert all(line.startswith("skipped: ") and "Traceback" not in line for line in lines)
    [more] = [line for line in lines if "a field more" in line]
    assert more.endswith("this version does not know its kind_of_tomorrow")
    *held, added = [json.loads(line) for line in (store.root / "runs.jsonl").read_text().splitlines()]
    assert held == undisturbed[-1]
    assert (added["variant"], added["trial_seed"]) == ("of another study", 5)


@pytest.mark.parametrize("name", RESULTS)
def test_a_run_of_the_study_that_cannot_be_read_stops_it_by_name(name, store, plan):
    spec = plan.distinct[1]
    file = store.folder(spec) / "result.json"
    _write(file, RESULTS[name](json.loads(file.read_text())))
    for read in (read_results, read_status, lambda root: Store(root).missing(plan)):
        with pytest.raises(DamagedFileError) as error:
            read(store.root)
        assert str(error.value).startswith(f"{file} is damaged (")
        assert str(error.value).endswith("; delete it to train this run again")


def test_of_runs_that_are_read_together_the_damaged_one_is_named(tmp_path):
    study = Study(optimizers=("sgd",), targets=("0",), trials=1, selection=("leave_one_domain_out",))
    plan = make_plan(study)
    plan.write(tmp_path)
    expected = results_of(plan, lambda spec: (0.5, 0.25, 0.75))
    for spec in plan.distinct:
        (tmp_path / "runs" / spec.name).mkdir(parents=True)
        write_json(tmp_path / "runs" / spec.name / "result.json", expected.result(spec))
    assert len(read_results(tmp_path).rows) == 6
    pair = next(spec for spec in plan.distinct if len(spec.targets) == 2)
    file = tmp_path / "runs" / pair.name / "result.json"
    result = expected.result(pair)
    domains = {f"other {name}": parts for name, parts in result["metrics"][0]["domains"].items()}
    write_json(file, {**result, "metrics": [{**result["metrics"][0], "domains": domains}]})
    with pytest.raises(DamagedFileError, match=pair.name):
        read_results(tmp_path)


@pytest.mark.parametrize("metrics", ["", "{", "[]", '"step"', '{"step": "a"}', "\x00", "3"])
def test_the_status_of_a_run_whose_curve_cannot_be_read_is_told(metrics, store, plan):
    spec = plan.distinct[0]
    (store.folder(spec) / "result.json").unlink()
    write_json(store.folder(spec) / "spec.json", asdict(spec))
    (store.folder(spec) / "metrics.jsonl").write_text(metrics)
    assert f"trial 0, setting 0: step 0 of {spec.steps}" in read_status(store.root).text()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda spec: [], "it is not a mapping"),
        (lambda spec: "", "Expecting value"),
        (lambda spec: "{", "Expecting property name"),
        (lambda spec: {**spec, "kind_of_tomorrow": 1}, "this version does not know its kind_of_tomorrow"),
        (lambda spec: _without(spec, "dataset"), "missing 1 required positional argument: 'dataset'"),
        (lambda spec: {**spec, "steps": "5"}, "invalid steps: '5'"),
        (lambda spec: {**spec, "targets": [1]}, "invalid targets: (1,)"),
        (lambda spec: {**spec, "hparams": None}, "invalid hparams: None"),
    ],
)
def test_a_spec_that_cannot_be_read_is_named_where_it_is_needed(damage, reason, store, plan, capsys):
    spec = plan.distinct[0]
    folder = store.folder(spec)
    file = folder / "spec.json"
    _write(file, damage(asdict(spec)))
    before = file.read_bytes()
    for command in (["diagnose", str(folder)], ["train", "--target", "0", "--output", str(folder)]):
        assert main(command) == 1
        message = capsys.readouterr().err
        assert message.startswith(f"shiftproof: error: {file} is damaged ({reason}")
        assert message.count("\n") == 1
    assert file.read_bytes() == before


def test_a_study_trains_and_shows_its_table_beside_what_it_cannot_read(tmp_path, capsys):
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "runs" / "x" / "result.json").write_text('{"metrics": [{}]}')
    options = ["--optimizers", "sgd", "--targets", "0", "--trials", "1", "--steps", "2", "--batch-size", "4"]
    assert main(["compare", "--dataset", "rotated_digits", *options, "--jobs", "1", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "skipped: " in printed.err
    assert "accuracy on unseen domains, %" in printed.out
    assert (tmp_path / "runs" / "x" / "result.json").read_text() == '{"metrics": [{}]}'
    [row] = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert row["status"] == "finished"


def test_what_only_some_runs_report_of_their_annealer_is_the_mean_of_those():
    plan = make_plan(Study(optimizers=("sgd",), targets=("0",), trials=2))
    results = results_of(plan, lambda spec: (0.5, 0.25, 0.75))
    first, second = plan.distinct
    results.result(first)["annealer"] = {"accepted": 1.0, "seconds": 2.0}
    results.result(second)["annealer"] = {"accepted": 3.0}
    assert build_tables(results)[0].rows[0].annealing == {"accepted": 2.0, "seconds": 2.0}
