"""Studies with given vectors of the classes: planned, refused, trained, continued, kept and used again."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import shiftproof
from shiftproof.base.field_error import FieldError
from shiftproof.cli import main
from shiftproof.data import DATASETS, read_class_vectors
from shiftproof.models import build_network, weights_fingerprint
from shiftproof.studies import Study, make_plan, open_dataset, read_results, run_study
from shiftproof.studies.timing import study_costs
from shiftproof.tables import build_tables
from shiftproof.training import Loop, train
from training.killed import train_killed_at

CPU = torch.device("cpu")
SIZE = 128  # features of small_lenet
GUIDE = Path(__file__).parents[2] / "docs" / "how_to" / "class_vectors.md"


@pytest.fixture(scope="module")
def digits():
    return DATASETS["rotated_digits"].open(None, None)


@pytest.fixture
def lenet(tmp_path, digits):
    file = tmp_path / "lenet.safetensors"
    save_file(build_network("small_lenet", digits.input_shape, 10, dropout=0.0, seed=3).featurizer.state_dict(), file)
    return file


def _vectors(file, classes, size=SIZE, seed=0):
    """A file of made-up vectors, whose rows are in another order than the data set's classes."""
    vectors = torch.randn(len(classes), size, generator=torch.Generator().manual_seed(seed))
    save_file({"vectors": vectors}, file, {"classes": json.dumps(classes[::-1])})
    return file


@pytest.fixture
def vectors(tmp_path, digits):
    return _vectors(tmp_path / "names.safetensors", digits.classes)


def _study(lenet, vectors, **fields):
    facts = {"model": "small_lenet", "weights": lenet, "class_vectors": vectors, "targets": ("30",), "trials": 1}
    facts |= {"algorithms": ("erm", "clipood", "zero_shot"), "optimizers": ("adam", "sgd"), "steps": 6}
    return Study(**{**facts, "checkpoint_freq": 3, "fixed": {"data.batch_size": 4}, **fields})


@pytest.fixture
def plan_one(lenet, vectors, digits):
    """A function that gives the spec of one run, its data set and its weights."""

    def make(algorithm, **fields):
        [spec] = make_plan(_study(lenet, vectors, algorithms=(algorithm,), optimizers=("adam",), **fields)).runs
        return spec, replace(digits, class_vectors=read_class_vectors(vectors).of(digits.classes)), lenet

    return make


def _accuracy(result, domain):
    """The accuracy of a result's last evaluation on all images of a domain."""
    parts = result["metrics"][-1]["domains"][domain].values()
    return sum(part["count"] * part["measures"]["accuracy"] for part in parts) / sum(part["count"] for part in parts)


def test_zero_shot_is_one_row_whatever_takes_the_others_steps(lenet, vectors, tmp_path):
    study = _study(lenet, vectors, averaging=("none", "bma"), schedule="cosine", hparam_trials=2)
    assert [str(method) for method in study.methods][-1] == "zero_shot"
    assert len(study.methods) == 9
    plan = make_plan(study)
    [zero_shot] = {spec.name: spec for spec in plan.runs if spec.algorithm == "zero_shot"}.values()
    assert (zero_shot.optimizer, zero_shot.steps, zero_shot.trained, zero_shot.averaging) == ("none", 1, "head", "none")
    assert {spec.class_vectors for spec in plan.runs} == {read_class_vectors(vectors).fingerprint}
    results = run_study(replace(study, hparam_trials=1), tmp_path / "out", 1)
    [table] = build_tables(results)
    assert table.terms["class vectors"] == "names.safetensors"
    assert "classifier start" not in table.terms
    assert [row.mean.trials for row in table.rows] == [1] * 9
    assert build_tables(read_results(tmp_path / "out"))[0].rows == table.rows


def test_its_predictions_are_those_of_the_nearest_vectors_of_the_file(plan_one, vectors, lenet, digits, tmp_path):
    spec, data, weights = plan_one("zero_shot", cache="none")
    result = train(spec, data, tmp_path, device=CPU, weights=weights)
    assert (result["status"], result["passes"]) == ("finished", 0)
    network = build_network("small_lenet", digits.input_shape, 10, dropout=0.0, seed=0, weights=lenet).eval()
    by_name = dict(zip(digits.classes[::-1], load_file(vectors)["vectors"].double(), strict=True))
    rows = torch.stack([by_name[name] for name in digits.classes])
    target = digits.domains[digits.domain_index("30")]
    with torch.inference_mode():
        features = network.featurizer(network.normalisation(torch.from_numpy(target.inputs).float() / 255)).double()
    cosines = (features / features.norm(dim=1, keepdim=True)) @ (rows / rows.norm(dim=1, keepdim=True)).T
    expected = (cosines.argmax(1).numpy() == target.targets).mean()
    assert _accuracy(result, "30") == pytest.approx(expected)
    kept = load_file(tmp_path / "model.safetensors")["classifier.weight"].double()
    torch.testing.assert_close(kept, rows / rows.norm(dim=1, keepdim=True), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("algorithm", ["erm", "clipood"])
def test_training_leaves_the_vectors_and_moves_the_rest(algorithm, plan_one):
    spec, data, weights = plan_one(algorithm)
    loop = Loop(spec, data, CPU, weights)
    start = {name: value.clone() for name, value in loop.algorithm.state_dict().items()}
    assert loop.algorithm.network.classifier.weight.count_nonzero() == 10 * SIZE  # other classifiers start at zero
    loop.run()
    same = [name for name, value in loop.algorithm.state_dict().items() if torch.equal(value, start[name])]
    assert same == ["network.classifier.weight"]


@pytest.mark.parametrize("averaging", ["none", "bma", "wise_ft"])
def test_a_killed_run_ends_as_undisturbed(averaging, plan_one, tmp_path):
    spec, data, weights = plan_one("clipood", averaging=(averaging,))
    train_killed_at(4, spec, data, tmp_path / "killed", weights=weights)
    results = [train(spec, data, tmp_path / name, device=CPU, weights=weights) for name in ("killed", "whole")]
    assert {**results[0], "seconds": None} == {**results[1], "seconds": None}
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("killed", "whole")]
    assert files[0] == files[1]


