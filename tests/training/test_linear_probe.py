"""The linear probe: held to scikit-learn and to closed forms, what validation chooses, and what starts from it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from shiftproof.base.field_error import FieldError
from shiftproof.data import from_arrays
from shiftproof.models import build_network, weights_fingerprint
from shiftproof.protocol import score
from shiftproof.studies import Study, make_plan, read_results, run_study
from shiftproof.tables import build_tables
from shiftproof.training import Loop, RunPlace, read_result, train, train_together
from shiftproof.training.linear_probe import PATIENCE, PENALTIES, fit_probe
from training.killed import train_killed_at

CPU = torch.device("cpu")
SIZES = (60, 90, 75)


def _domains(task, seed=0):
    """Three domains of unequal size, whose rows a linear model predicts in part; one column is constant."""
    random = np.random.default_rng(seed)
    directions = random.normal(size=(6, 3))
    domains = {}
    for number, size in enumerate(SIZES):
        rows = random.normal(size=(size, 6)) * [1, 10, 0.1, 1, 1, 0] + [0, 5, 0, number, 0, 2]
        scores = (rows - rows.mean(0)) @ directions / 4 + random.normal(size=(size, 3))
        targets = {
            "classification": scores.argmax(1),
            "multilabel": (scores > 0).astype(np.float32),
            "regression": 40 + 3 * scores[:, 0].astype(np.float32),
        }[task]
        domains[f"d{number}"] = (rows.astype(np.float32), targets)
    return domains


def _fitted(make_spec, task="classification", **changes):
    """The loop of a probe on made-up vectors, and the training rows of its sources as float64 arrays."""
    data = from_arrays("made up", _domains(task), task=task)
    facts = {"dataset": data.name, "data_fingerprint": data.fingerprint, "targets": ("d0",), "kind": "vectors"}
    facts |= {"task": task, "model": "linear", "algorithm": "probe", "optimizer": "none", "steps": 1}
    facts |= {"hparams": {"data.batch_size": 4, "model.dropout": 0.0}, "checkpoint_freq": 1}
    loop = Loop(make_spec(**facts, **changes), data, CPU, None)
    rows = {}
    for part in ("in", "out"):
        rows[part] = []
        for domain in loop.inputs.sources:
            inputs, targets = map(torch.cat, zip(*loop.inputs.evaluation_batches(domain, part), strict=True))
            rows[part].append((inputs.double().numpy(), targets.numpy()))
    return loop, rows


def _standardised(rows):
    together = np.concatenate([inputs for inputs, _ in rows["in"]])
    mean, std = together.mean(0), together.std(0)
    std[std == 0] = 1
    return {part: [((inputs - mean) / std, targets) for inputs, targets in of] for part, of in rows.items()}


def _logistic(training, penalty, weights_of):
    inputs, targets = (np.concatenate(one) for one in zip(*training, strict=True))
    weights = np.concatenate([weights_of(of) for _, of in training])
    # scikit-learn minimises C * sum of weighted losses + |W|^2 / 2
    model = LogisticRegression(C=1 / penalty, solver="newton-cholesky", tol=1e-10)
    return model.fit(inputs, targets, sample_weight=weights / len(training))


def _alike(targets):
    return np.full(len(targets), 1 / len(targets))


def _by_class(targets):
    classes, counts = np.unique(targets, return_counts=True)
    return 1 / len(classes) / counts[np.searchsorted(classes, targets)]


@pytest.mark.parametrize(("sampling", "weights_of"), [("uniform", _alike), ("balanced", _by_class)])
def test_outputs_are_those_of_scikit_learn_at_the_penalty_that_it_would_choose(sampling, weights_of, make_spec):
    loop, rows = _fitted(make_spec, sampling=sampling)
    standard = _standardised(rows)
    models = [_logistic(standard["in"], penalty, weights_of) for penalty in PENALTIES]
    validations = [np.mean([(m.predict(x) == y).mean() for x, y in standard["out"]]) for m in models]
    best = 0
    for number, validation in enumerate(validations):
        if validation > validations[best]:
            best = number
        if number - best == PATIENCE:
            break
    assert loop.probe.penalty == PENALTIES[best]
    assert loop.probe.converged
    for (inputs, _), (standardised, _) in zip(rows["out"], standard["out"], strict=True):
        found = loop.algorithm.predict(torch.from_numpy(inputs).float()).log_softmax(1).detach().numpy()
        np.testing.assert_allclose(found, models[best].predict_log_proba(standardised), atol=2e-3)


def test_a_quantity_is_fitted_as_ridge_regression_does(make_spec):
    loop, rows = _fitted(make_spec, "regression")
    standard, variance = _standardised(rows), loop.algorithm.network.quantity.std**2
    inputs, targets = (np.concatenate(one) for one in zip(*standard["in"], strict=True))
    weights = np.concatenate([_alike(of) for _, of in standard["in"]]) / len(standard["in"])
    centre, middle = weights @ inputs, weights @ targets
    # the classifier's weights, which are penalised, give values in units of the standard deviation
    gram = (inputs - centre).T @ (weights[:, None] * (inputs - centre)) * 2 + loop.probe.penalty * np.eye(6)
    slope = np.linalg.solve(gram, 2 * (inputs - centre).T @ (weights * (targets - middle))) / np.sqrt(variance)
    for (raw, _), (x, _) in zip(rows["out"], standard["out"], strict=True):
        found = loop.algorithm.predict(torch.from_numpy(raw).float()).detach().numpy()[:, 0]
        np.testing.assert_allclose(found, middle + np.sqrt(variance) * (x - centre) @ slope, rtol=1e-4)


def test_several_labels_are_fitted_to_where_the_gradient_vanishes(make_spec):
    loop, rows = _fitted(make_spec, "multilabel")
    standard, classifier = _standardised(rows), loop.algorithm.network.classifier
    together = np.concatenate([inputs for inputs, _ in rows["in"]])
    std = np.where(together.std(0) == 0, 1, together.std(0))
    weights = (classifier.weight.detach().double() * torch.from_numpy(std)).requires_grad_()
    biases = (classifier.bias.double() + classifier.weight.double() @ torch.from_numpy(together.mean(0))).detach()
    biases.requires_grad_()
    losses = [
        F.binary_cross_entropy_with_logits(F.linear(torch.from_numpy(x), weights, biases), torch.from_numpy(y).double())
        for x, y in standard["in"]
    ]
    (sum(losses) / len(losses) + loop.probe.penalty / 2 * weights.square().sum()).backward()
    assert max(weights.grad.abs().max(), biases.grad.abs().max()) < 5e-5


def test_the_measure_of_the_run_chooses(make_spec):
    loop, rows = _fitted(make_spec, metric="nll")
    standard = _standardised(rows)
    models = [_logistic(standard["in"], penalty, _alike) for penalty in PENALTIES]
    losses = [
        np.mean([score("classification", m.decision_function(x), y)["nll"]
                 for x, y in standard["out"]]) for m in models
    ]  # fmt: skip
    assert loop.probe.penalty == PENALTIES[int(np.argmin(losses))]


@pytest.fixture
def lenet(tmp_path):
    file = tmp_path / "lenet.safetensors"
    save_file(build_network("small_lenet", (1, 28, 28), 10, dropout=0.0, seed=3).featurizer.state_dict(), file)
    return file


@pytest.fixture
def spec_of(make_spec, lenet):
    def make(algorithm, **changes):
        facts = {"algorithm": algorithm, "model": "small_lenet", "weights": weights_fingerprint(lenet)}
        return make_spec(**{**facts, **changes})

    return make


def test_lp_ft_starts_from_the_probe_and_trains_all_of_the_network(spec_of, digits, lenet, tmp_path):
    loop = Loop(spec_of("lp_ft"), digits, CPU, lenet)
    given = load_file(lenet)
    start = {name: tensor.clone() for name, tensor in loop.algorithm.network.state_dict().items()}
    for name, tensor in given.items():
        assert torch.equal(start[f"featurizer.{name}"], tensor)
    probe = Loop(spec_of("probe", optimizer="none", trained="head", steps=1), digits, CPU, lenet)
    assert probe.probe == loop.probe
    for name in ("classifier.weight", "classifier.bias"):
        assert torch.equal(probe.algorithm.network.state_dict()[name], start[name])
    loop.run()
    assert not any(torch.equal(p, start[name]) for name, p in loop.algorithm.network.named_parameters())


def test_a_probe_is_scored_as_it_is_fitted_and_counts_no_passes(spec_of, digits, lenet, tmp_path):
    spec = spec_of("probe", optimizer="none", trained="head", steps=1, checkpoint_freq=1)
    result = train(spec, digits, tmp_path / "run", device=CPU, weights=lenet)
    assert (result["steps"], result["passes"], result["probe"]["converged"]) == (1, 0, True)
    fitted = Loop(spec, digits, CPU, lenet).algorithm.network.state_dict()
    kept = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(kept[name], fitted[name]) for name in kept)


def test_a_killed_run_starts_from_the_same_probe(spec_of, digits, lenet, tmp_path):
    spec = spec_of("lp_ft", averaging="wise_ft")
    train_killed_at(9, spec, digits, tmp_path / "killed", weights=lenet)
    results = [train(spec, digits, tmp_path / name, device=CPU, weights=lenet) for name in ("killed", "whole")]
    assert {**results[0], "seconds": None} == {**results[1], "seconds": None}
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("killed", "whole")]
    assert files[0] == files[1]


def test_runs_that_share_a_training_share_the_time_of_its_probe(spec_of, digits, lenet, tmp_path, monkeypatch):
    class Slow(Loop):
        def __init__(self, *args):
            super().__init__(*args)
            self.progress.seconds["step"] += 1000

    monkeypatch.setattr("shiftproof.training.run.Loop", Slow)
    runs = [RunPlace(spec_of("lp_ft", averaging=name), tmp_path / name) for name in ("none", "ema")]
    results = train_together(runs, digits, device=CPU, weights=lenet)
    assert all(500 < result["seconds"]["step"] < 1000 for result in results)
    assert results[0]["probe"] == results[1]["probe"]


def test_behind_a_kept_trunk_it_is_the_same(spec_of, digits, lenet, tmp_path, monkeypatch):
    monkeypatch.setenv("SHIFTPROOF_CACHE", str(tmp_path / "cache"))
    probe = spec_of("probe", optimizer="none", trained="head", steps=1)
    loops = [Loop(replace(probe, cache=cache), digits, CPU, lenet) for cache in ("none", "float32")]
    weights = [loop.algorithm.network.classifier.weight for loop in loops]
    assert loops[0].probe.penalty == loops[1].probe.penalty
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-5)


def test_features_that_are_not_finite_are_told(make_spec):
    loop, _ = _fitted(make_spec)
    network = loop.algorithm.network
    network.featurizer = torch.nn.Threshold(1e9, float("nan"))
    with pytest.raises(ValueError, match="the features that the given weights compute are not finite"):
        fit_probe(loop.spec, network, loop.inputs, loop.dataset.domain_names)


def _study(lenet, **fields):
    facts = {"model": "small_lenet", "weights": lenet, "algorithms": ("erm", "probe"), "optimizers": ("adam", "sgd")}
    facts |= {"targets": ("30",), "trials": 1, "steps": 6, "checkpoint_freq": 3, "fixed": {"data.batch_size": 4}}
    return Study(**{**facts, **fields})


def test_a_table_has_one_row_of_it_whatever_takes_the_others_steps(lenet, tmp_path):
    study = _study(lenet, averaging=("none", "ema"), schedule="cosine", warm_up=2, layer_decay=0.5, hparam_trials=2)
    assert [str(method) for method in study.methods][-1:] == ["probe"]
    assert len(study.methods) == 5
    plan = make_plan(study)
    [probe] = {spec.name: spec for spec in plan.runs if spec.algorithm == "probe"}.values()  # both settings are one run
    assert (probe.optimizer, probe.steps, probe.trained, probe.cache) == ("none", 1, "head", "float16")
    assert (probe.schedule, probe.warm_up, probe.layer_decay, probe.averaging) == ("constant", 0, 1.0, "none")
    other = make_plan(_study(lenet, steps=12, optimizers=("adam",))).runs[-1]
    assert other.name == probe.name
    results = run_study(replace(study, hparam_trials=1), tmp_path / "out", 1)
    [table] = build_tables(results)
    assert table.terms["steps"] == 6
    assert [row.mean.trials for row in table.rows] == [1] * 5
    assert build_tables(read_results(tmp_path / "out"))[0].rows == table.rows


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": None}, "probe fits a linear probe to the features of given weights, and small_lenet would start"),
        ({"weights": None, "algorithms": ("lp_ft",)}, "lp_ft fits a linear probe"),
        ({"optimizers": ("none",)}, "none"),
    ],
)
def test_what_is_refused(fields, message, lenet):
    with pytest.raises(FieldError, match=message):
        make_plan(_study(lenet, **fields))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adam"}, "probe takes no optimizer, not adam"),
        ({"averaging": "ema"}, "probe takes no steps, and there is nothing to average"),
        ({"annealer": "gga"}, "probe takes no steps for gga to act on"),
        ({"algorithm": "erm"}, "erm takes steps by an optimizer: name one"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes, message, spec_of, digits, lenet, tmp_path):
    spec = spec_of("probe", **{"optimizer": "none", "trained": "head", "steps": 1, **changes}) if "algorithm" not in (
        changes) else spec_of(changes["algorithm"], optimizer="none")  # fmt: skip
    with pytest.raises(FieldError, match=message):
        train(spec, digits, tmp_path / "run", device=CPU, weights=lenet)
    assert read_result(tmp_path / "run") is None
