"""Runs whose weights are averaged: what they score and keep, and that a killed one ends as an undisturbed one."""

import json
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import shiftproof
from shiftproof.base.choices import Averaging
from shiftproof.base.field_error import FieldError
from shiftproof.data import Domain, DomainDataset, random_split
from shiftproof.training import check_combination, read_result, state_digest, train
from shiftproof.training.averaging import BMA, EMA, SMA, SWAD, WiSEFT, copy_state
from shiftproof.training.callbacks import averaging as averaging_module
from shiftproof.training.callbacks import checkpoints as checkpoints_module
from training.killed import Killed, train_killed_at

CPU = torch.device("cpu")
DIES = [3.0, 2.0, 1.0, 1.1, 1.2, 2.0, 2.1, 1.3, 2.3, 2.4, 2.5, 2.6, 2.7, 2.8, 2.9, 3.0]
"""Validation losses: converges at the third evaluation, is in the valley until the eighth, dies at the 14th."""


@pytest.fixture
def weights(monkeypatch):
    """The algorithm's state after every update, by step, as the average is told of it."""
    seen = {}

    for average in (SWAD, EMA, SMA, BMA):
        update = average.update

        def spy(self, state, step, update=update):
            seen[step] = copy_state(state)
            update(self, state, step)

        monkeypatch.setattr(average, "update", spy)
    return seen


