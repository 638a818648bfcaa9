"""Combinations of finished runs: averages of weights and ensembles, against transcriptions, and as rows of tables."""

import csv
import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from sklearn.datasets import make_multilabel_classification

from shiftproof.base.field_error import FieldError
from shiftproof.base.method import Method
from shiftproof.cli import main
from shiftproof.data import Domain, DomainDataset
from shiftproof.studies import Study, combine_runs, open_data, read_plan, read_results, read_status, run_study
from shiftproof.studies.plan import read_spec
from shiftproof.tables import FORMATS, as_csv, as_text, build_tables
from shiftproof.training import (
    Inputs,
    Loop,
    MeanPrediction,
    Member,
    RunSpec,
    combine,
    combined_spec,
    load,
    read_predictions,
    read_result,
    train,
)
from shiftproof.training.combining import add_weights, mean_weights

CPU = torch.device("cpu")
ADAM = Method("erm", "adam")
STUDY = Study(
    optimizers=("adam", "sgd"), targets=("0", "45"), trials=2, hparam_trials=3, steps=12, checkpoint_freq=4,
    fixed={"data.batch_size": 4},
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    store = tmp_path_factory.mktemp("trained")
    run_study(STUDY, store, 1)
    return store


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory):
    """A store whose runs were combined over their settings."""
    store = tmp_path_factory.mktemp("made") / "store"
    shutil.copytree(trained, store)
    combine_runs(store)
    return store


@pytest.fixture
def store(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "store")
    return tmp_path / "store"


def _of(store, way, method=ADAM):
    """The combinations of a method, each with the folders of its members."""
    runs = store / "runs"
    for spec in read_plan(store).runs:
        if spec.method == method._replace(averaging=way):
            yield spec, [runs / name for name in spec.members]


def _weights(folder):
    return load_file(folder / "model.safetensors")


def _mean(folders):
    """The mean of weights in float64, tensor by tensor."""
    states = [_weights(folder) for folder in folders]
    return {name: np.mean([state[name].astype(np.float64) for state in states], axis=0) for name in states[0]}


def _logits(folder, spec, parts):
    """What the model in a folder puts out for parts of the domains, without the code that combines or evaluates."""
    model, data = load(folder), open_data(STUDY, "rotated_digits")
    inputs = Inputs(data, spec, model.network.normalisation, CPU)
    with torch.no_grad():
        return {
            (domain, part): (
                torch.cat([model(images) for images, _ in inputs.evaluation_batches(domain, part)]).double().numpy(),
                torch.cat([labels for _, labels in inputs.evaluation_batches(domain, part)]).numpy(),
            )
            for domain, part in parts
        }


def _softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_the_average_is_the_mean_of_the_weights(made):
    for spec, members in _of(made, "diwa"):
        assert len(members) == 3
        expected, found = _mean(members), _weights(made / "runs" / spec.name)
        assert found.keys() == expected.keys()
        for name, mean in expected.items():
            np.testing.assert_allclose(found[name], mean.astype(found[name].dtype), rtol=3e-7, atol=1e-12)
        result = read_result(made / "runs" / spec.name)
        [record] = result["metrics"]
        [(logits, labels)] = _logits(made / "runs" / spec.name, spec, [(0, "in")]).values()
        if spec.targets == ("0",):
            assert record["domains"]["0"]["in"]["accuracy"] == (logits.argmax(1) == labels).mean()


def test_integer_buffers_are_those_of_the_first():
    states = [{"steps": torch.tensor(n), "weight": torch.tensor([float(n)])} for n in (1, 4)]
    total = add_weights(add_weights({}, states[0]), states[1])
    assert mean_weights(total, 2) == {"steps": torch.tensor(1), "weight": torch.tensor([2.5], dtype=torch.float64)}


