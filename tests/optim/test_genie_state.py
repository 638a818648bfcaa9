"""What GENIE makes of states and parameters that do not fit each other, in all implementations."""

import copy

import pytest
import torch
from torch import nn

from shiftproof.optim import GENIE
from shiftproof.optim.genie.functional import genie

IMPLEMENTATIONS = {
    "default": {},
    "foreach": {"foreach": True},
    "for-loop": {"foreach": False},
    "capturable": {"capturable": True},
}
every_implementation = pytest.mark.parametrize("how", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
every_form = pytest.mark.parametrize("form", ["paper", "released"])


def trained(sizes=(16, 7), steps=2, **options):
    torch.manual_seed(0)
    layer = nn.Linear(*sizes)
    optimizer = GENIE(layer.parameters(), lr=0.1, seed=0, **options)
    for _ in range(steps):
        gradients(layer)
        optimizer.step()
    gradients(layer)
    return layer, optimizer


def gradients(layer):
    generator = torch.Generator().manual_seed(1)
    for p in layer.parameters():
        p.grad = torch.randn(p.shape, generator=generator).to(p)


def weights(layer):
    return [p.detach().clone() for p in layer.parameters()]


@every_form
@every_implementation
def test_a_state_of_another_layer_is_refused(form, how):
    """A segmentation fault in the CPU kernel before."""
    _, optimizer = trained(form=form, **how)
    layer, other = trained((16, 40), steps=0, form=form, **how)
    with pytest.raises(ValueError, match=r"exp_avg of parameter 0 is of shape \(7, 16\), .* shape \(40, 16\)"):
        other.load_state_dict(optimizer.state_dict())
    start = weights(layer)
    other.step()
    assert not torch.equal(layer.weight, start[0])


@every_form
@every_implementation
def test_parameters_in_another_order_are_refused(form, how):
    layer, optimizer = trained(form=form, **how)
    other = GENIE([layer.bias, layer.weight], form=form, **how)
    with pytest.raises(ValueError, match=r"exp_avg of parameter 0 is of shape \(7, 16\), .* shape \(7,\)"):
        other.load_state_dict(optimizer.state_dict())
    named = GENIE(reversed(list(layer.named_parameters())), form=form, **how)
    with pytest.raises(ValueError, match=r"exp_avg of parameter 'bias' is of shape \(7, 16\)"):
        named.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("moment", ["exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float16])
@every_implementation
def test_moments_of_another_type_are_loaded_as_the_parameter_s(moment, dtype, how):
    """One moment in bfloat16 alone crashed the kernel, one in float64 was read as float32 bits."""
    layer, optimizer = trained(**how)
    saved = copy.deepcopy(optimizer.state_dict())
    for entries in saved["state"].values():
        entries[moment] = entries[moment].to(dtype)
    expected = {i: entries[moment].float() for i, entries in saved["state"].items()}
    other_layer, other = trained(**how)
    other.load_state_dict(saved)
    for i, p in enumerate(other_layer.parameters()):
        assert other.state[p][moment].dtype == torch.float32
        assert torch.equal(other.state[p][moment], expected[i])
    optimizer.step()
    other.step()
    if dtype == torch.float64:  # nothing was lost on the way
        assert all(map(torch.equal, weights(layer), weights(other_layer)))


def test_moments_keep_their_precision_beside_weights_in_bfloat16():
    """torch's own loading casts every state to the parameter's type."""
    _, optimizer = trained()
    saved = optimizer.state_dict()
    half = nn.Linear(16, 7).bfloat16()
    other = GENIE(half.parameters())
    other.load_state_dict(saved)
    for p, entries in zip(half.parameters(), saved["state"].values(), strict=True):
        for moment in ("exp_avg", "exp_avg_sq"):
            assert other.state[p][moment].dtype == torch.float32
            assert torch.equal(other.state[p][moment], entries[moment])


def test_a_checkpoint_s_type_of_moments_follows_its_groups():
    _, optimizer = trained(moment_dtype="bfloat16")
    layer, other = trained()
    other.load_state_dict(optimizer.state_dict())
    assert {other.state[p][m].dtype for p in layer.parameters() for m in ("exp_avg", "exp_avg_sq")} == {torch.bfloat16}


@pytest.mark.parametrize("moment", ["exp_avg", "exp_avg_sq"])
@every_implementation
def test_moments_of_two_types_are_an_error_in_a_step(moment, how):
    layer, optimizer = trained(**how)
    optimizer.state[layer.bias][moment] = optimizer.state[layer.bias][moment].bfloat16()
    start = weights(layer)
    with pytest.raises(RuntimeError, match=r"exp_avg and exp_avg_sq of parameter 1 are .*both must be"):
        optimizer.step()
    assert all(map(torch.equal, weights(layer), start))
    assert {float(state["step"]) for state in optimizer.state.values()} == {2.0}


@every_implementation
def test_nothing_changes_when_a_later_group_does_not_fit(how):
    first, second = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(5))
    optimizer = GENIE([{"params": [first]}, {"params": [second]}], **how)
    for p in (first, second):
        p.grad = torch.ones_like(p)
    optimizer.step()
    before = [first.detach().clone(), optimizer.state[first]["exp_avg"].clone()]
    second.data = torch.ones(9)
    second.grad = torch.ones(9)
    with pytest.raises(RuntimeError, match=r"exp_avg of parameter 1 is of shape \(5,\), .* shape \(9,\)"):
        optimizer.step()
    assert torch.equal(first, before[0])
    assert torch.equal(optimizer.state[first]["exp_avg"], before[1])
    assert optimizer.state[first]["step"] == 1


@pytest.mark.parametrize("fused", [None, True])
def test_no_group_moves_when_nothing_takes_a_later_one(fused):
    """Its memory order changed, which the fused kernel does not take; or its elements share their memory."""
    first, second = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(2, 3, 4, 4))
    optimizer = GENIE([{"params": [first]}, {"params": [second]}], fused=fused, seed=0)

    def new_gradients():
        for p in (first, second):
            p.grad = torch.ones(p.shape)

    new_gradients()
    optimizer.step()
    if fused:
        second.data = second.data.to(memory_format=torch.channels_last)
    else:
        second.data = torch.ones(()).expand(2, 3, 4, 4)
    new_gradients()
    before = [first.detach().clone(), optimizer.state[first]["exp_avg"].clone()]
    with pytest.raises(RuntimeError, match=r"in another order|expanded over itself"):
        optimizer.step()
    assert torch.equal(first, before[0])
    assert torch.equal(optimizer.state[first]["exp_avg"], before[1])
    assert optimizer.state[first]["step"] == 1


@every_implementation
@pytest.mark.parametrize("step", [float("nan"), float("inf"), 1e30, -1.0])
def test_a_step_count_that_is_none_is_a_sentence(how, step):
    layer, optimizer = trained(**how)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][1]["step"] = torch.tensor(step)
    with pytest.raises(ValueError, match="the step count of parameter 1 is"):
        optimizer.load_state_dict(saved)
    if not how.get("capturable"):  # which does not read it
        optimizer.state[layer.bias]["step"].fill_(step)
        with pytest.raises(RuntimeError, match="the step count of parameter 1 is below 0, or no number"):
            optimizer.step()