@pytest.fixture
def dies(monkeypatch):
    """Validation losses as in `DIES`, one per two updates."""
    monkeypatch.setattr(averaging_module, "validation_loss", lambda record, targets: DIES[record["step"] // 2 - 1])


def _mean(weights, steps):
    return {
        name: np.mean([weights[step][name].double().numpy() for step in steps], axis=0) for name in weights[steps[0]]
    }


def _assert_kept(folder, mean):
    kept = load_file(folder / "model.safetensors")
    assert kept.keys() == {name.removeprefix("network.") for name in mean}
    for name, tensor in kept.items():
        np.testing.assert_allclose(tensor, mean[f"network.{name}"], rtol=1e-5, atol=1e-7)


def _assert_is_scored(folder, data, record):
    """The kept model has the recorded accuracies of one source's out part and the target's in part."""
    model = shiftproof.load(folder)
    for i, part in ((1, "out"), (2, "in")):
        domain = data.domains[i]
        chosen = getattr(random_split(len(domain), 0, i), {"in": "in_", "out": "out"}[part])
        predicted = model(model.normalise(torch.from_numpy(domain.inputs[chosen]))).argmax(dim=1)
        accuracy = record["domains"][domain.name][part]["accuracy"]
        assert (predicted.numpy() == domain.targets[chosen]).mean() == pytest.approx(accuracy)


def test_swad_stops_when_the_valley_is_dead_and_keeps_its_average(digits, make_spec, weights, dies, tmp_path):
    spec = make_spec(averaging="swad", steps=32, checkpoint_freq=2)
    result = train(spec, digits, tmp_path, device=CPU)
    *curve, averaged = result["metrics"]
    assert [record["step"] for record in curve] == list(range(2, 29, 2))
    assert not any("averaged" in record for record in curve)
    assert (averaged["step"], averaged["averaged"]) == (28, [5, 16])
    assert averaged["loss"] == curve[-1]["loss"]
    assert averaged["domains"]["30"].keys() == {"in", "out"}
    assert result["steps"] == result["passes"] == len(weights) == 28
    _assert_kept(tmp_path, _mean(weights, range(5, 17)))
    _assert_is_scored(tmp_path, digits, averaged)
    assert averaged["domains"] != curve[-1]["domains"]


def test_swad_on_its_own_losses_follows_them_to_the_end(digits, make_spec, weights, tmp_path):
    result = train(make_spec(averaging="swad", steps=24, checkpoint_freq=2), digits, tmp_path, device=CPU)
    *curve, averaged = result["metrics"]
    sources = [name for name in digits.domain_names if name != "30"]
    losses = [np.mean([record["domains"][name]["out"]["loss"] for name in sources]) for record in curve]
    start = next(i for i in range(len(losses) - 2) if losses[i] == min(losses[i : i + 3]))
    threshold = 1.3 * np.mean(losses[start : start + 3])
    end = max(i for i, loss in enumerate(losses) if loss <= threshold)
    assert averaged["averaged"] == [2 * start + 1, 2 * end + 2]
    assert result["steps"] == 24
    _assert_kept(tmp_path, _mean(weights, range(2 * start + 1, 2 * end + 3)))


def test_swad_that_never_converges_keeps_the_last_weights(digits, make_spec, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(averaging_module, "validation_loss", lambda record, targets: -record["step"])
    result = train(make_spec(averaging="swad"), digits, tmp_path, device=CPU)
    *curve, averaged = result["metrics"]
    assert averaged["averaged"] == [12, 12]
    assert averaged["domains"] == curve[-1]["domains"]
    _assert_kept(tmp_path, _mean(weights, [12]))


def test_the_moving_average_is_what_is_scored_and_kept(digits, make_spec, weights, tmp_path):
    starts = []
    build = averaging_module.build_average

    def spy(spec, start):
        starts.append(copy_state(start))
        return build(spec, start)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(averaging_module, "build_average", spy)
        result = train(make_spec(averaging="ema", steps=8, checkpoint_freq=8), digits, tmp_path, device=CPU)
    mean = {name: tensor.double().numpy() for name, tensor in starts[0].items()}
    for step in range(1, 9):
        decay = (1 + step) / (10 + step)
        mean = {name: decay * old + (1 - decay) * weights[step][name].double().numpy() for name, old in mean.items()}
    _assert_kept(tmp_path, mean)
    _assert_is_scored(tmp_path, digits, result["metrics"][0])


def test_the_simple_moving_average_is_what_is_scored_and_kept(digits, make_spec, weights, tmp_path):
    spec = make_spec(averaging="sma", steps=100, checkpoint_freq=100)
    result = train(spec, digits, tmp_path, device=CPU)
    _assert_kept(tmp_path, _mean(weights, range(2, 101)))
    _assert_is_scored(tmp_path, digits, result["metrics"][0])


def test_released_swad_stops_where_swad_does_and_keeps_what_the_code_counts(digits, make_spec, weights, dies, tmp_path):
    spec = make_spec(averaging="swad_released", steps=32, checkpoint_freq=2)
    result = train(spec, digits, tmp_path, device=CPU)
    averaged = result["metrics"][-1]
    # it converges at 1.2 with a threshold of 1.43: segment 3 of the first four, because 2.0 was above; then one an
    # evaluation, from that of the lowest loss to that of 1.3, the last after which six losses are not all above
    counted = [3, 2, 3, 4, 5, 6, 7]
    assert (result["steps"], averaged["averaged"]) == (28, [2 * counted[0] + 1, 2 * counted[-1] + 2])
    segments = [_mean(weights, [2 * i + 1, 2 * i + 2]) for i in counted]
    _assert_kept(tmp_path, {name: np.mean([one[name] for one in segments], axis=0) for name in segments[0]})
    _assert_is_scored(tmp_path, digits, averaged)


def test_wise_ft_keeps_the_interpolation_that_the_sources_prefer(digits, make_spec, tmp_path, monkeypatch):
    ends = []
    between = WiSEFT.between

    def spy(self, end, coefficient):
        ends.append((copy_state(self._start), end))
        return between(self, end, coefficient)

    monkeypatch.setattr(WiSEFT, "between", spy)
    result = train(make_spec(averaging="wise_ft", steps=40, checkpoint_freq=20), digits, tmp_path, device=CPU)
    *curve, averaged = result["metrics"]
    assert [record["step"] for record in curve] == [20, 40]
    assert (averaged["step"], averaged["averaged"]) == (40, [0, 40])
    assert result["weights_sha256"] == state_digest(ends[-1][1])  # the last weights are in place again
    start, end = ends[0]
    model, scores = shiftproof.load(tmp_path), []
    for tenths in range(11):
        mean = {name: ((10 - tenths) * start[name] + tenths * end[name]) / 10 for name in start}
        model.network.load_state_dict({name.removeprefix("network."): tensor for name, tensor in mean.items()})
        correct = []
        for i, domain in enumerate(digits.domains):
            if domain.name != "30":
                out = random_split(len(domain), 0, i).out
                images = model.normalise(torch.from_numpy(domain.inputs[out]))
                correct.append(np.mean(model(images).argmax(dim=1).numpy() == domain.targets[out]))
        scores.append(np.mean(correct))
    best = int(np.argmax(scores))
    assert averaged["coefficient"] == best / 10
    assert len(set(scores)) > 2
    _assert_kept(tmp_path, {name: ((10 - best) * start[name] + best * end[name]) / 10 for name in start})
    _assert_is_scored(tmp_path, digits, averaged)


def test_dfr_keeps_the_features_and_fits_the_classifier_to_all_groups_alike(digits, make_spec, tmp_path):
    """Where the gradient of the balanced loss and the penalty vanishes, in standardised features."""
    plain = train(make_spec(steps=40, checkpoint_freq=20), digits, tmp_path / "plain", device=CPU)
    result = train(make_spec(averaging="dfr", steps=40, checkpoint_freq=20), digits, tmp_path / "dfr", device=CPU)
    assert result["weights_sha256"] == plain["weights_sha256"]  # the trained weights are in place again
    *curve, fitted = result["metrics"]
    assert [record["step"] for record in curve] == [20, 40]
    assert (fitted["step"], fitted["averaged"]) == (40, [40, 40])
    _assert_is_scored(tmp_path / "dfr", digits, fitted)
    model = shiftproof.load(tmp_path / "dfr")
    parts = []
    for i, domain in enumerate(digits.domains):
        if domain.name != "30":
            rows = random_split(len(domain), 0, i).in_
            images = model.normalise(torch.from_numpy(domain.inputs[rows]))
            parts.append((model.network.featurizer(images).double().detach(), torch.from_numpy(domain.targets[rows])))
    features = torch.cat([part for part, _ in parts])
    mean, std = features.mean(0), features.std(0, correction=0)
    std[std == 0] = 1.0  # of dead features
    classifier = model.network.classifier
    weight = (classifier.weight.double() * std).detach().requires_grad_()
    bias = (classifier.bias.double() + classifier.weight.double() @ mean).detach().requires_grad_()
    loss = 0.0
    for part, labels in parts:
        losses = F.cross_entropy((part - mean) / std @ weight.T + bias, labels, reduction="none")
        classes = labels.unique()
        loss = loss + sum(losses[labels == c].mean() for c in classes) / len(classes) / len(parts)
    loss = loss + fitted["penalty"] / 2 * weight.square().sum()
    gradients = torch.autograd.grad(loss, [weight, bias])
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-4
    assert float(loss.detach()) < 1.0


def test_dfr_is_refused_where_there_is_nothing_to_fit(make_spec):
    for changes, message in (
        ({"task": "multilabel"}, "dfr weighs classes alike, and the task is multilabel"),
        ({"algorithm": "mtl"}, "dfr fits a linear classifier to the features, and mtl adds parts to the network"),
        ({"all_data": True}, "dfr is chosen by held-out images"),
    ):
        with pytest.raises(FieldError, match=message):
            check_combination(make_spec(averaging="dfr", **changes), 5)


AVERAGES = [name for name in get_args(Averaging) if name != "none"]


@pytest.mark.parametrize("averaging", AVERAGES)
def test_averaging_changes_no_training(averaging, digits, make_spec, tmp_path):
    plain = train(make_spec(), digits, tmp_path / "a", device=CPU)
    averaged = train(make_spec(averaging=averaging), digits, tmp_path / "b", device=CPU)
    often = train(make_spec(averaging=averaging, checkpoint_freq=2), digits, tmp_path / "c", device=CPU)
    assert plain["weights_sha256"] == averaged["weights_sha256"] == often["weights_sha256"]
    curves = [[record for record in run["metrics"] if "averaged" not in record] for run in (plain, averaged)]
    assert [record["loss"] for record in curves[0]] == [record["loss"] for record in curves[1]]
    held_out = [[record["domains"]["0"]["out"] for record in curve] for curve in curves]
    of_the_trained_weights = averaging not in ("ema", "sma", "bma")
    assert (held_out[0] == held_out[1]) == of_the_trained_weights


@pytest.mark.parametrize("every", ["evaluation", "step"])
@pytest.mark.parametrize("averaging", AVERAGES)
def test_a_killed_run_ends_bit_identical(averaging, every, digits, make_spec, dies, tmp_path, monkeypatch):
    if every == "step":
        monkeypatch.setattr(checkpoints_module, "CHECKPOINT_SECONDS", 0.0)
    spec = make_spec(averaging=averaging, steps=32, checkpoint_freq=2)
    undisturbed = train(spec, digits, tmp_path / "a", device=CPU)
    for step in (2, 6, 9, 19, 28):
        train_killed_at(step, spec, digits, tmp_path / "b")
        assert read_result(tmp_path / "b") is None
    resumed = train(spec, digits, tmp_path / "b", device=CPU)
    assert {**resumed, "seconds": None} == {**undisturbed, "seconds": None}
    for name in ("metrics.jsonl", "model.safetensors", "model.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_run_killed_while_its_average_is_scored_ends_bit_identical(digits, make_spec, dies, tmp_path):
    spec = make_spec(averaging="swad", steps=32, checkpoint_freq=2)
    undisturbed = train(spec, digits, tmp_path / "a", device=CPU)

    def kill(record):
        if "averaged" in record:
            raise Killed

    with pytest.raises(Killed):
        train(spec, digits, tmp_path / "b", device=CPU, on_record=kill)
    steps = []
    resumed = train(spec, digits, tmp_path / "b", device=CPU, on_progress=lambda step, loss: steps.append(step))
    assert steps == []  # the valley was dead already
    assert {**resumed, "seconds": None} == {**undisturbed, "seconds": None}


@pytest.fixture(scope="module")
def grey(digits):
    """The digits, enlarged for a network with batch norms."""
    domains = tuple(
        Domain(d.name, np.kron(d.inputs[:60], np.ones((1, 1, 2, 2), dtype=np.uint8)), d.targets[:60])
        for d in digits.domains[:3]
    )
    return DomainDataset(digits.name, domains, digits.classes, "small_images", "grey")


def test_batch_norms_that_are_not_frozen_get_statistics_of_the_averaged_weights(grey, make_spec, weights, tmp_path):
    """Their running mean is the mean over batches of what the averaged network sees, here at its first layer."""
    spec = make_spec(averaging="swad", model="test_resnet", data_fingerprint="grey", steps=4, checkpoint_freq=1)
    inputs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(averaging_module, "validation_loss", lambda record, targets: 1.0)
        update_bn = averaging_module.update_bn

        def spy(batches, network):
            inputs.extend(batches)
            update_bn(inputs, network)

        patch.setattr(averaging_module, "update_bn", spy)
        result = train(spec, grey, tmp_path, device=CPU)
    assert result["metrics"][-1]["averaged"] == [1, 4]
    assert [len(images) for images in inputs] == [8] * 4  # four of each source
    kept = load_file(tmp_path / "model.safetensors")
    mean = _mean(weights, range(1, 5))
    assert kept["classifier.weight"].numpy() == pytest.approx(mean["network.classifier.weight"], rel=1e-5, abs=1e-7)
    convolution = torch.from_numpy(mean["network.featurizer.conv1.0.weight"])
    seen = [torch.conv2d(images.double(), convolution, stride=2, padding=1) for images in inputs]
    expected = torch.stack([maps.mean(dim=(0, 2, 3)) for maps in seen]).mean(0)
    running = kept["featurizer.conv1.1.running_mean"]
    torch.testing.assert_close(running.double(), expected, rtol=1e-4, atol=1e-5)
    followed = mean["network.featurizer.conv1.1.running_mean"]
    assert np.abs(running.numpy() - followed).max() > 10 * np.abs(running.numpy() - expected.numpy()).max()


def test_every_evaluation_is_reported_once_with_its_record(digits, make_spec, tmp_path):
    records = []
    result = train(
        make_spec(averaging="swad", checkpoint_freq=3), digits, tmp_path, device=CPU, on_record=records.append
    )
    assert records == result["metrics"]
    assert [record["step"] for record in records] == [3, 6, 9, 12, 12]
    assert records == [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
