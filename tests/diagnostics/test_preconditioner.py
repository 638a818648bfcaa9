"""The preconditioner that is read from an optimizer's state, against the steps that the optimizer takes."""

import pytest
import torch
from torch import nn

from shiftproof.diagnostics.preconditioner import preconditioner
from shiftproof.optim import GENIE, SAM, AdaBelief, AdaHessian, GENIEAdamW, Yogi
from shiftproof.optim.multipass import MultiPass

NO_MOMENTUM = {"betas": (0.0, 0.99)}
PLAIN = {"dropout": 0.0, "noise": 0.0}


def _weights(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, dtype=dtype, generator=generator)) for shape in ((4, 3), (5,))]


def _steps(optimizer, weights, count):
    """Take steps with random gradients of a weak signal; return the last gradients and what they changed."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        before = [w.detach().clone() for w in weights]
        for w in weights:
            w.grad = 0.3 + torch.randn(w.shape, dtype=torch.float64, generator=generator).to(w.dtype)
        optimizer.step()
    return [w.grad for w in weights], [b - w.detach() for b, w in zip(before, weights, strict=True)]


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize(
    ("build", "options"),
    [
        (torch.optim.SGD, {"lr": 0.1}),
        (torch.optim.Adam, {"lr": 0.1, **NO_MOMENTUM}),
        (torch.optim.Adam, {"lr": 0.1, "amsgrad": True, **NO_MOMENTUM}),
        (torch.optim.AdamW, {"lr": torch.tensor(0.1), "weight_decay": 0.0, **NO_MOMENTUM}),
        (Yogi, {"lr": 0.1, **NO_MOMENTUM}),
        (AdaBelief, {"lr": 0.1, "betas": (0.5, 0.99)}),
        (AdaHessian, {"lr": 0.1, **NO_MOMENTUM}),
        (GENIE, {"form": "paper", **PLAIN}),
        (GENIE, {"form": "released", **PLAIN}),
        (GENIE, {"form": "released", "beta": 0.0, **PLAIN}),
        (GENIE, {"form": "released", "precondition": False, **PLAIN}),
        (GENIEAdamW, {"lr": 0.1, "weight_decay": 0.0}),
        (GENIEAdamW, {"lr": 0.1, "weight_decay": 0.0, "betas": (0.0, 0.99), "eps": 0.1}),
    ],
)
def test_a_step_is_the_mean_gradient_times_the_preconditioner_after_it(build, options, count):
    weights = _weights()
    optimizer = build(weights, **options)
    if build is AdaHessian:

        def closure():
            optimizer.zero_grad()
            loss = sum((w**3).sum() for w in weights)
            loss.backward(create_graph=True)
            return loss

        for _ in range(count):
            before = [w.detach().clone() for w in weights]
            optimizer.step(closure)
        gradients, moved = [w.grad for w in weights], [b - w.detach() for b, w in zip(before, weights, strict=True)]
    else:
        gradients, moved = _steps(optimizer, weights, count)
    for w, g, change, factor in zip(weights, gradients, moved, preconditioner(optimizer), strict=True):
        mean = g
        if "exp_avg" in optimizer.state[w]:
            group = optimizer.param_groups[0]
            beta = group["beta"] if "beta" in group else group["betas"][0]
            mean = optimizer.state[w]["exp_avg"] / (1 - beta**count)
        torch.testing.assert_close(factor * mean, change, rtol=1e-10, atol=1e-14)
        assert not factor.requires_grad


@pytest.mark.parametrize("form", ["paper", "released"])
def test_genies_is_that_of_moments_kept_in_bfloat16(form):
    weights = _weights(torch.float32)
    optimizer = GENIE(weights, form=form, moment_dtype="bfloat16", **PLAIN)
    _, moved = _steps(optimizer, weights, 6)
    for w, change, factor in zip(weights, moved, preconditioner(optimizer), strict=True):
        mean = optimizer.state[w]["exp_avg"].float() / (1 - 0.95**6)
        torch.testing.assert_close(factor * mean, change, rtol=1e-4, atol=1e-6)


def test_the_factor_is_of_hand_computed_moments():
    p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = torch.optim.Adam([p], lr=0.5, betas=(0.9, 0.8), eps=0.1)
    for gradient in ([1.0, 2.0], [3.0, 0.0]):
        p.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    [factor] = preconditioner(optimizer)
    v = [(0.8 * 0.2 * 1 + 0.2 * 9) / 0.36, 0.8 * 0.2 * 4 / 0.36]
    assert factor.tolist() == pytest.approx([0.5 / (x**0.5 + 0.1) for x in v], rel=1e-12)


def test_before_the_first_step_only_sgd_has_one():
    weights = _weights()
    for build in (torch.optim.Adam, Yogi, GENIE, GENIEAdamW):
        assert preconditioner(build(weights, lr=0.1)) is None
    genie = GENIE(weights)
    genie.init_state()
    assert preconditioner(genie) is None
    assert all((factor == 0.1).all() for factor in preconditioner(torch.optim.SGD(weights, lr=0.1, momentum=0.9)))


def test_what_is_not_known_has_none():
    class Adam2(torch.optim.Adam):
        pass

    for build in (torch.optim.RMSprop, torch.optim.NAdam, Adam2):
        weights = _weights()
        optimizer = build(weights, lr=0.1)
        _steps(optimizer, weights, 2)
        assert preconditioner(optimizer) is None


def test_an_optimizer_of_the_same_name_with_another_state_has_none():
    class Adam(torch.optim.SGD):  # as those of other libraries, which keep "state1" or "exp_avg_var"
        def step(self, closure=None):
            super().step(closure)
            for p in self.param_groups[0]["params"]:
                self.state[p]["step"] = 1

    weights = _weights()
    optimizer = Adam(weights, lr=0.1)
    _steps(optimizer, weights, 1)
    assert preconditioner(optimizer) is None


def test_a_multi_pass_optimizer_has_its_bases():
    weights, alone = _weights(), _weights()
    sam, adam = SAM(weights, rho=0.0, lr=0.1), torch.optim.Adam(alone, lr=0.1)
    assert isinstance(sam, MultiPass)
    assert preconditioner(sam) is None
    for _ in range(3):

        def closure():
            sam.zero_grad()
            loss = sum((w**4).sum() for w in weights)
            loss.backward()
            return loss

        sam.step(closure)
        adam.zero_grad()
        sum((w**4).sum() for w in alone).backward()
        adam.step()
    for ours, theirs in zip(preconditioner(sam), preconditioner(adam), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_groups_have_their_own_lr_and_what_takes_no_step_has_zero():
    first, second = _weights()
    frozen = nn.Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)
    optimizer = torch.optim.Adam([{"params": [first, frozen]}, {"params": [second], "lr": 0.01}], lr=0.1)
    for p in (first, second):
        p.grad = torch.ones_like(p)
    optimizer.step()
    a, none, b = preconditioner(optimizer)
    assert a.unique().tolist() == pytest.approx([0.1 / (1 + 1e-8)])
    assert b.unique().tolist() == pytest.approx([0.01 / (1 + 1e-8)])
    assert none.tolist() == [0, 0]


def test_an_element_without_gradients_has_factor_zero_in_the_papers_form():
    p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = GENIE([p], lr=1.0, **PLAIN)
    p.grad = torch.tensor([0.0, 1.0], dtype=torch.float64)
    optimizer.step()
    [factor] = preconditioner(optimizer)
    # after one step m^2 / v is 1 - beta = 0.05; the variance 0.05 * 0.95 is small enough for certainty 1
    assert factor.tolist() == pytest.approx([0.0, 0.05], rel=1e-12)