def test_a_state_without_steps_leaves_none_behind():
    layer, optimizer = trained(steps=0)
    optimizer.load_state_dict(optimizer.state_dict())
    assert not optimizer.state
    optimizer.step()
    assert set(optimizer.state) == set(layer.parameters())


def test_negated_and_zero_tensors_of_autograd_are_stepped():
    p, q = (nn.Parameter(torch.ones(6)) for _ in range(2))
    one, other = GENIE([p], seed=0), GENIE([q], seed=0)
    p.grad, q.grad = torch._efficientzerotensor(6), torch.zeros(6)
    for optimizer in (one, other):
        optimizer.step()
    p.grad, q.grad = torch.complex(torch.ones(6), torch.ones(6)).conj().imag, -torch.ones(6)
    assert p.grad.is_neg()
    for optimizer in (one, other):
        optimizer.step()
    torch.testing.assert_close(p, q)
    assert not torch.equal(p, torch.ones(6))


@every_implementation
@pytest.mark.parametrize("which", ["exp_avgs", "exp_avg_sqs", "grads"])
@pytest.mark.parametrize("wrong", [torch.ones(7), torch.ones(1), torch.ones(10, 1), torch.ones(10).to_sparse()])
def test_the_functional_checks_what_it_is_given(how, which, wrong):
    lists = {name: [torch.ones(10)] for name in ("params", "grads", "exp_avgs", "exp_avg_sqs")}
    lists[which] = [wrong]
    steps = [torch.tensor(1.0)]
    options = {"lr": 0.1, "beta": 0.9, "dropout": 0.0, "noise": 1.0, "precondition": True, "weight_decay": 0.0}
    with pytest.raises(RuntimeError, match=r"sparse|of shape|of layout"):
        genie(*lists.values(), steps, [0], form="paper", seed=0, **options, **how)
    assert torch.equal(lists["params"][0], torch.ones(10))
    assert steps[0] == 1.0
    lists[which] = [torch.ones(10)]
    with pytest.raises(ValueError, match=r"zip\(\)"):
        genie(*lists.values(), [], [0], form="paper", seed=0, **options, **how)


