"""Every algorithm with every optimizer, on one source domain and on several."""

import copy
import statistics

import pytest
import torch

from algorithms.made_up_runs import made_up, small, steps_of
from shiftproof.algorithms import ALGORITHMS, arm
from shiftproof.models import weighted_cross_entropy
from shiftproof.optim import OPTIMIZERS

STEPS, SAVED = 40, 30
RATES = {
    "sgd": 0.01,
    "adahessian": 0.1,
    "genie": 0.3,
    "genie_released": 0.1,
    "sign_genie": 0.1,
    "m_svag": 0.1,
    "signum": 0.001,
}  # else 0.005
ANNEALED = {"penalty_weight": 1.0, "anneal_steps": 20}  # the penalty is raised before the state is saved
BEGINS = {"anneal_steps": 20}
HPARAMS = {
    "irm": ANNEALED,
    "vrex": ANNEALED,
    "fishr": ANNEALED,
    "ib_erm": ANNEALED,
    "ib_irm": {**ANNEALED, "irm_weight": 1.0, "irm_anneal_steps": 25},
    "eqrm": BEGINS,
    "rdm": {**BEGINS, "penalty_weight": 0.1},
    "trm": BEGINS,
    "iga": {"penalty_weight": 0.01},  # at the default, which is for small learning rates, it takes longer
    "causirl_mmd": {"penalty_weight": 0.1},  # its penalty is of random parts of 6 images
    "cad": {"penalty_weight": 0.01},
    "condcad": {"penalty_weight": 0.01},
    "mixstyle_domains": {"p": 0.2},  # it mixes what tells the made-up classes apart
}
KINDS = ("adam", "sam", "adahessian")  # of one pass, of two, and with second derivatives
DOMAINS = (1, 2, 3)

CASES = [
    pytest.param(name, optimizer, domains, marks=[] if optimizer in KINDS and domains == 2 else pytest.mark.slow)
    for name, algorithm in ((name, ALGORITHMS[name]) for name in ALGORITHMS)
    for optimizer in OPTIMIZERS
    for domains in DOMAINS
    if algorithm.stepped
    and domains >= algorithm.min_domains
    and (algorithm.keeps_graph or not OPTIMIZERS[optimizer].needs_graph)
]


@pytest.fixture(autouse=True)
def small_context(monkeypatch):
    """ARM's context network is slow at its size."""
    monkeypatch.setattr(arm, "HIDDEN", 8)


def _steps(algorithm, optimizer, domains):
    built = small(ALGORITHMS[algorithm], domains, dropout=0.1, **HPARAMS.get(algorithm, {}))
    slower = 0.1 if built.needs_class_vectors else 1.0  # a logit is 100 times a cosine
    return steps_of(built, optimizer, slower * RATES.get(optimizer, 0.005))


def _take(steps, domains, number):
    return steps.take(made_up((6,) * domains, seed=number), number)


def _state(algorithm):
    optimizers = {name: optimizer.state_dict() for name, optimizer in algorithm.optimizers.items()}
    return copy.deepcopy((algorithm.state_dict(), optimizers))


@pytest.mark.filterwarnings("ignore:.* is ERM:UserWarning")
@pytest.mark.parametrize(("algorithm", "optimizer", "domains"), CASES)
def test_contract(algorithm, optimizer, domains):
    steps = _steps(algorithm, optimizer, domains)
    trained = steps.algorithm
    parameters = {name: p for name, p in trained.named_parameters() if p.requires_grad}
    stepped = [p for o in trained.optimizers.values() for group in o.param_groups for p in group["params"]]
    assert len(stepped) == len(parameters)
    assert {id(p) for p in stepped} == {id(p) for p in parameters.values()}

    start = copy.deepcopy(parameters)
    losses, saved, later = [], None, None
    for number in range(1, STEPS + 1):
        losses.append(_take(steps, domains, number))
        if number == SAVED:
            saved = _state(trained)
        if number == SAVED + 3:
            later = copy.deepcopy(trained.state_dict())
    assert all(loss.isfinite() and not loss.requires_grad for loss in losses)
    assert statistics.fmean(map(float, losses[-5:])) < 0.9 * statistics.fmean(map(float, losses[:5]))
    assert [name for name, p in parameters.items() if torch.equal(p, start[name])] == []
    assert steps.passes == STEPS * OPTIMIZERS[optimizer].passes

    again = _steps(algorithm, optimizer, domains)
    again.algorithm.load_state_dict(saved[0])
    for name, built in again.algorithm.optimizers.items():
        built.load_state_dict(saved[1][name])
    for number in range(SAVED + 1, SAVED + 4):
        assert torch.equal(_take(again, domains, number), losses[number - 1])
    assert [name for name, value in again.algorithm.state_dict().items() if not torch.equal(value, later[name])] == []

    trained.eval()
    images, _ = made_up((6,))[0]
    logits = trained.predict(images)
    assert logits.shape == (6, 3)
    assert torch.equal(trained.predict(images), logits)


@pytest.mark.parametrize(
    "algorithm", [name for name in ALGORITHMS if ALGORITHMS[name].weighs_classes and ALGORITHMS[name].stepped]
)
def test_weights_of_classes_reach_the_loss(algorithm):
    losses = []
    for weights in (None, [1.0, 1.0, 1.0], [1.0, 2.0, 5.0]):
        torch.manual_seed(0)
        steps = _steps(algorithm, "sgd", 2)
        if weights is not None:
            steps.algorithm.network.loss = weighted_cross_entropy(torch.tensor(weights))
        losses.append(float(_take(steps, 2, 1)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] != pytest.approx(losses[2], rel=1e-3)
