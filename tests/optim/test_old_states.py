"""States that commit 7318081 saved, the last before GENIE's invariant form was removed, load as they should.

`old_states.pt` holds, of every form, a `Linear(3, 2)` after three for-loop steps with gradients of normal numbers:
its weights, the state dict, the gradients of a fourth step and the weights that it reached. In those "before invariant"
the form was changed after the three steps, so that each parameter has a `scale` that the form does not read. `torch`
and `cpu` tell what computed them.
"""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

from shiftproof.optim import GENIE

OLD = torch.load(Path(__file__).with_name("old_states.pt"), weights_only=True)
SAME_ROUNDING = (OLD["torch"], OLD["cpu"]) == (torch.__version__, torch.backends.cpu.get_cpu_capability())
KEPT = [name for name in OLD if name.startswith(("paper", "released"))]


def _loaded(name, state=None):
    old = OLD[name]
    network = nn.Linear(3, 2)
    with torch.no_grad():
        for p, weights in zip(network.parameters(), old["weights"], strict=True):
            p.copy_(weights)
    optimizer = GENIE(network.parameters())
    optimizer.load_state_dict(deepcopy(state or old["state"]))
    return network, optimizer


def _fourth_step(network, optimizer, name):
    for p, gradient in zip(network.parameters(), OLD[name]["gradients"], strict=True):
        p.grad = gradient.clone()
    optimizer.step()
    return [p.detach().clone() for p in network.parameters()]


@pytest.mark.parametrize("fused", [False, None])
@pytest.mark.parametrize("name", KEPT)
def test_they_continue_as_before(name, fused):
    network, optimizer = _loaded(name)
    for group in optimizer.param_groups:
        group["fused"] = fused
    exact = SAME_ROUNDING and fused is False  # else tanh and noise may differ in their last bits
    reached = _fourth_step(network, optimizer, name)
    torch.testing.assert_close(reached, OLD[name]["reached"], rtol=0 if exact else 1e-5, atol=0 if exact else 1e-6)
    assert not all(map(torch.equal, reached, OLD[name]["weights"]))


@pytest.mark.parametrize("name", [name for name in KEPT if "invariant" in name])
def test_a_scale_that_no_form_reads_is_dropped(name):
    assert all("scale" in entries for entries in OLD[name]["state"]["state"].values())
    network, optimizer = _loaded(name)
    assert all("scale" not in entries for entries in optimizer.state_dict()["state"].values())
    _fourth_step(network, optimizer, name)
    assert all(entries.keys() == {"step", "exp_avg", "exp_avg_sq"} for entries in optimizer.state.values())


def test_a_state_of_the_removed_form_is_refused_and_nothing_changes():
    network, optimizer = _loaded("paper")
    before = deepcopy(optimizer.state_dict())
    weights = [p.detach().clone() for p in network.parameters()]
    with pytest.raises(ValueError, match="removed"):
        optimizer.load_state_dict(deepcopy(OLD["invariant"]["state"]))
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert after["state"].keys() == before["state"].keys()
    for index, entries in before["state"].items():
        assert after["state"][index].keys() == entries.keys()
        assert all(torch.equal(after["state"][index][name], t) for name, t in entries.items())
    reached = _fourth_step(network, optimizer, "paper")
    again = _fourth_step(*_loaded("paper"), "paper")
    assert all(map(torch.equal, reached, again))
    assert not all(map(torch.equal, reached, weights))