def test_an_ensemble_averages_probabilities(made):
    for spec, members in _of(made, "ensemble"):
        target = open_data(STUDY, "rotated_digits").domain_index(spec.targets[0])
        parts = [(target, "in"), (target, "out"), (2, "out")]
        each = [_logits(folder, spec, parts) for folder in members]
        [record] = read_result(made / "runs" / spec.name)["metrics"]
        kept = read_predictions(made / "runs" / spec.name)
        names = list(record["domains"])
        for domain, part in parts:
            labels = each[0][domain, part][1]
            mean = np.mean([_softmax(one[domain, part][0]) for one in each], axis=0)
            score = record["domains"][names[domain]][part]
            assert score["count"] == len(labels)
            assert score["accuracy"] == (mean.argmax(1) == labels).mean()
            np.testing.assert_allclose(score["loss"], -np.log(mean[range(len(labels)), labels]).mean(), rtol=1e-5)
            outputs, targets = kept.part(record["step"], names[domain], part)
            assert (targets == labels).all()
            np.testing.assert_allclose(np.exp(outputs.astype(np.float64)), mean, atol=2e-3)


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_the_mean_prediction_is_of_probabilities_or_values(task):
    random = np.random.default_rng(0)
    outputs = 30 * random.normal(size=(4, 7, 3))
    outputs[0, 0] = [-700, 0, 0]  # a probability of 1e-304
    mean = MeanPrediction(task)
    for one in outputs:
        mean.add(torch.from_numpy(one))
    found = mean.outputs.numpy()
    if task == "classification":
        np.testing.assert_allclose(np.exp(found), np.mean([_softmax(one) for one in outputs], axis=0), rtol=1e-12)
    elif task == "multilabel":
        expected = np.mean(1 / (1 + np.exp(-outputs)), axis=0)
        np.testing.assert_allclose(1 / (1 + np.exp(-found)), expected, rtol=1e-10)
    else:
        np.testing.assert_allclose(found, outputs.mean(axis=0), rtol=1e-12)
    assert np.isfinite(found).all()
    with pytest.raises(ValueError, match="nothing was added"):
        _ = MeanPrediction(task).outputs


def _validated(folder, spec, state=None):
    """The mean accuracy of a model, or of its network with other weights, on the sources' held-out parts."""
    data = open_data(STUDY, "rotated_digits")
    model = load(folder)
    if state is not None:
        model.network.load_state_dict({name: torch.from_numpy(np.asarray(values)) for name, values in state.items()})
    inputs = Inputs(data, spec, model.network.normalisation, CPU)
    rights = []
    with torch.no_grad():
        for source in inputs.sources:
            pairs = [(model(i).argmax(1), labels) for i, labels in inputs.evaluation_batches(source, "out")]
            rights.append(np.concatenate([(a == b).numpy() for a, b in pairs]).mean())
    return np.mean(rights)


def test_greedy_takes_what_does_not_lower_the_validation(made):
    took_several = 0
    for method in (ADAM, Method("erm", "sgd")):
        for spec, members in _of(made, "diwa_greedy", method):
            validations = {folder: _validated(folder, spec) for folder in members}
            taken, best = [], -1.0
            for folder in sorted(members, key=lambda one: -validations[one]):
                value = _validated(folder, spec, _mean([*taken, folder]))
                if not taken or value >= best:
                    taken, best = [*taken, folder], value
            result = read_result(made / "runs" / spec.name)
            assert result["took"] == [folder.name for folder in taken]
            took_several += len(taken) > 1
            assert _validated(made / "runs" / spec.name, spec) == pytest.approx(best)
            [record] = result["metrics"]
            sources = [parts for name, parts in record["domains"].items() if name not in spec.targets]
            held_out = [parts["out"]["accuracy"] for parts in sources]
            assert np.mean(held_out) == pytest.approx(best)
            assert best >= max(validations.values()) - 1e-12
    assert took_several


def test_tables_show_combinations_below_their_method_with_what_they_cost(made):
    results = read_results(made)
    [table] = build_tables(results)
    assert [str(row.method) for row in table.rows][:4] == [
        "erm + adam", "erm + adam + diwa", "erm + adam + diwa_greedy", "erm + adam + ensemble"
    ]  # fmt: skip
    plain, diwa, _, ensemble = table.rows[:4]
    assert (plain.members, diwa.members, ensemble.members) == (0, 3, 3)
    assert diwa.passes_per_step == ensemble.passes_per_step == 3 * plain.passes_per_step
    assert diwa.seconds > 3 * plain.seconds
    assert (diwa.mean.trials, diwa.mean.planned) == (2, 2)
    assert diwa.mean.difference.low is not None
    for name, text in FORMATS.items():
        assert "ensemble" in text(results, None, None), name
    assert "made of up to 3 finished runs of the method above" in as_text(results)
    lines = list(csv.DictReader(io.StringIO(as_csv(results))))
    assert {line["averaging"] for line in lines} == {"none", "diwa", "diwa_greedy", "ensemble"}
    for spec, members in _of(made, "ensemble"):
        result, parts = read_result(made / "runs" / spec.name), [read_result(one) for one in members]
        assert result["passes"] == sum(one["passes"] for one in parts)
        assert result["seconds"]["step"] == sum(one["seconds"]["step"] for one in parts)
        assert result["seconds"]["evaluation"] > sum(one["seconds"]["evaluation"] for one in parts)
        assert result["constant"] == parts[0]["constant"]