def test_the_kept_model_needs_no_other_file(plan_one, digits, tmp_path):
    spec, data, weights = plan_one("clipood")
    train(spec, data, tmp_path / "run", device=CPU, weights=weights)
    assert json.loads((tmp_path / "run" / "model.json").read_text())["class_vectors"] is True
    model = shiftproof.load(tmp_path / "run")
    pixels, network = torch.rand(5, *digits.input_shape), model.network
    with torch.inference_mode():
        outputs = model(network.normalisation(pixels))
        features = torch.nn.functional.normalize(network.featurizer(network.normalisation(pixels)))
        torch.testing.assert_close(outputs, 100 * features @ network.classifier.weight.T, rtol=1e-5, atol=1e-5)
    assert main(["export", str(tmp_path / "run"), "--output", str(tmp_path / "model.pt2")]) == 0
    exported = torch.export.load(tmp_path / "model.pt2").module()
    with torch.inference_mode():
        torch.testing.assert_close(exported(pixels), outputs, rtol=1e-4, atol=1e-4)


def test_behind_a_kept_trunk_it_is_the_same(plan_one, tmp_path, monkeypatch):
    monkeypatch.setenv("SHIFTPROOF_CACHE", str(tmp_path / "cache"))
    spec, data, weights = plan_one("clipood", trained="blocks:1", cache="float32")
    losses = []
    for cache in ("float32", "none"):
        result = train(replace(spec, cache=cache), data, tmp_path / cache, device=CPU, weights=weights)
        losses.append([record["loss"] for record in result["metrics"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"class_vectors": None, "algorithms": ("zero_shot",)}, "zero_shot compares .* name their file by --class-v"),
        ({"class_vectors": None, "algorithms": ("clipood",)}, "clipood compares .* name their file by --class-vectors"),
        ({"algorithms": ("irm",)}, "irm trains a classifier of its own: class vectors are for erm, .*zero_shot"),
        ({"algorithms": ("lp_ft",)}, "lp_ft trains a classifier of its own"),
        ({"algorithms": ("fish",)}, "fish trains a classifier of its own"),
        ({"trained": "head"}, "with class vectors there is no head to train"),
        (
            {"weights": None, "algorithms": ("zero_shot",)},
            "zero_shot compares class vectors with the features of given",
        ),
        ({"weights": None, "algorithms": ("clipood",)}, "small_lenet would start at random: set weights"),
        ({"model": "small_conv", "weights": None}, r"class vectors of shape \(10, 128\) do not fit .* 64 features"),
        ({"fixed": {"algorithm.margin": -1.0}}, "Invalid margin value: -1"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_planning(fields, message, lenet, vectors):
    with pytest.raises(FieldError, match=message):
        make_plan(_study(lenet, vectors, **fields))


def test_vectors_of_other_classes_are_refused_with_file_and_names(lenet, digits, tmp_path):
    file = _vectors(tmp_path / "other.safetensors", (*digits.classes[:-1], "ten"))
    with pytest.raises(FieldError, match=f"{file} has no vector of {digits.classes[-1]}; .* unknown classes ten"):
        make_plan(_study(lenet, file))
    with pytest.raises(FieldError, match="there is no file of class vectors"):
        make_plan(_study(lenet, tmp_path / "none.safetensors"))


def _table(folder, rows, **fields):
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    facts = {"datasets": ("table",), "metadata": folder / "table.csv", "domain": "place", "model": "linear"}
    return Study(**{**facts, "targets": ("a",), "trials": 1, **fields})


def test_a_task_without_classes_is_refused(vectors, tmp_path):
    rows = [f"{domain},{number},{number * 0.5}" for domain in "abc" for number in range(12)]
    study = _table(
        tmp_path, ["place,size,price", *rows], labels=("price",), task="regression", class_vectors=vectors, steps=2
    )
    with pytest.raises(FieldError, match="class vectors are for classification, and table for regression"):
        make_plan(study)


def test_vectors_other_than_planned_are_not_trained_with(plan_one, digits, tmp_path):
    spec, _, weights = plan_one("clipood")
    other = read_class_vectors(_vectors(tmp_path / "other.safetensors", digits.classes, seed=1)).of(digits.classes)
    for data in (digits, replace(digits, class_vectors=other)):
        with pytest.raises(
            ValueError, match="the class vectors of the data set are not those that the run was planned"
        ):
            train(spec, data, tmp_path / "run", device=CPU, weights=weights)


def test_vectors_are_compared_as_they_are(tmp_path):
    """The linear model has the inputs for features, and columns are not standardised."""
    random = np.random.default_rng(0)
    means = {"cat": [3.0, 1.0, 0.0], "dog": [3.0, 0.0, 1.0]}
    names = [*means] * 20
    inputs = {place: np.stack([random.normal(means[name], [2.0, 0.5, 0.5]) for name in names]) for place in "abc"}
    rows = [",".join([place, name, *map(repr, map(float, row))]) for place, of in inputs.items()
            for name, row in zip(names, of, strict=True)]  # fmt: skip
    file = tmp_path / "names.safetensors"
    save_file({"vectors": torch.tensor([*means.values()])}, file, {"classes": json.dumps([*means])})
    study = _table(
        tmp_path, ["place,label,x,y,z", *rows], labels=("label",), class_vectors=file, algorithms=("zero_shot",)
    )
    results = run_study(study, tmp_path / "out", 1)
    [folder] = (tmp_path / "out" / "runs").iterdir()
    vectors = np.array([*means.values()])
    cosines = inputs["a"] @ (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).T
    expected = np.mean([[*means][c] == name for c, name in zip(cosines.argmax(1), names, strict=True)])
    assert 0.6 < expected < 0.98
    assert _accuracy(json.loads((folder / "result.json").read_text()), "a") == pytest.approx(expected)
    assert len(results.plan.runs) == 1
    raw = torch.tensor(inputs["a"], dtype=torch.float32)
    assert torch.equal(shiftproof.load(folder).normalise(raw), raw)
    columns = ["--metadata", str(tmp_path / "table.csv"), "--domain", "place", "--label", "label"]
    assert main(["evaluate", str(folder), *columns]) == 0


def test_columns_without_a_cosine_are_refused(vectors, tmp_path):
    for odd in ("", "red"):
        rows = [f"{place},{label},1.5,{odd}" for place in "abc" for label in ("cat", "dog") * 6]
        study = _table(tmp_path, ["place,label,x,y", *rows], labels=("label",), class_vectors=vectors)
        open_dataset.cache_clear()
        with pytest.raises(FieldError, match="has categories or lacks values, and class vectors are of numbers"):
            make_plan(study)


def test_the_command_line_trains_evaluates_and_diagnoses(lenet, vectors, tmp_path, capsys):
    run, given = str(tmp_path / "run"), ["--class-vectors", str(vectors)]
    assert main([
        "train", "--target", "75", "--model", "small_lenet", "--weights", str(lenet), *given, "--algorithm", "clipood",
        "--optimizer", "adam", "--steps", "4", "--checkpoint-freq", "2", "--output", run,
    ]) == 0  # fmt: skip
    assert main(["diagnose", run, "--what", "sharpness", "--weights", str(lenet), *given]) == 0
    assert main(["diagnose", run, "--what", "sharpness", "--weights", str(lenet)]) != 0
    assert "was given vectors of the classes: name their file" in capsys.readouterr().err


def test_costs_of_data_that_are_not_at_hand_are_estimated(tmp_path):
    classes = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    weights, model = tmp_path / "weights.safetensors", "squeezenet1_1"
    save_file(build_network(model, (3, 64, 64), 7, dropout=0.0, seed=0).featurizer.state_dict(), weights)
    study = Study(
        datasets=("PACS",), data_dir=tmp_path / "none", model=model, weights=weights, image_size=64, steps=10, trials=1,
        class_vectors=_vectors(tmp_path / "names.safetensors", classes, 512), targets=("sketch",),
        algorithms=("zero_shot", "clipood"), optimizers=("adam",), fixed={"data.batch_size": 2},
    )  # fmt: skip
    plan = make_plan(study, absent=True)
    [cost] = study_costs(study, plan, plan.runs)
    assert (cost.at_hand, cost.runs, cost.passes) == (False, 2, 10)


@pytest.mark.slow
def test_the_plug_in_of_the_guide_has_clips_projection():
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    [plugin] = [block for block in blocks if "MODELS" in block]
    names = {}
    exec(plugin[: plugin.index("MODELS.register")], names)  # noqa: S102 - it is our own
    featurizer = names["clip_vit_b16"]((3, 224, 224))
    with torch.inference_mode():
        assert featurizer.module.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 512)
    assert "head.weight" in featurizer.module.state_dict()
    assert "QuickGELU" in type(featurizer.module.blocks[0].mlp.act).__name__ + str(featurizer.module.blocks[0].mlp.act)


def test_the_fingerprint_is_of_the_file(lenet, vectors):
    spec = make_plan(_study(lenet, vectors)).runs[0]
    assert (spec.weights, spec.class_vectors) == (weights_fingerprint(lenet), weights_fingerprint(vectors))
