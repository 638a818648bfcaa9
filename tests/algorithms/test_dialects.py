"""Every algorithm that has options for the dialects of published code trains with them and goes on where it stopped."""

import pytest
import torch

from algorithms.made_up_batches import assert_resumes, double_network
from shiftproof.algorithms import ALGORITHMS, arm
from shiftproof.base.hparams import REFERENCE_DIALECTS
from shiftproof.optim import OPTIMIZERS
from shiftproof.protocol.settings import search_space, setting

OPTIONAL = [
    (name, dialect)
    for name in ALGORITHMS
    for dialect in REFERENCE_DIALECTS
    if any(dialect in hparam.in_dialects for hparam in ALGORITHMS[name].hparams.values())
]
SMALL = {"dann": {"mlp_width": 8}, "cdann": {"mlp_width": 8}, "adrmx": {"mlp_width": 8}, "mldg": {"inner_lr": 1e-3}}


@pytest.fixture(autouse=True)
def small_context(monkeypatch):
    """ARM's context network is slow at its size."""
    monkeypatch.setattr(arm, "HIDDEN", 8)


@pytest.mark.filterwarnings("ignore:.* is ERM:UserWarning")
@pytest.mark.parametrize(("name", "dialect"), OPTIONAL)
@pytest.mark.parametrize(
    "optimizer", [pytest.param(name, marks=[] if name == "adam" else pytest.mark.slow) for name in OPTIMIZERS]
)
def test_it_resumes_and_moves_every_weight(name, dialect, optimizer):
    space = search_space("PACS", "photographs", True, name, optimizer, "none", "protocol")
    values = setting(space, {}, 0, 0, dialect)
    options = {key.removeprefix("algorithm."): value for key, value in values.items() if key.startswith("algorithm.")}
    assert any(ALGORITHMS[name].hparams[key].in_dialects.get(dialect) == value for key, value in options.items())

    def build(domains):
        torch.manual_seed(2)
        return ALGORITHMS[name](double_network(0.1), domains, **{**options, **SMALL.get(name, {})}).double()

    for domains in range(ALGORITHMS[name].min_domains, 4):
        whole = assert_resumes(lambda domains=domains: build(domains), optimizer, (4, 6, 3)[:domains], 4, 2)
        start = build(domains).state_dict()
        for parameter, value in whole.algorithm.named_parameters():
            assert value.isfinite().all()
            assert not torch.equal(value, start[parameter]) or parameter.endswith("bias"), parameter
