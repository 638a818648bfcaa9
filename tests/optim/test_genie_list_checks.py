"""The checks of whole lists, which steps usually pass: they accept nothing that the checks row by row refuse."""

import pytest
import torch

from shiftproof.optim import GENIE, GENIEAdamW
from shiftproof.optim.genie import fused_cpu
from shiftproof.optim.genie import step as genie_step
from shiftproof.optim.genie.functional import genie_adamw
from shiftproof.optim.genie.step import _unfit, make_rows

OPTIONS = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "dropout": 0.0, "seed": 0}


class Sub(torch.Tensor):
    """A subclass without behaviour of its own."""


def lists(count=2):
    params = [torch.ones(3) for _ in range(count)]
    return {
        "params": params,
        "grads": [torch.full((3,), 0.5) for _ in params],
        "exp_avgs": [torch.zeros(3) for _ in params],
        "exp_avg_sqs": [torch.zeros(3) for _ in params],
        "steps": [torch.zeros(()) for _ in params],
        "positions": list(range(count)),
    }


@pytest.mark.parametrize("short", list(lists()))
def test_lists_of_unequal_lengths_are_refused_and_nothing_moves(short):
    given = lists()
    given[short] = given[short][:1]
    with pytest.raises(ValueError, match="zip"):
        genie_adamw(*given.values(), **OPTIONS)
    assert all(bool((p == 1).all()) for p in given["params"])
    assert all(float(step) == 0 for step in given["steps"])


CHANGES = {
    "a gradient of another shape": ("grads", lambda t: torch.ones(4)),
    "a gradient of another type": ("grads", lambda t: t.double()),
    "a gradient of a subclass": ("grads", lambda t: t.as_subclass(Sub)),
    "a gradient that is a negated view": ("grads", lambda t: torch._neg_view(t)),
    "a gradient of zeros without memory": ("grads", lambda t: torch._efficientzerotensor(3)),
    "a gradient of whole numbers": ("grads", lambda t: t.long()),
    "a gradient elsewhere": ("grads", lambda t: t.to("meta")),
    "a moment of a subclass": ("exp_avgs", lambda t: t.as_subclass(Sub)),
    "a moment of another shape": ("exp_avgs", lambda t: torch.zeros(1)),
    "a moment of another type than the other": ("exp_avg_sqs", lambda t: t.bfloat16()),
    "moments in float16": ("exp_avgs", lambda t: t.half()),
    "a moment elsewhere": ("exp_avg_sqs", lambda t: t.to("meta")),
    "a moment in another order": ("exp_avgs", lambda t: torch.zeros(6)[::2]),
    "a parameter in another order": ("params", lambda t: torch.ones(6)[::2]),
    "a parameter of a subclass": ("params", lambda t: t.as_subclass(Sub)),
    "a parameter of doubles": ("params", lambda t: t.double()),
    "a complex parameter": ("params", lambda t: t.to(torch.complex64)),
    "a parameter without elements": ("params", lambda t: torch.ones(0)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_lists_pass_rows_pass_too(what, monkeypatch):
    """The lists may be stricter: then rows are looked at one by one, and take another implementation."""
    given = lists()
    name, change = CHANGES[what]
    given[name][1] = change(given[name][1])
    tensors = [given[key] for key in ("params", "grads", "exp_avgs", "exp_avg_sqs")]
    if genie_step._are_ordinary(*tensors):
        rows = make_rows(*given.values(), [None, None], capturable=False, begins=True)
        assert all(_unfit(row) is None for row in rows)
        if fused_cpu.takes_all(rows):
            assert all(fused_cpu.obstacle(row) is None for row in rows)


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("make", [lambda p: GENIEAdamW(p, dropout=0.4, seed=0), lambda p: GENIE(p, seed=0)])
def test_a_step_by_lists_is_the_step_by_rows(make, what, monkeypatch):
    """The same result, or the same complaint, as with the checks of lists turned off."""

    def outcome():
        torch.manual_seed(0)
        given = lists()
        name, change = CHANGES[what]
        if name == "params" and what.startswith("a parameter of a subclass"):
            given["params"][1] = change(given["params"][1])
        elif name == "params":
            given["params"][1] = change(given["params"][1])
            given["grads"][1] = torch.zeros_like(given["params"][1]) + 0.5
        optimizer = make(given["params"])
        for p, grad in zip(given["params"], given["grads"], strict=True):
            p.grad = grad
        if name in ("exp_avgs", "exp_avg_sqs"):
            optimizer.step()
            key = name.removesuffix("s")
            state = optimizer.state[given["params"][1]]
            state[key] = change(state[key])
        elif name == "grads":
            with torch.no_grad():
                try:
                    given["params"][1].grad = change(given["grads"][1])
                except (RuntimeError, TypeError) as error:
                    return str(error)
        try:
            optimizer.step()
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            return str(error).partition("\n")[0]
        return [p.detach().clone() for p in given["params"]]

    quick = outcome()
    monkeypatch.setattr(genie_step, "_are_ordinary", lambda *tensors: False)
    monkeypatch.setattr(fused_cpu, "takes_all", lambda rows: False)
    slow = outcome()
    if isinstance(quick, str) or isinstance(slow, str):
        assert quick == slow
    else:
        assert all(torch.equal(a, b) for a, b in zip(quick, slow, strict=True))


def test_a_state_on_another_scale_of_time_is_refused():
    weight = [torch.ones(3, requires_grad=True)]
    for optimizer in (GENIEAdamW(weight), torch.optim.AdamW(weight)):
        with pytest.raises(ValueError, match="GENIE cannot continue"):
            GENIE(weight).load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="an Adam with amsgrad"):
        GENIEAdamW(weight).load_state_dict(torch.optim.AdamW(weight, amsgrad=True).state_dict())
    with pytest.raises(ValueError, match="an Adam with an L2 penalty"):
        GENIEAdamW(weight).load_state_dict(torch.optim.Adam(weight, weight_decay=0.1).state_dict())
    GENIEAdamW(weight).load_state_dict(torch.optim.AdamW(weight).state_dict())


@pytest.mark.parametrize("cls", [GENIE, GENIEAdamW])
def test_dropout_is_no_tensor(cls):
    with pytest.raises(ValueError, match="Invalid dropout value: tensor"):
        cls([torch.ones(3)], dropout=torch.tensor(0.1))


def test_statistics_read_no_gradient():
    weight = torch.ones(3, requires_grad=True)
    optimizer = GENIEAdamW([weight])
    weight.grad = torch.ones(3)
    optimizer.step()
    weight.grad = torch.sparse_coo_tensor([[0]], [1.0], (3,))
    assert optimizer.statistics()[0] is not None
