"""Every algorithm with Adam on each kind and task that it allows, and every optimizer with ERM; the rest is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.metrics import mean_squared_error
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional as F

from algorithms.made_up_runs import FROM_SCRATCH
from shiftproof.algorithms import ALGORITHMS
from shiftproof.base.field_error import FieldError
from shiftproof.base.hparams import Hparam
from shiftproof.data import (
    TASKS,
    Column,
    Domain,
    DomainDataset,
    Preparation,
    batch_indices,
    number_columns,
    split_domain,
)
from shiftproof.models import MODELS, Featurizer, Model, Normalisation
from shiftproof.optim import OPTIMIZERS
from shiftproof.protocol import PROTOCOLS, search_space, select, setting
from shiftproof.studies import Study, make_plan
from shiftproof.training import RunSpec, train
from shiftproof.training.prepared import balanced_weights, prepared
from shiftproof.training.saved_model import load

CPU = torch.device("cpu")
COLUMNS = (Column("age"), Column("dose"), Column("site", ("a", "b", "c")))
CLASSES = {"classification": ("no", "yes", "maybe"), "multilabel": ("left", "right"), "regression": ("height",)}


def _domain(name, task, seed):
    random = np.random.default_rng(seed)
    inputs = np.stack([random.normal(50, 10, 60), random.normal(0, 1, 60), random.integers(0, 3, 60)], axis=1)
    signal = inputs[:, 0] + 5 * inputs[:, 1]
    targets = {
        "classification": np.digitize(signal, [45, 55]),
        "multilabel": np.stack([signal > 50, inputs[:, 1] > 0], axis=1).astype(np.int64),
        "regression": (170 + signal).astype(np.float32),
    }[task]
    inputs[::7, 1] = np.nan
    return Domain(name, inputs.astype(np.float32), targets)


def table(task, columns=COLUMNS):
    domains = tuple(_domain(name, task, seed) for seed, name in enumerate(("north", "south", "east", "west")))
    return DomainDataset("clinics", domains, CLASSES[task], "vectors", "x", None, task, columns)


def pictures(task):
    random = np.random.default_rng(0)
    domains = []
    for one in table(task).domains:
        domains.append(Domain(one.name, random.integers(0, 256, (60, 3, 16, 16), dtype=np.uint8), one.targets))
    return DomainDataset("prints", tuple(domains), CLASSES[task], "small_images", "x", None, task)


def spec_of(dataset, algorithm="erm", optimizer="adam", **changes):
    model = "mlp" if dataset.kind == "vectors" else "small_conv"
    space = search_space(dataset.name, dataset.kind, False, algorithm, optimizer, "none", "short", (), model)
    facts = {
        "dataset": dataset.name, "data_fingerprint": dataset.fingerprint, "algorithm": algorithm,
        "optimizer": optimizer, "annealer": "none", "targets": ("west",), "trial_seed": 0, "hparam_seed": 0,
        "hparams": setting(space, {}, 0, 0), "steps": 2, "checkpoint_freq": 2, "model": model, "task": dataset.task,
        "score_targets": True,
    }  # fmt: skip
    return RunSpec(**{**facts, **changes})


def allowed(dataset, algorithm):
    return dataset.kind in ALGORITHMS[algorithm].kinds and dataset.task in ALGORITHMS[algorithm].tasks


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "task"),  # pictures of classes are in the contract of algorithms
    [
        (table, "classification"),
        (table, "multilabel"),
        (table, "regression"),
        (pictures, "multilabel"),
        (pictures, "regression"),
    ],
)
@pytest.mark.parametrize("algorithm", FROM_SCRATCH)
def test_an_algorithm_trains_on_what_it_takes_and_refuses_the_rest(algorithm, task, make, tmp_path):
    dataset = make(task)
    spec = spec_of(dataset, algorithm)
    if not allowed(dataset, algorithm):
        with pytest.raises(FieldError, match=f"{algorithm} (takes|is for) .*: {ALGORITHMS[algorithm].limits[:30]}"):
            train(spec, dataset, tmp_path, device=CPU)
        return
    result = train(spec, dataset, tmp_path, device=CPU)
    assert result["status"] == "finished"
    assert all(np.isfinite(record["loss"]) for record in result["metrics"])
    measures = result["metrics"][-1]["domains"]["west"]["in"]["measures"]
    assert all(value is None or np.isfinite(value) for value in measures.values())


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizer_trains_on_vectors(optimizer, task, tmp_path):
    dataset = table(task)
    assert train(spec_of(dataset, optimizer=optimizer), dataset, tmp_path, device=CPU)["status"] == "finished"


def test_a_model_of_another_kind_is_refused(tmp_path):
    with pytest.raises(FieldError, match="model 'small_conv' takes photographs and small_images, and clinics has vect"):
        train(spec_of(table("regression"), model="small_conv"), table("regression"), tmp_path, device=CPU)
    with pytest.raises(FieldError, match="model 'mlp' takes vectors, and prints has small_images"):
        train(spec_of(pictures("regression"), model="mlp"), pictures("regression"), tmp_path, device=CPU)


def test_a_regression_learns_in_the_unit_of_its_targets(tmp_path):
    """Better than the mean of the sources, and the kept model repeats the recorded error on raw rows."""
    dataset = table("regression")
    spec = spec_of(dataset, steps=200, checkpoint_freq=50)
    result = train(spec, dataset, tmp_path, device=CPU)
    rows = split_domain(dataset.domains[3], "random", 0, 3).in_
    raw, heights = dataset.domains[3].inputs[rows], dataset.domains[3].targets[rows]
    model = load(tmp_path)
    with torch.no_grad():
        predicted = model(model.normalise(torch.from_numpy(raw)))[:, 0].numpy()
    best = min(result["metrics"], key=lambda record: sum(
        record["domains"][name]["out"]["measures"]["rmse"] for name in ("north", "south", "east")
    ))  # fmt: skip
    recorded = best["domains"]["west"]["in"]["measures"]["rmse"]
    assert mean_squared_error(heights, predicted) ** 0.5 == pytest.approx(recorded, rel=1e-4)
    assert recorded < 0.6 * result["constant"]["west"]["rmse"]
    known = np.concatenate([
        domain.targets[split_domain(domain, "random", 0, i).in_] for i, domain in enumerate(dataset.domains[:3])
    ])  # fmt: skip
    constant = mean_squared_error(heights, np.full(len(heights), known.mean(dtype=np.float64))) ** 0.5
    assert result["constant"]["west"]["rmse"] == pytest.approx(constant, rel=1e-6)


@pytest.mark.parametrize("where", ["target", "held out"])
def test_only_training_rows_have_a_say_in_what_is_fitted(where):
    dataset = table("regression")
    spec = spec_of(dataset)
    fitted = prepared(spec, dataset)
    changed = []
    for i, domain in enumerate(dataset.domains):
        inputs, targets, split = domain.inputs.copy(), domain.targets.copy(), split_domain(domain, "random", 0, i)
        rows = split.out if where == "held out" else slice(None) if domain.name == "west" else slice(0)
        inputs[rows], targets[rows] = 1e6, 1e6
        changed.append(Domain(domain.name, inputs, targets))
    other = prepared(spec, DomainDataset(
        "clinics", tuple(changed), ("height",), "vectors", "y", None, "regression", (*COLUMNS[:2], Column("site"))
    ))  # fmt: skip
    assert other.quantity == fitted.quantity
    assert other.preparation.parts[:2] == fitted.preparation.parts[:2]


def test_preparation_is_scikit_learns():
    rows = np.concatenate([domain.inputs for domain in table("regression").domains])
    rows[0, 2] = np.nan
    ours = Preparation.fit(COLUMNS, rows)
    numbers = SimpleImputer(strategy="median", add_indicator=True)
    imputed = numbers.fit_transform(rows[:, :2].astype(np.float64))
    expected = make_column_transformer((OneHotEncoder(min_frequency=5, sparse_output=False), [0])).fit_transform(
        rows[:, 2:].astype(np.float64)
    )
    both = ours(rows)
    np.testing.assert_allclose(both[:, :2], np.stack([
        StandardScaler().fit_transform(imputed[:, :1])[:, 0], StandardScaler().fit_transform(imputed[:, 1:2])[:, 0]
    ], axis=1), rtol=1e-5, atol=1e-6)  # fmt: skip
    np.testing.assert_array_equal(both[:, 2], imputed[:, 2])
    np.testing.assert_array_equal(both[:, 3:], expected)
    assert ours.names == (
        "age", "dose", "dose is missing", "site is a", "site is b", "site is c", "site is rare or unseen"
    )  # fmt: skip


def test_columns_fitted_together_are_as_if_each_were_alone():
    """Bit for bit: sums of float64 depend on their order."""
    random = np.random.default_rng(0)
    rows = random.lognormal(size=(777, 37)).astype(np.float32)
    rows[random.random(rows.shape) < 0.3] = np.nan
    rows[:, 3], rows[:, 4], rows[:, 5] = np.nan, 2.5, 1e6 + np.arange(777) / 8
    for i, part in enumerate(Preparation.fit(number_columns(37), rows).parts):
        one = rows[:, i : i + 1].astype(np.float64)
        imputer = SimpleImputer(strategy="median", keep_empty_features=True).fit(one)
        scaler = StandardScaler().fit(imputer.transform(one))
        assert (part.fill, part.mean, part.scale) == (imputer.statistics_[0], scaler.mean_[0], scaler.scale_[0])
        assert part.indicates == np.isnan(one).any()


def test_a_preparation_survives_json_and_has_a_place_for_the_unseen():
    rows = np.array([[0.0], [0.0], [0.0], [0.0], [0.0], [1.0]], dtype=np.float32)
    fitted = Preparation.fit((Column("site", ("a", "b", "c")),), rows)
    again = Preparation.from_json(json.loads(json.dumps(fitted.as_json())))
    assert again == fitted
    assert again.names == ("site is a", "site is rare or unseen")
    asked = np.array([[0], [1], [2], [np.nan], [9]], dtype=np.float32)
    assert again(asked).tolist() == [[1, 0], [0, 1], [0, 1], [0, 1], [0, 1]]
    with pytest.raises(ValueError, match="no preparation of a column"):
        Preparation.from_json([{"name": "site", "places": [0]}])


def test_balanced_batches_draw_the_classes_of_a_domain_alike():
    classes = np.array([0] * 90 + [2] * 9 + [5])
    rows = np.arange(1000, 1100)
    drawn = np.concatenate([batch_indices([rows], 30, 0, step, [classes])[0] for step in range(1, 401)])
    shares = np.bincount(classes[drawn - 1000], minlength=6) / len(drawn)
    assert shares[[0, 2, 5]] == pytest.approx(1 / 3, abs=0.015)
    assert shares.sum() == shares[[0, 2, 5]].sum()
    within = np.bincount(drawn - 1000, minlength=100)[:90]
    assert within.min() > 0.5 * within.mean()
    again = batch_indices([rows], 30, 0, 7, [classes])[0]
    np.testing.assert_array_equal(again, batch_indices([rows], 30, 0, 7, [classes])[0])


def test_balanced_weights_are_scikit_learns():
    dataset = table("classification")
    spec = spec_of(dataset)
    known = np.concatenate([
        domain.targets[split_domain(domain, "random", 0, i).in_] for i, domain in enumerate(dataset.domains[:3])
    ])  # fmt: skip
    expected = compute_class_weight("balanced", classes=np.arange(3), y=known)
    np.testing.assert_allclose(balanced_weights(spec, dataset).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("change", [{"sampling": "balanced"}, {"class_weights": "balanced"}])
def test_balance_changes_what_is_trained_and_is_for_classes(change, tmp_path):
    dataset = table("classification")
    plain = train(spec_of(dataset), dataset, tmp_path / "plain", device=CPU)
    balanced = train(spec_of(dataset, **change), dataset, tmp_path / "balanced", device=CPU)
    assert plain["weights_sha256"] != balanced["weights_sha256"]
    [name] = change
    with pytest.raises(FieldError, match=f"{name} balanced is for classes, and clinics for regression"):
        train(spec_of(table("regression"), **change), table("regression"), tmp_path / "no", device=CPU)


@pytest.mark.parametrize("algorithm", ["irm", "fishr", "gsnr_dropout"])
def test_losses_in_closed_form_cannot_weigh_classes(algorithm, tmp_path):
    dataset = table("classification")
    with pytest.raises(FieldError, match=f"{algorithm} cannot weigh classes: .*; sampling balanced can be used"):
        train(spec_of(dataset, algorithm, class_weights="balanced"), dataset, tmp_path, device=CPU)


def test_a_killed_run_on_a_table_ends_as_one_that_was_not(tmp_path):
    dataset = table("regression")
    spec = spec_of(dataset, steps=6, checkpoint_freq=2)
    whole = train(spec, dataset, tmp_path / "whole", device=CPU)

    class Killed(Exception):
        pass

    def kill(step, loss):
        if step == 4:
            raise Killed

    with pytest.raises(Killed):
        train(spec, dataset, tmp_path / "cut", device=CPU, on_progress=kill)
    again = train(spec, dataset, tmp_path / "cut", device=CPU)
    for result in (whole, again):
        del result["seconds"]
    assert again == whole


def test_the_model_that_is_kept_is_the_one_in_the_table(tmp_path):
    """Also where the measure is undefined at every evaluation, as AUROC is where a source's held-out rows are alike."""
    dataset = table("classification")
    one_class = dataset.domains[0]
    alone = Domain(one_class.name, one_class.inputs, np.zeros(60, dtype=np.int64))
    dataset = DomainDataset("clinics", (alone, *dataset.domains[1:]), CLASSES["classification"], "vectors", "x", None,
                            "classification", COLUMNS)  # fmt: skip
    result = train(spec_of(dataset, steps=6, metric="auroc"), dataset, tmp_path, device=CPU)
    assert all(record["domains"]["north"]["out"]["measures"]["auroc"] is None for record in result["metrics"])
    selected = select("training_domain", result["metrics"], ["west"], PROTOCOLS["shiftproof"], metric="auroc")
    assert selected["step"] == 6
    rows = split_domain(dataset.domains[3], "random", 0, 3).in_
    model = load(tmp_path)
    with torch.no_grad():
        logits = model(model.normalise(torch.from_numpy(dataset.domains[3].inputs[rows])))
    loss = float(F.cross_entropy(logits, torch.from_numpy(dataset.domains[3].targets[rows])))
    assert loss == pytest.approx(result["metrics"][-1]["domains"]["west"]["in"]["loss"], rel=1e-5)


def test_a_model_of_pictures_with_its_own_hyperparameters_is_read_again(tmp_path):
    def build(shape, width):
        half = (0.5,) * 3
        return Featurizer(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, width)), Normalisation(half, half))

    MODELS.register("flat_of_width", Model(build, 16, hparams={"width": Hparam(4)}))
    dataset = pictures("regression")
    spec = spec_of(dataset, model="flat_of_width")
    train(replace(spec, hparams={**spec.hparams, "model.width": 8}), dataset, tmp_path, device=CPU)
    assert load(tmp_path).network.feature_size == 8


def test_weights_of_classes_are_not_accumulated(tmp_path):
    dataset = table("classification")
    with pytest.raises(FieldError, match="with weights of classes is not the mean over parts of a batch"):
        train(spec_of(dataset, class_weights="balanced", accumulate=2), dataset, tmp_path, device=CPU)


def test_a_hyperparameter_of_another_model_is_refused():
    study = Study(targets=("0",), trials=1, model="small_conv", fixed={"model.width": 32})
    with pytest.raises(FieldError, match="model 'small_conv' has no width"):
        make_plan(study)
    assert make_plan(Study(datasets=("vowels",), fixed={"model.width": 32})).runs[0].hparams["model.width"] == 32
