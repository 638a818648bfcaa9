"""Every algorithm in a run: killed and continued, in bfloat16, with accumulated gradients, on a compiled model."""

import json

import pytest
import torch
from torch._dynamo.utils import counters

from algorithms.made_up_runs import FROM_SCRATCH, made_up, small, steps_of
from shiftproof.algorithms import ALGORITHMS, arm
from shiftproof.base.randomness import seed_generators, torch_seed
from shiftproof.training import check_combination, train
from shiftproof.training.step import split_batches
from training.killed import train_killed_at

ANNEALED = {"algorithm.anneal_steps": 3}  # the penalty is raised before the run is killed
HPARAMS = {
    **dict.fromkeys(("irm", "vrex", "fishr", "ib_erm", "eqrm", "rdm", "trm"), ANNEALED),
    "ib_irm": {**ANNEALED, "algorithm.irm_anneal_steps": 4},
}
ACCUMULATING = {"erm", "dann", "fish", "miro", "mixstyle", "mixup", "sagnet", "sd", "urm"}
ACCUMULATING |= {"cutmix", "orgmixup", "mixstyle_domains"}
every_algorithm = pytest.mark.parametrize("algorithm", FROM_SCRATCH)


@pytest.fixture(autouse=True)
def small_context(monkeypatch):
    """ARM's context network is slow at its size."""
    monkeypatch.setattr(arm, "HIDDEN", 8)


@pytest.fixture
def spec_of(make_spec):
    def make(algorithm, **changes):
        hparams = {"data.batch_size": 4, "model.dropout": 0.2, "optimizer.lr": 0.002, **HPARAMS.get(algorithm, {})}
        return make_spec(**{"algorithm": algorithm, "hparams": hparams, "steps": 6, "checkpoint_freq": 3, **changes})

    return make


@every_algorithm
def test_killed_it_ends_as_undisturbed(algorithm, spec_of, digits, tmp_path):
    spec = spec_of(algorithm)
    undisturbed = train(spec, digits, tmp_path / "whole", device=torch.device("cpu"))
    train_killed_at(5, spec, digits, tmp_path / "killed")
    continued = train(spec, digits, tmp_path / "killed", device=torch.device("cpu"))
    for result in (undisturbed, continued):
        del result["seconds"]
    assert json.loads(json.dumps(continued)) == json.loads(json.dumps(undisturbed))
    assert undisturbed["status"] == "finished"
    models = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "killed")]
    assert models[0] == models[1]


@every_algorithm
def test_in_bfloat16_it_stays_finite_and_near(algorithm):
    losses = {}
    for precision in ("float32", "bf16"):
        annealed = {name.removeprefix("algorithm."): value for name, value in HPARAMS.get(algorithm, {}).items()}
        steps = steps_of(small(ALGORITHMS[algorithm], 3, **annealed), "adam", 0.002, precision=precision)
        losses[precision] = torch.stack([steps.take(made_up((8, 8, 8), seed=n), n) for n in range(1, 7)])
        assert all(bool(p.isfinite().all()) for p in steps.algorithm.parameters())
        assert all(p.dtype == torch.float32 for p in steps.algorithm.parameters())
    assert not torch.equal(losses["bf16"], losses["float32"])
    torch.testing.assert_close(losses["bf16"].float()[:3], losses["float32"][:3], rtol=0.03, atol=0.03)


@pytest.mark.parametrize(
    "algorithm", ["erm", "miro", "mixstyle", "mixup", "sagnet", "sd", "cutmix", "orgmixup", "mixstyle_domains"]
)
def test_accumulated_gradients_are_the_mean_of_the_parts(algorithm):
    batches = made_up((8, 8), dtype=torch.float64)
    parts = split_batches(batches, 2)
    reference = small(ALGORITHMS[algorithm], dtype=torch.float64).train()
    seed_generators(torch_seed(0, "step", 1), torch.device("cpu"))
    loss = torch.stack([reference.objective(part) for part in parts]).mean()
    loss.backward()
    steps = steps_of(small(ALGORITHMS[algorithm], dtype=torch.float64), "sgd", accumulate=2)
    torch.testing.assert_close(steps.take(batches, 1), loss.detach())
    expected = {name: p.grad for name, p in reference.named_parameters() if p.requires_grad}
    torch.testing.assert_close({n: p.grad for n, p in steps.algorithm.named_parameters() if n in expected}, expected)


@every_algorithm
def test_where_parts_are_not_the_whole_they_are_refused(algorithm, spec_of):
    spec = spec_of(algorithm, accumulate=2)
    if algorithm in ACCUMULATING:
        check_combination(spec, 3)
    else:
        with pytest.raises(ValueError, match=f"the loss of {algorithm} is not the mean over parts of a batch"):
            check_combination(spec, 3)


@pytest.mark.slow
@every_algorithm
def test_on_a_compiled_model_it_takes_the_same_steps(algorithm):
    losses = []
    for compiled in (False, True):
        hparams = {"mldg": {"first_order": True}, "iga": {"penalty_weight": 0.0}}.get(algorithm, {})
        torch.manual_seed(0)  # of what an algorithm builds beside the network
        steps = steps_of(small(ALGORITHMS[algorithm], 2, **hparams), "sgd")
        if compiled:
            steps.algorithm.network.featurizer.compile(backend="aot_eager")
            torch.compiler.reset()
            counters.clear()
        losses.append(torch.stack([steps.take(made_up(seed=n), n) for n in (1, 2, 3)]))
    assert counters["stats"]["calls_captured"] > 0
    torch.testing.assert_close(losses[1], losses[0])


@pytest.mark.slow
def test_the_second_derivatives_of_mldg_a_compiled_model_does_not_have():
    torch.compiler.reset()
    steps = steps_of(small(ALGORITHMS["mldg"], 2), "sgd")
    steps.algorithm.network.featurizer.compile(backend="aot_eager")
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        steps.take(made_up(), 1)