def test_the_status_and_the_lines_of_runs_count_them(made):
    status = read_status(made)
    assert status.text().startswith("comparison: 48 of 48 runs finished")
    rows = [json.loads(line) for line in (made / "runs.jsonl").read_text().splitlines()]
    assert sum(row["averaging"] == "diwa" for row in rows) == 8
    assert all(row["hparams"] == {} for row in rows if row["averaging"] == "diwa")  # members have their own


def test_what_was_made_is_not_made_again_and_a_kill_costs_one(made, tmp_path, monkeypatch):
    store = tmp_path / "store"
    shutil.copytree(made, store)
    names = [spec.name for spec in read_plan(store).runs if spec.members]
    times = {name: (store / "runs" / name / "result.json").stat().st_mtime_ns for name in names}
    before = (store / "study.json").read_text()
    (store / "runs" / names[3] / "result.json").unlink()
    combine_runs(store)
    again = {name: (store / "runs" / name / "result.json").stat().st_mtime_ns for name in names}
    assert [name for name in names if times[name] != again[name]] == [names[3]]
    assert (store / "study.json").read_text() == before
    monkeypatch.setattr("shiftproof.studies.combining.combine", None)  # would raise if it were called
    combine_runs(store)
    run_study(STUDY, store, 1)
    assert not any(spec.members for spec in read_plan(store).runs)
    combine_runs(store)
    assert (store / "study.json").read_text() == before


def test_more_members_make_new_rows_in_the_place_of_the_old(store):
    [first, *_] = [spec for spec in read_plan(store).runs if spec.targets == ("0",) and spec.method == ADAM]
    result = (store / "runs" / first.name / "result.json").read_text()
    (store / "runs" / first.name / "result.json").unlink()
    combine_runs(store, ways=["diwa"], methods=["erm + adam"])
    before = {spec.name for spec, _ in _of(store, "diwa")}
    assert {len(spec.members) for spec, _ in _of(store, "diwa")} == {2, 3}
    (store / "runs" / first.name / "result.json").write_text(result)
    combine_runs(store, ways=["ensemble"], methods=["erm + adam"])
    assert {spec.name for spec, _ in _of(store, "diwa")} == before  # of another way
    combine_runs(store, ways=["diwa"], methods=["erm + adam"])
    after = {spec.name for spec, _ in _of(store, "diwa")}
    assert len(after & before) == 3
    assert len(after) == 4
    assert [str(method) for method in read_plan(store).grids[0].methods] == [
        "erm + adam", "erm + adam + diwa", "erm + adam + ensemble", "erm + sgd"
    ]  # fmt: skip


def test_trials_make_one_result_without_an_error(store, capsys):
    assert main(["study", "combine", str(store), "--over", "trials", "--method", "erm + adam"]) == 0
    assert "erm + adam + diwa" in capsys.readouterr().out
    [table] = build_tables(read_results(store))
    rows = {str(row.method): row for row in table.rows}
    assert list(rows) == ["erm + adam", "erm + adam + diwa", "erm + adam + ensemble", "erm + sgd"]
    row = rows["erm + adam + diwa"]
    assert (row.members, row.mean.trials, row.mean.planned, row.mean.score.error) == (6, 1, 1, None)
    for found, one in ((row.mean, rows["erm + adam"].mean), (row.cells["45"], rows["erm + adam"].cells["45"])):
        assert found.difference.low is None
        assert found.difference.mean == pytest.approx(found.score.mean - one.score.mean)
    assert sorted(map(str, table.ranked)) == ["erm + adam", "erm + sgd"]  # on all their trials
    assert read_status(store).text().startswith("comparison: 28 of 28 runs finished")
    assert (store / "report.html").exists()
    with pytest.raises(ValueError, match="diwa_greedy cannot choose among runs of several trials"):
        combine_runs(store, over="trials", ways=["diwa_greedy"])


def test_a_row_over_trials_has_a_mean_where_a_target_lacks_its_first_trial(store):
    for spec in read_plan(store).runs:
        if spec.targets == ("0",) and spec.trial_seed == 0:
            (store / "runs" / spec.name / "result.json").unlink()
    [table] = build_tables(combine_runs(store, over="trials", ways=["ensemble"]))
    [row] = [row for row in table.rows if str(row.method) == "erm + adam + ensemble"]
    assert row.mean.score.mean == pytest.approx((row.cells["0"].score.mean + row.cells["45"].score.mean) / 2)


