import dataclasses
import importlib.metadata
import json

import pytest
import torch

import shiftproof
from shiftproof.base.files import DamagedFileError
from shiftproof.data import DATASETS, Domain, DomainDataset, random_split
from shiftproof.optim import OPTIMIZERS
from shiftproof.protocol import PROTOCOLS, select
from shiftproof.studies import Study
from shiftproof.studies.planning import plan_run
from shiftproof.training import loop, read_result, train
from training.killed import train_killed_at

CPU = torch.device("cpu")
DIGITS = DATASETS["rotated_digits"].open(None, None)


@pytest.fixture(scope="module")
def study():
    return Study(steps=12, checkpoint_freq=4, fixed={"data.batch_size": 4, "model.dropout": 0.2})


def _spec(study, optimizer="genie", targets=("30",), trial=0):
    return plan_run(dataclasses.replace(study, optimizers=(optimizer,), targets=("+".join(targets),)), trial, 0)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_a_killed_run_ends_bit_identical(study, optimizer, tmp_path):
    spec = _spec(study, optimizer)
    undisturbed = train(spec, DIGITS, tmp_path / "a", device=CPU)
    for step in (2, 7, 11):
        train_killed_at(step, spec, DIGITS, tmp_path / "b")
        assert read_result(tmp_path / "b") is None
    resumed = train(spec, DIGITS, tmp_path / "b", device=CPU)
    assert {**resumed, "seconds": None} == {**undisturbed, "seconds": None}
    for name in ("metrics.jsonl", "model.safetensors", "model.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


ANNEALERS_HERE = {
    "gga": {"annealer.radius": 0.01, "annealer.candidates": 5, "annealer.start": 3, "annealer.end": 9},
    "gga_l": {"annealer.gamma": 0.1},
}


@pytest.mark.parametrize("annealer", list(ANNEALERS_HERE))
@pytest.mark.parametrize("optimizer", ["adam", "sam"])
def test_a_run_killed_within_a_search_ends_bit_identical_and_reports_all_of_it(study, annealer, optimizer, tmp_path):
    fixed = {**study.fixed, **ANNEALERS_HERE[annealer]}
    spec = _spec(dataclasses.replace(study, annealers=(annealer,), fixed=fixed), optimizer)
    undisturbed = train(spec, DIGITS, tmp_path / "a", device=CPU)
    for step in (6, 8, 9):
        train_killed_at(step, spec, DIGITS, tmp_path / "b")
    resumed = train(spec, DIGITS, tmp_path / "b", device=CPU)
    for result in (resumed, undisturbed):
        result["seconds"] = result["annealer"]["seconds"] = None
    assert resumed == undisturbed
    extra, own = resumed["annealer"]["extra_passes"], 12 * OPTIMIZERS[optimizer].passes
    assert resumed["passes"] == own + extra
    if annealer == "gga":
        assert 7 * (2 + 2 * 5) / 5 <= extra <= 7 * (1 + 5)
        assert resumed["annealer"]["accepted"] > 0
        assert resumed["annealer"]["similarity_after"] > resumed["annealer"]["similarity_before"]
    else:
        assert extra == 0  # the domains' passes are those of ERM


def test_a_run_without_an_annealer_reports_none(study, tmp_path):
    result = train(_spec(study), DIGITS, tmp_path, device=CPU)
    assert result["annealer"] is None
    assert type(result["passes"]) is int


def test_a_run_from_a_checkout_that_is_not_installed_states_its_versions(study, tmp_path, monkeypatch):
    installed = importlib.metadata.distribution

    def none_of_shiftproof(name):
        if name == "shiftproof":
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(importlib.metadata, "distribution", none_of_shiftproof)
    versions = train(dataclasses.replace(_spec(study), steps=1), DIGITS, tmp_path, device=CPU)["versions"]
    assert versions["shiftproof"] == shiftproof.__version__
    assert versions["torch"] == importlib.metadata.version("torch")


def test_evaluating_oftener_changes_no_training(study, tmp_path):
    rare = train(_spec(study), DIGITS, tmp_path / "a", device=CPU)
    often = train(dataclasses.replace(_spec(study), checkpoint_freq=1), DIGITS, tmp_path / "b", device=CPU)
    assert rare["weights_sha256"] == often["weights_sha256"]
    assert [m["step"] for m in rare["metrics"]] == [4, 8, 12]
    assert [m["step"] for m in often["metrics"]] == list(range(1, 13))
    assert rare["metrics"][-1]["domains"] == often["metrics"][-1]["domains"]


def test_a_run_records_what_the_selection_rules_read_and_no_more(study, tmp_path):
    result = train(_spec(study, targets=("0", "75")), DIGITS, tmp_path, device=CPU)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == result["metrics"]
    reported = (12, select("training_domain", lines, ("0", "75"), PROTOCOLS["shiftproof"])["step"])
    for record in lines:
        for name, parts in record["domains"].items():
            expected = {"in", "out"} if name in ("0", "75") and record["step"] in reported else {"out"}
            assert parts.keys() == expected
            assert all(len(score["per_class"]) == 10 for score in parts.values())
    assert result["passes"] == 12
    assert not (tmp_path / "checkpoint.pt").exists()


def test_one_source_domain_is_enough(study, tmp_path):
    result = train(_spec(study, targets=("15", "30", "45", "60", "75")), DIGITS, tmp_path, device=CPU)
    assert result["status"] == "finished"


def test_methods_are_paired(study, tmp_path):
    """At lr 0 the accuracies are the random start's: equal for all optimizers of a trial."""
    study = dataclasses.replace(study, fixed={**study.fixed, "optimizer.lr": 0.0})
    results = [train(_spec(study, name), DIGITS, tmp_path / name, device=CPU) for name in ("sgd", "sam", "genie")]
    assert results[0]["metrics"] == results[1]["metrics"] == results[2]["metrics"]
    other_trial = train(_spec(study, "sgd", trial=1), DIGITS, tmp_path / "t", device=CPU)
    assert other_trial["weights_sha256"] != results[0]["weights_sha256"]


@pytest.mark.parametrize(("optimizer", "lr", "step"), [("sgd", 0.01, 12), ("adam", 0.03, 8)])
def test_the_selected_model_is_kept_with_what_it_needs(study, optimizer, lr, step, tmp_path):
    study = dataclasses.replace(study, fixed={**study.fixed, "optimizer.lr": lr})
    result = train(_spec(study, optimizer), DIGITS, tmp_path, device=CPU)
    model = shiftproof.load(tmp_path)
    assert model.classes == tuple("0123456789")
    assert model.input_shape == (1, 16, 16)
    assert not model.training
    assert select("training_domain", result["metrics"], ("30",), PROTOCOLS["shiftproof"])["step"] == step
    scores = next(m for m in result["metrics"] if m["step"] == step)["domains"]
    for i, part in ((1, "out"), (2, "in")):  # a source's validation, and the target's accuracy in the table
        domain = DIGITS.domains[i]
        chosen = getattr(random_split(len(domain), 0, i), {"in": "in_", "out": "out"}[part])
        predicted = model(model.normalise(torch.from_numpy(domain.inputs[chosen]))).argmax(dim=1)
        accuracy = scores[domain.name][part]["accuracy"]
        assert (predicted.numpy() == domain.targets[chosen]).mean() == pytest.approx(accuracy)


def test_a_diverging_run_stops_says_where_and_keeps_no_checkpoint_after_it(study, tmp_path):
    study = dataclasses.replace(study, fixed={**study.fixed, "optimizer.lr": 1e30})
    result = train(_spec(study, "sgd"), DIGITS, tmp_path, device=CPU)
    assert result["status"] == "failed"
    assert result["error"] in ("the loss was nan at step 2", "the loss was inf at step 2")
    assert not (tmp_path / "checkpoint.pt").exists()
    assert read_result(tmp_path)["error"] == result["error"]


def test_weights_that_are_not_finite_are_not_evaluated(tmp_path):
    study = Study(steps=1, fixed={"data.batch_size": 4, "optimizer.lr": 1e30, "optimizer.weight_decay": 1e30})
    result = train(_spec(study, "sgd"), DIGITS, tmp_path, device=CPU)
    assert result["error"] == "the weights were not finite after step 1"


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_damaged_checkpoint_is_named_and_left_alone(study, damage, tmp_path):
    train_killed_at(6, _spec(study), DIGITS, tmp_path)
    path = tmp_path / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    damaged = {"cut": content[: len(content) // 2], "flipped": content, "empty": b"", "other": b"text"}[damage]
    path.write_bytes(damaged)
    with pytest.raises(DamagedFileError, match=r"checkpoint\.pt is damaged .*; delete it to train"):
        train(_spec(study), DIGITS, tmp_path, device=CPU)
    assert path.read_bytes() == bytes(damaged)


@pytest.mark.parametrize("damage", ["", "{", '{"status": "finished"}', "[]"])
def test_a_damaged_result_is_named(damage, tmp_path):
    (tmp_path / "result.json").write_text(damage)
    with pytest.raises(DamagedFileError, match=r"result\.json is damaged .*; delete it to train"):
        read_result(tmp_path)


def test_a_damaged_model_is_named(study, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no model"):
        shiftproof.load(tmp_path)
    train(_spec(study), DIGITS, tmp_path, device=CPU)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DamagedFileError, match=r"model\.safetensors is damaged"):
        shiftproof.load(tmp_path)


def test_a_domain_too_small_to_split_is_refused(study, tmp_path):
    digits = DATASETS["rotated_digits"].open(None, None)
    tiny = Domain("30", digits.domains[2].inputs[:4], digits.domains[2].targets[:4])
    data = DomainDataset("tiny", (digits.domains[0], digits.domains[1], tiny), digits.classes, "small_images", "x")
    with pytest.raises(ValueError, match="4 images is too small to split"):
        train(dataclasses.replace(_spec(study), data_fingerprint="x"), data, tmp_path, device=CPU)


def test_other_data_or_weights_than_planned_are_refused(study, tmp_path):
    for change in ({"data_fingerprint": "x"}, {"weights": "x"}):
        with pytest.raises(ValueError, match="not those that the run was planned with"):
            train(dataclasses.replace(_spec(study), **change), DIGITS, tmp_path, device=CPU)


def test_the_process_keeps_its_settings(study, tmp_path):
    torch.set_num_threads(2)
    train(_spec(study), DIGITS, tmp_path, device=CPU)
    assert torch.get_num_threads() == 2


@pytest.mark.slow
def test_a_compiled_run_is_the_eager_one_to_rounding_and_another_run(study, tmp_path):
    spec = _spec(study, "adam")
    compiled = dataclasses.replace(spec, compile=True)
    assert compiled.name != spec.name
    eager, other = (train(one, DIGITS, tmp_path / one.name, device=CPU) for one in (spec, compiled))
    for expected, record in zip(eager["metrics"], other["metrics"], strict=True):
        assert record["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    for name, value in shiftproof.load(tmp_path / spec.name).state_dict().items():
        torch.testing.assert_close(
            shiftproof.load(tmp_path / compiled.name).state_dict()[name], value, rtol=1e-3, atol=1e-3
        )


def test_losses_that_are_read_later_are_the_same(study, tmp_path, monkeypatch):
    seen = {}

    def trained(name, **changes):
        steps = seen[name] = []
        spec = dataclasses.replace(_spec(study, "sgd"), **changes)
        result = train(
            spec, DIGITS, tmp_path / name, device=CPU, on_progress=lambda step, loss: steps.append((step, loss))
        )
        return {**result, "seconds": None, "passes": None}

    at_once, diverged = trained("a"), trained("b", hparams={**_spec(study, "sgd").hparams, "optimizer.lr": 1e30})
    monkeypatch.setitem(loop.STEPS_BETWEEN_READS, "cpu", 3)  # evaluated after every fourth
    assert trained("c") == at_once
    assert seen["c"] == seen["a"]
    assert [step for step, _ in seen["c"]] == list(range(1, 13))
    later = trained("d", hparams=diverged["spec"]["hparams"])
    assert later["status"] == "failed"
    assert (later["error"], later["steps"]) == (diverged["error"], diverged["steps"])