@every_implementation
@every_form
def test_another_type_of_parameter_goes_on(how, form):
    """``model.double()`` or ``model.bfloat16()`` between steps: moments stay, and the step is as exact as they are."""
    layer, optimizer = trained(form=form, **how)
    reference = copy.deepcopy((layer, optimizer))
    optimizer.step()
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.bfloat16, 2e-2)):
        other_layer, other = copy.deepcopy(reference)
        moved = other.state[other_layer.weight]["exp_avg"]
        for p in other_layer.parameters():
            p.data, p.grad = p.data.to(dtype), None
        gradients(other_layer)
        other.step()
        assert other.state[other_layer.weight]["exp_avg"] is moved
        assert moved.dtype == torch.float32
        for p, q in zip(other_layer.parameters(), layer.parameters(), strict=True):
            assert p.dtype == dtype
            torch.testing.assert_close(p.float(), q, rtol=tolerance, atol=tolerance)


@every_implementation
@every_form
def test_another_memory_order_of_the_parameter_goes_on(how, form):
    """``model.to(memory_format=...)`` between steps, and weights swapped for views as an average's are."""
    results = []
    for changes in (False, True):
        torch.manual_seed(0)
        layer = nn.Conv2d(3, 4, 3)
        optimizer = GENIE(layer.parameters(), lr=0.1, seed=0, form=form, **how)
        gradients(layer)
        optimizer.step()
        if changes:
            layer.to(memory_format=torch.channels_last)
            layer.bias.data = torch.stack([layer.bias.data] * 2, 1)[:, 0]  # a column
        for _ in range(2):
            gradients(layer)
            optimizer.step()
        results.append(weights(layer))
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@every_implementation
def test_a_parameter_on_another_device_is_a_sentence(how):
    layer, optimizer = trained(**how)
    state = optimizer.state[layer.bias]
    state["exp_avg"] = state["exp_avg"].to("meta")
    with pytest.raises(RuntimeError, match="exp_avg of parameter 1 is on meta, and the parameter on cpu; move a model"):
        optimizer.step()
    assert {float(state["step"]) for state in optimizer.state.values()} == {2.0}


@every_implementation
def test_a_state_without_a_moment_is_a_sentence(how):
    layer, optimizer = trained(**how)
    del optimizer.state[layer.bias]["exp_avg_sq"]
    with pytest.raises(RuntimeError, match=r"the state of a parameter of shape \(7,\) has no exp_avg_sq"):
        optimizer.step()


def test_a_failure_within_the_step_is_not_counted(monkeypatch):
    from shiftproof.optim.genie import step as genie_step

    def fail(rows, options):
        raise MemoryError("no room")

    for options in IMPLEMENTATIONS.values():
        layer, optimizer = trained(**options)
        with monkeypatch.context() as patch:
            patch.setattr(genie_step, "begin_forloop", fail)
            patch.setattr(genie_step, "begin_foreach", fail)
            patch.setattr(genie_step.fused_cpu, "begin", fail)
            with pytest.raises(MemoryError):
                optimizer.step()
        assert {float(optimizer.state[p]["step"]) for p in layer.parameters()} == {2.0}


def test_the_removed_form_says_so():
    p = nn.Parameter(torch.ones(2))
    message = 'form="invariant" was removed.*"paper" or form="released"'
    with pytest.raises(ValueError, match=message):
        GENIE([p], form="invariant")
    optimizer = GENIE([p])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "form": "invariant", "lr": 0.1})
    saved = optimizer.state_dict()
    saved["param_groups"][0]["form"] = "invariant"
    saved["param_groups"][0]["lr"] = 7.0
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_scales_of_the_removed_form_are_dropped():
    layer, optimizer = trained()
    saved = copy.deepcopy(optimizer.state_dict())
    for entries in saved["state"].values():
        entries["scale"] = torch.ones(2)
    other_layer, other = trained(steps=0)
    other_layer.load_state_dict(layer.state_dict())
    other.load_state_dict(saved)
    assert all(set(state) == {"step", "exp_avg", "exp_avg_sq"} for state in other.state.values())
    gradients(layer), gradients(other_layer)
    optimizer.step()
    other.step()
    assert all(map(torch.equal, weights(layer), weights(other_layer)))
