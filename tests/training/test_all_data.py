"""Runs on all data: a first pass whose validation chooses the number of steps, and a second on held-out rows too."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

from shiftproof.base.field_error import FieldError
from shiftproof.cli import main
from shiftproof.data import DATASETS, Domain, DomainDataset, batch_indices, split_domain
from shiftproof.figures import diagnose
from shiftproof.protocol import training_domain_validation
from shiftproof.studies import Study, make_plan, read_status, runner
from shiftproof.studies.added_measure import add_measure
from shiftproof.studies.timing import study_costs
from shiftproof.training import (
    Inputs,
    RunPlace,
    StepBuilder,
    build_steps,
    check_combination,
    read_predictions,
    read_result,
    reproducible,
    state_digest,
    train,
    train_together,
)
from shiftproof.training.callbacks import checkpoints as checkpoints_module
from shiftproof.training.callbacks import selection
from shiftproof.training.constant import constant_scores
from shiftproof.training.prepared import balanced_weights, prepared
from shiftproof.training.ranks import Ranks
from training.killed import Killed, train_killed_at

CPU = torch.device("cpu")
MOVING = ("none", "ema", "sma")
CHOSEN = {"none": 20, "ema": 16, "sma": 24}
"""The steps that validation chooses in the first passes of the runs here: each averaging another."""
FILES = ("metrics.jsonl", "model.safetensors", "model.json", "predictions.npz")


@pytest.fixture(scope="module")
def spec(make_spec):
    return make_spec(lr=0.003, steps=24, all_data=True)


def _places(folder, spec, averagings=MOVING):
    return [RunPlace(replace(spec, averaging=name), folder / name) for name in averagings]


@pytest.fixture(scope="module")
def trained(spec, digits, tmp_path_factory):
    """The folder of three runs that were trained together, and the steps of both passes in order."""
    folder, steps = tmp_path_factory.mktemp("together"), []
    train_together(_places(folder, spec), digits, device=CPU, on_progress=lambda step, loss: steps.append(step))
    return folder, steps


def _without_times(result):
    return {**result, "seconds": None, "shared": None}


def _assert_same(one, other, averagings=MOVING):
    for name in averagings:
        for place in (name, f"{name}/first_pass"):
            results = [_without_times(read_result(folder / place)) for folder in (one, other)]
            assert results[0] == results[1]
            for file in FILES:
                assert (one / place / file).read_bytes() == (other / place / file).read_bytes()
            assert not (other / place / "checkpoint.pt").exists()


def test_a_second_pass_draws_every_row_of_the_sources_alike(digits, spec):
    inputs, first = (Inputs(digits, one, None, CPU) for one in (spec, replace(spec, all_data=False)))
    drawn = [0, 0]
    for step in range(1, 40):
        sizes = [len(digits.domains[i]) for i in inputs.sources]
        rows = batch_indices([np.arange(size) for size in sizes], 4, spec.seed, step)
        for i, (images, labels), chosen in zip(inputs.sources, inputs.batches(step), rows, strict=True):
            domain = digits.domains[i]
            assert torch.equal(images, torch.from_numpy(domain.inputs[chosen]).float() / 255)
            assert labels.tolist() == domain.targets[chosen].tolist()
            drawn[0] += np.isin(chosen, split_domain(domain, "random", 0, i).out).sum()
            drawn[1] += len(chosen)
    assert drawn[0] / drawn[1] == pytest.approx(0.2, abs=0.04)
    for part in ("in", "out"):  # what is scored is the same
        for domain in range(len(digits.domains)):
            assert inputs.rows(domain, part).tolist() == first.rows(domain, part).tolist()


def test_what_is_fitted_on_training_rows_is_fitted_on_all_rows_of_the_sources(make_spec):
    random = np.random.default_rng(0)
    domains = tuple(Domain(n, random.random((20, 3), np.float32), random.integers(0, 2, 20)) for n in "abc")
    data = DomainDataset("noise", domains, ("x", "y"), "vectors", "x")
    spec = make_spec(dataset="noise", targets=("b",), all_data=True)
    rows = np.concatenate([domains[0].inputs, domains[2].inputs])
    done = np.concatenate([one.inputs for one in prepared(spec, data).domains[::2]])
    np.testing.assert_allclose(done, (rows - rows.mean(0)) / rows.std(0), rtol=1e-4, atol=1e-5)
    counts = np.bincount(np.concatenate([domains[0].targets, domains[2].targets]))
    np.testing.assert_allclose(balanced_weights(spec, data), 40 / (2 * counts), rtol=1e-6)
    shares = counts / 40
    mine = domains[1].targets[split_domain(domains[1], "random", 0, 1).in_]
    assert constant_scores(spec, data)["b"]["accuracy"] == (mine == shares.argmax()).mean()


def test_the_second_pass_is_a_plain_loop_over_all_rows_for_the_steps_that_validation_chose(spec, digits, trained):
    steps = build_steps(replace(spec, all_data=False), digits, CPU, None)  # the start is that of the first pass
    algorithm = steps.algorithm.train()
    sources = [i for i, name in enumerate(digits.domain_names) if name != "30"]
    ema = {name: tensor.double() for name, tensor in algorithm.state_dict().items()}
    with reproducible():
        for step in range(1, CHOSEN["none"] + 1):
            rows = batch_indices([np.arange(len(digits.domains[i])) for i in sources], 4, spec.seed, step)
            batches = []
            for i, chosen in zip(sources, rows, strict=True):
                images = algorithm.network.normalisation(
                    torch.from_numpy(digits.domains[i].inputs[chosen]).float() / 255
                )
                images = images.contiguous(memory_format=torch.channels_last)
                batches.append((images, torch.from_numpy(digits.domains[i].targets[chosen])))
            steps.take(batches, step)
            if step <= CHOSEN["ema"]:
                decay = (1 + step) / (10 + step)
                ema = {name: decay * ema[name] + (1 - decay) * now for name, now in algorithm.state_dict().items()}
    assert read_result(trained[0] / "none")["weights_sha256"] == state_digest(algorithm.state_dict())
    kept = load_file(trained[0] / "none" / "model.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in algorithm.network.state_dict().items())
    for name, tensor in load_file(trained[0] / "ema" / "model.safetensors").items():
        np.testing.assert_allclose(tensor, ema[f"network.{name}"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("averaging", MOVING)
def test_the_result_has_the_first_pass_s_validation_and_new_scores_of_the_target(averaging, spec, digits, trained):
    folder = trained[0] / averaging
    result, first = read_result(folder), read_result(folder / "first_pass")
    [record] = result["metrics"]
    chosen = max(first["metrics"], key=lambda one: (training_domain_validation(one, ("30",)), -one["step"]))
    assert record["step"] == chosen["step"] == CHOSEN[averaging]
    sources = [name for name in digits.domain_names if name != "30"]
    assert all(record["domains"][name] == chosen["domains"][name] for name in sources)
    assert record["domains"]["30"].keys() == {"in", "out"}
    assert record["domains"]["30"]["out"]["loss"] != chosen["domains"]["30"]["out"]["loss"]
    assert record["loss"] != chosen["loss"]
    assert json.loads((folder / "metrics.jsonl").read_text()) == record
    assert result["steps"] == result["passes"] == 24 + CHOSEN[averaging]
    assert all(result["seconds"][work] >= seconds for work, seconds in first["seconds"].items())
    assert result["seconds"]["step"] > first["seconds"]["step"] > 0
    assert first["spec"] == {**result["spec"], "all_data": False}
    kept, before = (read_predictions(place) for place in (folder, folder / "first_pass"))
    step = record["step"]
    assert list(kept.outputs) == [step]
    for name in sources:
        assert np.array_equal(kept.part(step, name, "out").outputs, before.part(step, name, "out").outputs)
    for part in ("in", "out"):
        outputs, targets = kept.part(step, "30", part)
        accuracy = (outputs.argmax(axis=1) == targets).mean()
        assert accuracy == pytest.approx(record["domains"]["30"][part]["accuracy"], abs=0.01)  # of float16


def test_runs_share_both_passes_and_end_as_alone(spec, digits, trained, tmp_path):
    folder, steps = trained
    assert steps == [*range(1, 25), *range(1, 25)]
    for run in _places(tmp_path, spec):
        train(run.spec, digits, run.folder, device=CPU)
    _assert_same(folder, tmp_path)


@pytest.mark.parametrize("every", ["evaluation", "step"])
def test_a_kill_in_either_pass_resumes_all_exactly(every, spec, digits, trained, tmp_path, monkeypatch):
    if every == "step":
        monkeypatch.setattr(checkpoints_module, "CHECKPOINT_SECONDS", 0.0)
    runs, begun = _places(tmp_path, spec), []
    for kills in (2, 9, 24, 26, 38, 41, 46):  # steps of both passes; after 40 ema has ended, and after 44 none
        start = 0

        def stop(step, loss, kills=kills):
            nonlocal start
            second = (tmp_path / "sma" / "first_pass" / "result.json").exists()
            start = start or step + 24 * second
            if step + 24 * second == kills:
                raise Killed

        left = [run for run in runs if read_result(run.folder) is None]
        with pytest.raises(Killed):
            train_together(left, digits, device=CPU, on_progress=stop)
        begun.append(start)
    assert begun == ([1, 1, 9, 21, 25, 37, 41] if every == "evaluation" else [1, 2, 9, 24, 26, 38, 41])
    assert [run.spec.averaging for run in runs if read_result(run.folder) is not None] == ["none", "ema"]
    train_together(runs[-1:], digits, device=CPU)
    _assert_same(trained[0], tmp_path)


@pytest.mark.parametrize("averaging", MOVING)
def test_a_kill_while_a_run_ends_resumes_all_exactly(averaging, spec, digits, trained, tmp_path, monkeypatch):
    keep, runs = selection.keep_model, _places(tmp_path, spec)

    def kill(loop, folder):
        if folder.name == averaging:  # in the second pass
            raise Killed
        keep(loop, folder)

    with monkeypatch.context() as patch:
        patch.setattr(selection, "keep_model", kill)
        with pytest.raises(Killed):
            train_together(runs, digits, device=CPU)
    steps = []
    left = [run for run in runs if read_result(run.folder) is None]
    train_together(left, digits, device=CPU, on_progress=lambda step, loss: steps.append(step))
    assert steps == [*range(CHOSEN[averaging] + 1, 25)]
    _assert_same(trained[0], tmp_path)


def test_a_first_pass_that_has_ended_is_not_repeated(spec, digits, trained, tmp_path):
    train(replace(spec, all_data=False), digits, tmp_path / "none" / "first_pass", device=CPU)
    steps = []
    train(spec, digits, tmp_path / "none", device=CPU, on_progress=lambda step, loss: steps.append(step))
    assert steps == [*range(1, CHOSEN["none"] + 1)]
    _assert_same(trained[0], tmp_path, ["none"])


@pytest.mark.parametrize("diverging", [10, 24 + 18])
def test_a_divergence_in_either_pass_fails_the_runs_that_still_train(diverging, spec, digits, tmp_path, monkeypatch):
    take, taken = StepBuilder.take, []

    def fail(self, batches, step):
        taken.append(step)
        at = 1 + diverging  # the first is of the warm-up
        return take(self, batches, step) / (len(taken) != at + (diverging > 24))

    monkeypatch.setattr(StepBuilder, "take", fail)
    results = train_together(_places(tmp_path, spec), digits, device=CPU)
    if diverging > 24:
        [ema] = [result for result in results if result["status"] == "finished"]
        assert (ema["spec"]["averaging"], ema["steps"]) == ("ema", 24 + 16)
    failed = [result for result in results if result["status"] == "failed"]
    for result in failed:
        assert result["steps"] == diverging - 1
        assert result["error"].endswith(f"at step {diverging if diverging < 24 else diverging - 24}")
        assert read_result(tmp_path / result["spec"]["averaging"]) == json.loads(json.dumps(result))
    assert [result["spec"] for result in results] == [asdict(run.spec) for run in _places(tmp_path, spec)]
    assert len(failed) == (3 if diverging < 24 else 2)
    assert not list(tmp_path.rglob("checkpoint.pt"))


@pytest.mark.parametrize("averaging", ["swad", "swad_released", "wise_ft", "dfr"])
def test_averages_that_need_held_out_images_are_refused(averaging, spec):
    with pytest.raises(FieldError, match=f"{averaging} is chosen by held-out images") as refused:
        check_combination(replace(spec, averaging=averaging), 5)
    assert refused.value.fields == ("all_data", "averaging")


def test_several_devices_are_refused(spec):
    with pytest.raises(FieldError, match="trains on one device, not 2") as refused:
        check_combination(spec, 5, Ranks(0, 2, "ddp"))
    assert refused.value.field == "all_data"


def test_rules_that_read_every_step_are_refused():
    with pytest.raises(FieldError, match="leave_one_domain_out contradicts all_data") as refused:
        Study(all_data=True, selection=("training_domain", "leave_one_domain_out"))
    assert refused.value.fields == ("selection", "all_data")


def test_a_run_whose_sources_are_all_trained_on_is_not_diagnosed(trained):
    with pytest.raises(ValueError, match="was trained on all data: no image of its sources is held out"):
        diagnose(trained[0] / "none", ["sharpness"])


def test_a_measure_that_comes_later_is_added_to_a_run_of_vectors(tmp_path):
    options = "--dataset vowels --target speaker00 --steps 6 --checkpoint-freq 2 --optimizer sgd --all-data"
    assert main(["train", *options.split(), "--output", str(tmp_path)]) == 0
    result = read_result(tmp_path)
    [record] = result["metrics"]
    before = json.dumps(record)
    for parts in record["domains"].values():
        for scores in parts.values():
            del scores["measures"]["ece"]
    assert add_measure(result, "ece", tmp_path)
    for name, parts in json.loads(before)["domains"].items():
        for part, scores in parts.items():
            assert record["domains"][name][part]["measures"]["ece"] == pytest.approx(
                scores["measures"]["ece"], abs=1e-3
            )


def test_the_status_tells_the_step_of_the_first_pass(tmp_path):
    plan = make_plan(Study(targets=("0",), trials=1, steps=6, optimizers=("sgd",), all_data=True))
    plan.write(tmp_path)
    [run] = plan.runs
    train_killed_at(4, run, DATASETS["rotated_digits"].open(None, None), tmp_path / "runs" / run.name)
    text = read_status(tmp_path).text()
    assert "begun: erm + sgd on rotated_digits, 0, trial 0, setting 0: step 3 of 6 of the first pass" in text


@pytest.mark.parametrize("changed", [True, False])
def test_another_version_of_a_plug_in_begins_both_passes_again(changed, spec, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_changed_plugins", lambda folder, spec: ["mine"] if changed else [])
    train(replace(spec, all_data=False), digits, tmp_path / "first_pass", device=CPU)
    train_killed_at(9, spec, digits, tmp_path)
    runner._drop_what_other_plugins_began(tmp_path, spec)
    assert (tmp_path / "checkpoint.pt").exists() != changed
    assert (tmp_path / "first_pass" / "result.json").exists() != changed


def test_a_plan_counts_both_passes():
    study = Study(targets=("0",), trials=1, steps=6, optimizers=("sam",), averaging=("none", "ema"))
    both = replace(study, all_data=True)
    [once], [twice] = (study_costs(one, plan, plan.runs) for one in (study, both) for plan in [make_plan(one)])
    assert (once.passes, twice.passes) == (12, 24)
    assert make_plan(both).grids[0].terms["all data"] == "a second pass"


def test_the_second_pass_of_a_probe_fits_all_rows_at_the_penalty_of_the_first(make_spec, tmp_path):
    random = np.random.default_rng(0)
    domains = []
    for number in range(3):
        rows = random.normal(size=(60, 4)).astype(np.float32)
        domains.append(Domain("abc"[number], rows, (rows[:, 0] + random.normal(size=60) > 0).astype(np.int64)))
    data = DomainDataset("noise", tuple(domains), ("x", "y"), "vectors", "x")
    facts = {"dataset": "noise", "data_fingerprint": data.fingerprint, "targets": ("b",), "kind": "vectors"}
    facts |= {"model": "linear", "algorithm": "probe", "optimizer": "none", "steps": 1, "checkpoint_freq": 1}
    facts["hparams"] = {"data.batch_size": 4, "model.dropout": 0.0}
    result = train(make_spec(**facts, all_data=True), data, tmp_path / "run", device=CPU)
    first = read_result(tmp_path / "run" / "first_pass")
    assert result["probe"]["penalty"] == first["probe"]["penalty"]
    rows = np.concatenate([domains[0].inputs, domains[2].inputs])
    done = (rows - rows.mean(0)) / rows.std(0)
    kept = load_file(tmp_path / "run" / "model.safetensors")
    difference = kept["classifier.weight"][1] - kept["classifier.weight"][0]
    # both rows of weights are half of it, and together they are penalised by half of its square
    half = LogisticRegression(C=2 / result["probe"]["penalty"], solver="newton-cholesky", tol=1e-10)
    half.fit(done, np.concatenate([domains[0].targets, domains[2].targets]), sample_weight=np.full(120, 1 / 120))
    np.testing.assert_allclose(difference, half.coef_[0], rtol=2e-2, atol=2e-3)