def test_a_greedy_average_of_runs_on_all_data_is_refused(tmp_path):
    study = replace(STUDY, optimizers=("adam",), targets=("0",), trials=1, hparam_trials=2, steps=4, all_data=True)
    run_study(study, tmp_path / "store", 1)
    with pytest.raises(ValueError, match="diwa_greedy cannot choose among runs on all data: they have trained on"):
        combine_runs(tmp_path / "store", ways=["diwa_greedy"])
    combine_runs(tmp_path / "store")
    made = [spec.averaging for spec in read_plan(tmp_path / "store").runs if spec.members]
    assert made == ["diwa", "ensemble"]


def test_an_average_is_a_model_and_an_ensemble_none(made, tmp_path, capsys):
    [diwa, *_], [ensemble, *_] = _of(made, "diwa"), _of(made, "ensemble")
    assert load(made / "runs" / diwa[0].name).classes == load(diwa[1][0]).classes
    with pytest.raises(ValueError, match="holds an ensemble of 3 runs, which has no single model"):
        load(made / "runs" / ensemble[0].name)
    run, out = str(made / "runs" / ensemble[0].name), str(tmp_path / "model.pt2")
    for command in (["export", run, "--output", out], ["evaluate", run, "--data-dir", str(tmp_path)]):
        assert main(command) == 1
        assert "which has no single model" in capsys.readouterr().err


def test_a_combination_is_never_trained(made):
    [(spec, _), *_] = _of(made, "diwa")
    data = open_data(STUDY, "rotated_digits")
    with pytest.raises(FieldError, match="diwa is made of finished runs, by study combine, and never trained"):
        train(spec, data, made / "nowhere", device=CPU)
    assert not (made / "nowhere").exists()
    with pytest.raises(FieldError, match="never trained"):
        Loop(spec, data, CPU, None)
    with pytest.raises(FieldError, match="averaging"):
        Study(averaging="diwa")


def _refused(store, **how):
    with pytest.raises(ValueError) as error:
        combine_runs(store, **how)
    assert not any(spec.members for spec in read_plan(store).runs)
    return str(error.value)


def test_runs_that_cannot_be_combined_are_refused_with_their_number(store):
    runs = [spec for spec in read_plan(store).runs if spec.method == ADAM]
    kept = store / "runs" / runs[0].name / "model.safetensors"
    held = kept.read_bytes()
    kept.unlink()
    (store / "runs" / runs[4].name / "model.json").unlink()
    assert _refused(store).startswith("2 of 24 runs keep no model and cannot be combined, the first in ")
    assert _refused(store, methods=["erm + adam"]).startswith("2 of 12 runs keep no model")
    kept.write_bytes(held)
    description = json.loads((store / "runs" / runs[5].name / "model.json").read_text())
    for number, width in ((4, 64), (5, 32)):
        (store / "runs" / runs[number].name / "model.json").write_text(json.dumps(description | {"model": str(width)}))
    assert _refused(store).startswith("2 of 24 runs have another architecture than the first")
    combine_runs(store, methods=["erm + sgd"])


def test_too_few_finished_runs_are_refused(store):
    assert "Did you mean" in _refused(store, methods=["erm + adm"])
    assert "unknown way to combine runs 'diva'" in _refused(store, ways=["diva"])
    assert "unknown part of a study" in _refused(store, over="targets")
    for spec in read_plan(store).runs:
        if spec.hparam_seed:
            (store / "runs" / spec.name / "result.json").unlink()
    message = "8 runs have finished, no two of them of the same target and trial: combine them over trials"
    assert _refused(store) == message
    for spec in read_plan(store).runs:
        (store / "runs" / spec.name / "result.json").unlink(missing_ok=True)
    assert _refused(store) == "no run of erm + adam, erm + sgd has finished: there is nothing to combine"
    with pytest.raises(FileNotFoundError, match="holds no study"):
        combine_runs(store / "runs")


def test_methods_that_would_make_one_row_or_read_the_batch_are_refused(tmp_path):
    study = replace(STUDY, optimizers=("adam",), averaging=("none", "ema"), targets=("0",), trials=1, steps=4)
    run_study(study, tmp_path / "averaged", 1)
    assert "erm + adam and erm + adam + ema would make the same row" in _refused(tmp_path / "averaged")
    combine_runs(tmp_path / "averaged", methods=["erm + adam + ema"], ways=["ensemble"])
    assert list(map(str, read_plan(tmp_path / "averaged").grids[0].methods)) == [
        "erm + adam", "erm + adam + ema", "erm + adam + ensemble"
    ]  # fmt: skip
    run_study(replace(study, algorithms=("mtl",), averaging=("none",)), tmp_path / "mtl", 1)
    assert "mtl + adam cannot be combined: its predictions depend on" in _refused(tmp_path / "mtl")


