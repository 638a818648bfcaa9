"""Runs that train the head or the last blocks: every algorithm, annealer and optimizer leaves the rest as it is."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from algorithms.made_up_runs import FROM_SCRATCH
from shiftproof.algorithms import ALGORITHMS
from shiftproof.base.field_error import FieldError
from shiftproof.base.files import read_json
from shiftproof.models import build_network, freeze_all_but, weights_fingerprint
from shiftproof.optim import OPTIMIZERS
from shiftproof.training import train
from training.killed import train_killed_at

CPU = torch.device("cpu")
LAST = ("featurizer.11.", "featurizer.12.")
SEARCH = {"annealer.radius": 0.01, "annealer.candidates": 2, "annealer.start": 1, "annealer.end": 3}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "lenet.safetensors"
    save_file(build_network("small_lenet", (1, 28, 28), 10, dropout=0.0, seed=3).featurizer.state_dict(), file)
    return file


@pytest.fixture
def spec_of(make_spec, weights):
    def make(trained, **changes):
        hparams = {"data.batch_size": 4, "model.dropout": 0.2, "optimizer.lr": 0.01, **changes.pop("more", {})}
        facts = {"model": "small_lenet", "weights": weights_fingerprint(weights), "hparams": hparams, "steps": 3}
        return make_spec(**{**facts, "checkpoint_freq": 3, "trained": trained, **changes})

    return make


def _moved(folder, weights):
    """The names of the parameters that a run's model has, and those of them that are not the start's."""
    start = {f"featurizer.{name}": value for name, value in load_file(weights).items()}
    model = {name: value for name, value in load_file(folder / "model.safetensors").items() if name in start}
    assert model.keys() == start.keys()
    return {name for name, value in model.items() if not torch.equal(value, start[name])}


def _check(trained, folder, weights):
    moved = _moved(folder, weights)
    assert moved == set() if trained == "head" else moved and all(name.startswith(LAST) for name in moved)


@pytest.mark.parametrize("trained", ["head", "blocks:1"])
@pytest.mark.parametrize("algorithm", [name for name in (*FROM_SCRATCH, "lp_ft") if name != "arm"])
def test_every_algorithm_leaves_the_rest(trained, algorithm, spec_of, digits, weights, tmp_path):
    spec = spec_of(trained, algorithm=algorithm, score_targets=True)
    result = train(spec, digits, tmp_path, device=CPU, weights=weights)
    assert result["status"] == "finished"
    _check(trained, tmp_path, weights)


def test_arm_is_refused_because_its_context_would_not_be_read(spec_of, digits, weights, tmp_path):
    with pytest.raises(ValueError, match="its first convolution is frozen and would never read it"):
        train(spec_of("blocks:1", algorithm="arm"), digits, tmp_path, device=CPU, weights=weights)


def test_a_search_is_refused_where_nothing_may_move(spec_of, digits, weights, tmp_path):
    with pytest.raises(FieldError, match="gga searches the featurizer's weights, which are frozen: train all"):
        train(spec_of("head", annealer="gga", more=SEARCH), digits, tmp_path, device=CPU, weights=weights)


@pytest.mark.parametrize(("annealer", "trained"), [("gga", "blocks:1"), ("gga_l", "blocks:1"), ("gga_l", "head")])
def test_every_annealer_leaves_the_rest(trained, annealer, spec_of, digits, weights, tmp_path):
    spec = spec_of(trained, annealer=annealer, more=SEARCH if annealer == "gga" else {})
    assert train(spec, digits, tmp_path, device=CPU, weights=weights)["status"] == "finished"
    _check(trained, tmp_path, weights)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_every_optimizer_leaves_the_rest(optimizer, spec_of, digits, weights, tmp_path):
    spec = spec_of("blocks:1", optimizer=optimizer)
    assert train(spec, digits, tmp_path, device=CPU, weights=weights)["status"] == "finished"
    _check("blocks:1", tmp_path, weights)


def test_a_network_with_parts_added_keeps_its_frozen_part_frozen():
    network = build_network("resnet18", (3, 64, 64), 7, dropout=0.0, seed=0, freeze_batch_norm=False)
    freeze_all_but(network, "blocks:1")
    extended = ALGORITHMS["mtl"](network, 2).network.train()
    training = {name for name, module in extended.featurizer.named_modules() if module.training and "bn" in name}
    assert training == {"layer4.1.bn1", "layer4.1.bn2"}


def test_killed_it_ends_as_undisturbed(spec_of, digits, weights, tmp_path):
    spec = spec_of("blocks:1", optimizer="genie_adamw", averaging="ema", steps=9)
    train(spec, digits, tmp_path / "whole", device=CPU, weights=weights)
    train_killed_at(5, spec, digits, tmp_path / "killed", weights=weights)
    train(spec, digits, tmp_path / "killed", device=CPU, weights=weights)
    whole, killed = ({**read_json(tmp_path / run / "result.json", ""), "seconds": None} for run in ("whole", "killed"))
    assert json.dumps(whole) == json.dumps(killed)


def test_all_is_the_run_that_it_was_and_another_part_is_another_run(spec_of):
    specs = [spec_of(trained) for trained in ("all", "head", "blocks:1")]
    assert len({spec.name for spec in specs}) == 3
    facts = {name: value for name, value in vars(specs[0]).items() if name != "trained"}
    assert (
        type(specs[0])(**{n: v for n, v in facts.items() if not n.startswith("_") and n != "name"}).name
        == specs[0].name
    )


def test_swad_estimates_statistics_anew_of_trained_parts_only(make_spec, digits, tmp_path):
    """In a dialect that does not freeze them all; the model is one of timm's, which takes grey pictures too."""
    model = "tf_efficientnet_lite0"
    network = build_network(model, (1, 28, 28), 10, dropout=0.0, seed=3)
    with torch.no_grad():
        for name, buffer in network.featurizer.named_buffers():
            if name.endswith("running_mean"):
                buffer += 0.1
    save_file(network.featurizer.state_dict(), tmp_path / "weights.safetensors")
    file = tmp_path / "weights.safetensors"
    spec = make_spec(
        model=model, weights=weights_fingerprint(file), trained="blocks:1", averaging="swad", protocol="domainbed-head",
        steps=12, checkpoint_freq=3, hparams={"data.batch_size": 4, "model.dropout": 0.0, "optimizer.lr": 1e-4},
    )  # fmt: skip
    assert train(spec, digits, tmp_path / "run", device=CPU, weights=file)["status"] == "finished"
    moved = _moved(tmp_path / "run", file)
    assert any(name.endswith("running_mean") for name in moved)
    trained = tuple(f"featurizer.{part}." for part in ("blocks.6.0", "conv_head", "bn2"))
    assert all(name.startswith(trained) for name in moved)
