"""GENIEAdamW where AdamW stood: its state, its schedulers, and what is not its own."""

import copy
import pickle

import pytest
import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from shiftproof.optim import GENIE, OPTIMIZERS, SAM, GENIEAdamW


def _stepped(optimizer, steps, first=0):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator) + 0.3
        optimizer.step()
    return [p.detach().clone() for p in params]


def _params():
    generator = torch.Generator().manual_seed(99)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in ((7, 5), (11,))]


def _equal(left, right):
    return all(torch.equal(p, q) for p, q in zip(left, right, strict=True))


def test_a_run_of_adamw_goes_on():
    """With its moments, its count of steps and its options; what AdamW does not have keeps its default."""
    params = _params()
    theirs = AdamW(params, lr=0.02, betas=(0.8, 0.95), weight_decay=0.1)
    _stepped(theirs, 5)
    others = [p.detach().clone().requires_grad_() for p in params]
    ours = GENIEAdamW(others)
    ours.load_state_dict(theirs.state_dict())
    [group] = ours.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.02, (0.8, 0.95), 0.1)
    assert (group["dropout"], group["moment_dtype"]) == (0.0, None)
    for p, q in zip(params, others, strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(ours.state[q][name], theirs.state[p][name])
    _stepped(ours, 1, 5)
    assert [float(ours.state[q]["step"]) for q in others] == [6, 6]


def test_a_state_of_genie_is_refused_and_nothing_is_loaded():
    genie, ours = GENIE(_params(), seed=0), GENIEAdamW(_params(), seed=0)
    _stepped(genie, 2)
    before = copy.deepcopy(ours.state_dict())
    with pytest.raises(ValueError, match="the state is of a GENIE optimizer, which GENIEAdamW cannot continue"):
        ours.load_state_dict(genie.state_dict())
    assert ours.state_dict() == before


@pytest.mark.parametrize("through", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])  # noqa: S301
def test_a_copy_goes_on_alike(through):
    optimizer = GENIEAdamW(_params(), lr=0.1, dropout=0.4, seed=5)
    _stepped(optimizer, 3)
    copied = through(optimizer)
    assert _equal(_stepped(copied, 3, 3), _stepped(optimizer, 3, 3))


def test_a_group_without_an_option_that_came_later_gets_its_default():
    optimizer = GENIEAdamW(_params(), dropout=0.4, seed=5)
    state = optimizer.__getstate__()
    state = {**state, "defaults": {k: v for k, v in state["defaults"].items() if k not in ("moment_dtype", "seed")}}
    for group in state["param_groups"]:
        del group["moment_dtype"], group["seed"]
    restored = GENIEAdamW.__new__(GENIEAdamW)
    restored.__setstate__(state)
    [group] = restored.param_groups
    assert (group["moment_dtype"], group["seed"], group["dropout"]) == (None, 0, 0.4)


def test_one_cycle_turns_its_betas_as_adamws():
    runs = []
    for cls in (GENIEAdamW, AdamW):
        optimizer = cls(_params(), lr=0.1)
        scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=8)
        seen = []
        for step in range(8):
            _stepped(optimizer, 1, step)
            seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]))
            if step < 7:
                scheduler.step()
        assert all(p.isfinite().all() for p in optimizer.param_groups[0]["params"])
        runs.append(seen)
    assert runs[0] == runs[1]
    assert len({betas for _, betas in runs[0]}) > 4


def test_sam_steps_it():
    [p] = [torch.ones(5, requires_grad=True)]
    optimizer = SAM([p], base=GENIEAdamW, lr=0.1, seed=0)

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    assert isinstance(optimizer.base, GENIEAdamW)
    assert (p < 0.6).all()


def test_the_registry_builds_it_without_weight_decay():
    optimizer = OPTIMIZERS["genie_adamw"](_params(), seed=3, lr=0.01, weight_decay=0.0, dropout=0.2)
    assert isinstance(optimizer, GENIEAdamW)
    assert optimizer.param_groups[0]["seed"] == 3
    assert OPTIMIZERS["genie_adamw"].search_space(pretrained=False, search="protocol")["weight_decay"].default == 0.0
