"""Every algorithm on the networks that DomainBed has for small images."""

import copy

import pytest
import torch

from algorithms.made_up_runs import made_up, steps_of
from shiftproof.algorithms import ALGORITHMS, arm
from shiftproof.algorithms.stages import find_stages
from shiftproof.models import build_network

CASES = [
    pytest.param(name, model, marks=[] if ALGORITHMS[name].reads_pictures else pytest.mark.slow)
    for name in ALGORITHMS
    for model in ("mnist_cnn", "wide_resnet_16_2")
    if ALGORITHMS[name].stepped and not ALGORITHMS[name].needs_class_vectors
]


@pytest.mark.parametrize(("algorithm", "model"), CASES)
def test_it_trains_every_weight(algorithm, model, monkeypatch):
    monkeypatch.setattr(arm, "HIDDEN", 8)  # its context network is slow at its size
    network = build_network(model, (1, 16, 16), 3, dropout=0.0, seed=0)
    stages = [stage.name for stage in find_stages(network)]
    built = ALGORITHMS[algorithm](network, 2)
    if algorithm == "mixstyle":
        assert list(built.stages) == stages[:3]
    steps = steps_of(built)
    start = copy.deepcopy(dict(built.network.named_parameters()))
    losses = [steps.take(made_up(seed=step), step) for step in (1, 2, 3)]
    assert torch.stack(losses).isfinite().all()
    # a bias that a batch norm subtracts again need not move
    weights = {name: p for name, p in built.network.named_parameters() if p.ndim > 1}
    assert [name for name, weight in weights.items() if weight.equal(start[name])] == []
    built.eval()
    assert built.predict(made_up((6,))[0][0]).shape == (6, 3)