def test_other_data_are_refused(store, monkeypatch):
    data = open_data(STUDY, "rotated_digits")
    monkeypatch.setattr("shiftproof.studies.combining.open_data_of", lambda *given: replace(data, fingerprint="x"))
    assert "rotated_digits is not the one that the runs were trained on" in _refused(store)


def test_vectors_are_averaged_within_a_trial_only(tmp_path):
    study = Study(datasets=("vowels",), optimizers=("adam",), trials=2, hparam_trials=2, steps=4)
    study = replace(study, targets=open_data(study, "vowels").domain_names[:1])
    run_study(study, tmp_path / "searched", 1)
    message = "2 of 4 runs have another architecture than the first that their weights would be averaged with"
    assert message in _refused(tmp_path / "searched")  # the width is searched
    combine_runs(tmp_path / "searched", ways=["ensemble"])
    store = tmp_path / "fixed"
    run_study(replace(study, fixed={"model.width": 8, "model.depth": 2}), store, 1)
    assert "2 of 4 runs have inputs prepared otherwise than the first" in _refused(store, over="trials")
    combine_runs(store, over="trials", ways=["ensemble"])
    combine_runs(store, ways=["diwa"])
    rows = {str(row.method): row for row in build_tables(read_results(store))[0].rows}
    assert rows["erm + adam + ensemble"].mean.planned == 1
    assert rows["erm + adam + diwa"].mean.planned == 2


def _arrays(task):
    """A small data set of vectors in three domains."""
    random = np.random.default_rng(0)
    domains = []
    for name in "abc":
        inputs, labels = make_multilabel_classification(60, 5, n_classes=3, random_state=ord(name))
        targets = labels.astype(np.int64) if task == "multilabel" else (inputs @ random.normal(size=5)).astype("f4")
        domains.append(Domain(name, inputs.astype(np.float32), targets))
    classes = ("x", "y", "z") if task == "multilabel" else ("price",)
    return DomainDataset("made", tuple(domains), classes, "vectors", "x", task=task)


def _spec(data, trial, rate):
    return RunSpec(
        data.name, data.fingerprint, "erm", "adam", "none", ("a",), trial, 0,
        {"data.batch_size": 8, "model.dropout": 0.0, "model.width": 8, "model.depth": 2, "optimizer.lr": rate},
        20, 10, "mlp", task=data.task,
    )  # fmt: skip


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_ensembles_of_other_tasks_average_what_they_predict(task, tmp_path):
    data = _arrays(task)
    members = []
    for trial, rate in ((0, 0.01), (0, 0.03), (1, 0.02)):
        spec = _spec(data, trial, rate)
        folder = tmp_path / spec.name
        members.append(Member(spec, folder, train(spec, data, folder, device=CPU)))
    spec = combined_spec("ensemble", [member.spec for member in members])
    result = combine(spec, members, data, tmp_path / "made", CPU)
    predictions = []
    rows = Inputs(data, spec, None, CPU).rows(0, "in")
    raw, targets = torch.from_numpy(data.domains[0].inputs[rows]), data.domains[0].targets[rows]
    for member in members:
        model = load(member.folder)
        with torch.no_grad():
            predictions.append(model(model.normalise(raw)).double().numpy())
    [record] = result["metrics"]
    measures = record["domains"]["a"]["in"]["measures"]
    if task == "regression":
        mean = np.mean(predictions, axis=0).reshape(-1)
        assert measures["rmse"] == pytest.approx(np.sqrt(np.mean((mean - targets) ** 2)), rel=1e-5)
    else:
        mean = np.mean(1 / (1 + np.exp(-np.array(predictions))), axis=0)
        loss = -(targets * np.log(mean) + (1 - targets) * np.log(1 - mean)).mean()
        assert record["domains"]["a"]["in"]["loss"] == pytest.approx(loss, rel=1e-5)
    kept = read_predictions(tmp_path / "made").part(record["step"], "a", "in")
    assert kept.outputs.shape == targets.shape
    assert result["passes"] == sum(member.result["passes"] for member in members)


def test_specs_of_earlier_stores_are_read_and_keep_their_names(made):
    [spec, *_] = read_plan(made).runs
    entries = json.loads((made / "runs" / spec.name / "spec.json").read_text())
    del entries["members"]
    assert read_spec(entries) == spec
    assert read_spec(entries).name == spec.name
    [(combined, _), *_] = _of(made, "diwa")
    held = json.loads((made / "runs" / combined.name / "spec.json").read_text())
    assert read_spec(held).members == combined.members
    assert combined.name != replace(combined, members=combined.members[:2]).name
    with pytest.raises(ValueError, match="invalid members"):
        read_spec(held | {"members": [1]})
