"""What holds of all multi-pass optimizers: their steps against closed forms, and what their base sees to."""

import copy
import io
import itertools
import math
import pickle
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.func import functional_call
from torch.nn import functional as F

from shiftproof.optim import ASAM, FAD, GAM, GENIE, GSAM, SAGM, SAM, AdaHessian, MultiPass, Yogi
from shiftproof.optim.perturbed_loss import STEPS

SGD = torch.optim.SGD
OPTIMIZERS = (SAM, ASAM, GSAM, SAGM, GAM, FAD)
every_optimizer = pytest.mark.parametrize("cls", OPTIMIZERS)

# --------------------------------------------------------------- steps, on a quadratic where the gradient is A w

SHAPE = (2, 3)  # of a first parameter; a second has one dimension
HESSIAN = torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
HESSIAN = HESSIAN @ HESSIAN.T + torch.eye(8, dtype=torch.float64)
START = torch.randn(8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def unit(v):
    return v / v.norm()


def orthogonal(v, to):
    return v - (v @ to) / (to @ to) * to


def sam(grad, w, rho):
    return grad(w + rho * unit(grad(w)))


def asam(grad, w, rho, eta):
    size = torch.cat([w[:6].abs() + eta, torch.ones(2, dtype=w.dtype)])
    g = grad(w)
    return grad(w + rho * size**2 * g / (size * g).norm())


def gsam(grad, w, rho, alpha):
    perturbed = sam(grad, w, rho)
    return perturbed - alpha * orthogonal(grad(w), perturbed)


def sagm(grad, w, rho, alpha):
    g = grad(w)
    return (g + grad(w + rho * unit(g) - alpha * g)) / 2


def gam(grad, w, rho, difference, weights, gamma):
    g0 = grad(w)
    g1 = grad(w + difference * unit(g0))
    there = w + rho * unit(g1 - g0)
    g2 = grad(there)
    g3 = grad(there + difference * unit(g2))
    down = weights[0] * g1 + weights[2] * g3
    return down - gamma * orthogonal(g0 + weights[1] * g2, down)


def fad(grad, w, rho, alpha, beta):
    g0 = grad(w)
    g1 = grad(w + rho * unit(g0))
    there = w + rho * unit(g1 - g0)
    g2 = grad(there)
    g3 = grad(there + rho * unit(g2))
    return g0 + alpha * (beta * (g1 - g0) + (1 - beta) * (g3 - g2))


CASES = [
    (SAM, sam, {"rho": 0.3}),
    (ASAM, asam, {"rho": 0.3, "eta": 0.1}),
    (GSAM, gsam, {"rho": 0.3, "alpha": 0.7}),
    (SAGM, sagm, {"rho": 0.3, "alpha": 0.05}),
    (GAM, gam, {"rho": 0.3, "difference": 0.1, "weights": (0.7, 0.4, 0.3), "gamma": 0.2}),
    (FAD, fad, {"rho": 0.3, "alpha": 0.8, "beta": 0.3}),
]


def make_quadratic():
    """Return the parameters and a function that makes the closure for an optimizer."""
    params = [nn.Parameter(START[:6].reshape(SHAPE).clone()), nn.Parameter(START[6:].clone())]

    def closure_for(optimizer):
        def closure():
            optimizer.zero_grad()
            w = torch.cat([p.flatten() for p in params])
            loss = 0.5 * w @ HESSIAN @ w
            loss.backward()
            return loss.detach()

        return closure

    return params, closure_for


def flat(params):
    return torch.cat([p.detach().flatten() for p in params])


def gradient_at(w):
    return HESSIAN @ w


@pytest.mark.parametrize(("cls", "transcription", "options"), CASES)
def test_steps_are_the_base_optimizer_s_with_the_published_gradient(cls, transcription, options):
    params, closure_for = make_quadratic()
    optimizer = cls(params, SGD, **options, lr=0.005, momentum=0.9)
    w, momentum = START, torch.zeros(8, dtype=torch.float64)
    for _ in range(10):
        loss = optimizer.step(closure_for(optimizer))
        assert loss == pytest.approx(float(0.5 * w @ HESSIAN @ w))
        momentum = 0.9 * momentum + transcription(gradient_at, w, **options)
        w = w - 0.005 * momentum
    torch.testing.assert_close(flat(params), w, rtol=1e-9, atol=0)


def flat_gradient(params):
    return torch.cat([p.grad.flatten() for p in params])


@pytest.mark.parametrize(("cls", "transcription", "options"), CASES)
@pytest.mark.parametrize("clips", [False, True])
def test_a_closure_that_zeroes_nothing_adds_to_what_was_left_in_every_pass(cls, transcription, options, clips):
    """As the last part of accumulated gradients does, in Lightning for one; clipping changes gradients in place."""
    params, _ = make_quadratic()
    optimizer = cls(params, SGD, **options, lr=0.005)
    left = torch.randn(8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def clipped(gradient):
        return gradient * min(1.0, 2.0 / float(gradient.norm())) if clips else gradient

    def closure():
        w = torch.cat([p.flatten() for p in params])
        (0.5 * w @ HESSIAN @ w).backward()
        if clips:
            nn.utils.clip_grad_norm_(params, 2.0)

    w = START
    for _ in range(3):
        for p, part in zip(params, left.split([6, 2]), strict=True):
            p.grad = part.reshape(p.shape).clone()
        optimizer.step(closure)
        w = w - 0.005 * transcription(lambda at: clipped(left + HESSIAN @ at), w, **options)
        torch.testing.assert_close(flat(params), w, rtol=1e-5 if clips else 1e-9, atol=0)  # clipping adds an epsilon


@pytest.mark.parametrize(("cls", "transcription", "options"), CASES)
@pytest.mark.parametrize("zeroes", [False, True])
def test_gradients_computed_before_step_count_unless_the_closure_zeroes(cls, transcription, options, zeroes):
    """``loss.backward(); optimizer.step(closure)`` doubles the gradient, as it does with torch's optimizers."""
    params, closure_for = make_quadratic()
    optimizer = cls(params, SGD, **options, lr=1.0)
    closure = closure_for(optimizer)
    closure()
    before = flat_gradient(params)

    def adding():
        w = torch.cat([p.flatten() for p in params])
        (0.5 * w @ HESSIAN @ w).backward()

    optimizer.step(closure if zeroes else adding)
    left = 0.0 if zeroes else before
    expected = transcription(lambda at: left + HESSIAN @ at, START, **options)
    torch.testing.assert_close(START - flat(params), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("cls", "transcription", "options"), CASES)
def test_without_gradients_at_the_start_no_pass_adds_to_another(cls, transcription, options):
    params, _ = make_quadratic()
    unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = cls([*params, unused], SGD, **options, lr=1.0)

    def closure():
        w = torch.cat([p.flatten() for p in params])
        (0.5 * w @ HESSIAN @ w).backward()

    optimizer.step(closure)
    expected = transcription(gradient_at, START, **options)
    torch.testing.assert_close(START - flat(params), expected, rtol=1e-9, atol=0)
    assert unused.grad is None


@pytest.mark.parametrize("base", [SGD, torch.optim.Adam, partial(GENIE, seed=0)])
@pytest.mark.parametrize(("cls", "transcription", "options"), CASES)
def test_maximizing_is_minimizing_the_negative(cls, transcription, options, base):
    results = []
    for sign, maximize in ((1, True), (-1, False)):
        params, _ = make_quadratic()
        optimizer = cls(params, base, **options, lr=0.005, maximize=maximize)

        def closure(sign=sign, params=params, optimizer=optimizer):
            optimizer.zero_grad()
            w = torch.cat([p.flatten() for p in params])
            (sign * (w @ HESSIAN @ w).sin()).backward()

        for _ in range(5):
            optimizer.step(closure)
        results.append(flat(params))
    assert not torch.equal(results[0], START)
    assert torch.equal(*results)


@pytest.mark.parametrize(("cls", "transcription", "options"), CASES)
def test_a_group_that_ascends_beside_one_that_descends_looks_at_its_own_worse_side(cls, transcription, options):
    params, closure_for = make_quadratic()
    optimizer = cls([{"params": params[:1]}, {"params": params[1:], "maximize": True}], SGD, **options, lr=0.01)
    optimizer.step(closure_for(optimizer))
    signs = torch.tensor([1.0] * 6 + [-1.0] * 2, dtype=torch.float64)
    expected = START - 0.01 * transcription(lambda w: signs * (HESSIAN @ w), START, **options)
    torch.testing.assert_close(flat(params), expected, rtol=1e-9, atol=0)


def direction(cls, **options):
    """The gradient that the base steps with, where the quadratic starts."""
    params, closure_for = make_quadratic()
    optimizer = cls(params, SGD, **options, lr=1.0)
    optimizer.step(closure_for(optimizer))
    return START - flat(params)


def test_limiting_cases():
    plain, perturbed = gradient_at(START), sam(gradient_at, START, 0.3)
    close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)
    for cls in (SAM, ASAM):
        close(direction(cls, rho=0.0), plain)
    close(direction(GSAM, rho=0.0), plain)  # nothing is orthogonal to itself
    close(direction(GSAM, rho=0.3, alpha=0.0), perturbed)
    close(direction(SAGM, rho=0.3, alpha=0.0), (plain + perturbed) / 2)
    close(direction(SAGM, rho=0.0, alpha=0.0), plain)
    close(direction(GAM, rho=0.0, difference=0.0, weights=(0.7, 0.0, 0.3)), plain)
    close(direction(FAD, rho=0.0), plain)
    close(direction(FAD, rho=0.3, alpha=0.0), plain)
    close(direction(FAD, rho=0.3, alpha=1.0, beta=1.0), perturbed)


def test_asam_does_not_see_how_weights_are_shared_out_between_layers():
    """Multiplying one layer's weights and dividing the next one's changes the perturbed function not at all."""
    torch.manual_seed(0)
    x, y = torch.randn(16, 5, dtype=torch.float64), torch.randn(16, 1, dtype=torch.float64)

    def perturbed_loss(factor):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 7, bias=False), nn.ReLU(), nn.Linear(7, 1, bias=False)).double()
        with torch.no_grad():
            model[0].weight *= factor
            model[2].weight /= factor
        losses = []

        def closure():
            optimizer.zero_grad()
            losses.append(F.mse_loss(model(x), y))
            losses[-1].backward()

        optimizer = ASAM(model.parameters(), SGD, rho=0.3, eta=0.0, lr=0.0)
        optimizer.step(closure)
        return losses[1].item()

    assert perturbed_loss(10.0) == pytest.approx(perturbed_loss(1.0), rel=1e-12)


def test_fad_approximates_the_gradient_of_its_objective():
    """Divided by rho, the error against exact Hessian-vector products vanishes linearly with rho."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randint(3, (20,))
    named = dict(model.named_parameters())
    start = flat(named.values())

    def loss_at(w):
        parts = w.split([p.numel() for p in named.values()])
        weights = {name: part.view_as(p) for (name, p), part in zip(named.items(), parts, strict=True)}
        return F.cross_entropy(functional_call(model, weights, (x,)), y)

    def exact(w, v):
        """Gradient and Hessian-vector product."""
        return torch.autograd.functional.vhp(loss_at, w, v)[1]

    def grad(w):
        w = w.detach().requires_grad_()
        return torch.autograd.grad(loss_at(w), w)[0]

    g = grad(start)
    for beta in (1.0, 0.0, 0.3):
        errors = []
        for rho in (0.04, 0.02, 0.01, 0.005):
            trained = copy.deepcopy(model)
            optimizer = FAD(trained.parameters(), SGD, rho=rho, alpha=1.0, beta=beta, lr=1.0)

            def closure(optimizer=optimizer, trained=trained):
                optimizer.zero_grad()
                F.cross_entropy(trained(x), y).backward()

            optimizer.step(closure)
            found = (start - flat(trained.parameters()) - g) / rho
            zeroth = exact(start, unit(g))
            there = start + rho * unit(zeroth)
            first = exact(there, unit(grad(there)))
            errors.append((found - (beta * zeroth + (1 - beta) * first)).norm())
        assert errors[0] < 0.1 * zeroth.norm()
        for coarse, fine in itertools.pairwise(errors):
            assert fine / coarse == pytest.approx(0.5, abs=0.05)


def test_the_flatness_of_fad_is_that_of_its_objective():
    """The gradient of R1 with the perturbation held: on a quadratic, nothing is lost by the difference."""
    rho = 1e-3

    def objective(w):
        ascent = rho * unit(HESSIAN @ unit(HESSIAN @ w).detach())
        return rho * (HESSIAN @ (w + ascent)).norm()

    w = START.clone().requires_grad_()
    expected = torch.autograd.grad(objective(w), w)[0]
    found = direction(FAD, rho=rho, alpha=1.0, beta=0.0) - gradient_at(START)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


# ------------------------------------------------------------------------------ radii in units of the weights' norms

RELATIVE = [case for case in CASES if case[0] in (SAM, GSAM, SAGM, FAD)]
with_relative_radius = pytest.mark.parametrize(("cls", "transcription", "options"), RELATIVE)


def norms(w):
    """The norm of each parameter of the quadratic, at its elements."""
    return torch.cat([part.norm().expand_as(part) for part in w.split([6, 2])])


@with_relative_radius
def test_relative_steps_are_those_of_weights_in_units_of_their_norms(cls, transcription, options, monkeypatch):
    """``unit`` is then T^2 v / |T v| with one norm T per parameter."""
    options = {**options, "relative_rho": options["rho"], "rho": 77.0}
    params, closure_for = make_quadratic()
    optimizer = cls(params, SGD, **options, lr=0.005, momentum=0.9)
    w, momentum = START, torch.zeros(8, dtype=torch.float64)
    published = {name: value for name, value in options.items() if name != "relative_rho"}
    for _ in range(10):
        optimizer.step(closure_for(optimizer))
        sizes = norms(w)
        monkeypatch.setitem(globals(), "unit", lambda v, sizes=sizes: sizes**2 * v / (sizes * v).norm())
        step = transcription(gradient_at, w, **{**published, "rho": options["relative_rho"]})
        monkeypatch.undo()
        momentum = 0.9 * momentum + step
        w = w - 0.005 * momentum
    torch.testing.assert_close(flat(params), w, rtol=1e-9, atol=0)


def offset_of(params, closure_for, *groups, **options):
    """How far SAM's second pass is from the weights, by parameter."""
    optimizer = SAM(list(groups) or params, SGD, **options, lr=0.0)
    closure, seen = closure_for(optimizer), []

    def watched():
        seen.append([p.detach().clone() for p in params])
        return closure()

    optimizer.step(watched)
    return [after - before for before, after in zip(*seen, strict=True)]


def test_no_tensor_moves_by_more_than_its_share():
    params, closure_for = make_quadratic()
    with torch.no_grad():
        params[0].mul_(1e3)
    offsets = offset_of(params, closure_for, relative_rho=0.25)
    shares = torch.stack([offset.norm() / p.detach().norm() for offset, p in zip(offsets, params, strict=True)])
    assert shares.norm() == pytest.approx(0.25)
    assert shares.min() > 0


def test_tensors_of_zeros_stay_at_a_relative_radius():
    """As a classifier that starts at zero; if nothing else has a gradient, nothing moves."""
    params, closure_for = make_quadratic()
    with torch.no_grad():
        params[1].zero_()
    first, second = offset_of(params, closure_for, relative_rho=0.25)
    assert first.norm() == pytest.approx(0.25 * params[0].detach().norm())
    assert torch.equal(second, torch.zeros(2, dtype=torch.float64))
    with torch.no_grad():
        params[0].zero_()
    assert all(
        torch.equal(offset, torch.zeros_like(offset)) for offset in offset_of(params, closure_for, relative_rho=1.0)
    )


def test_a_group_without_a_relative_radius_keeps_its_own():
    params, closure_for = make_quadratic()
    groups = [{"params": params[:1], "relative_rho": None}, {"params": params[1:], "relative_rho": 0.5}]
    offsets = offset_of(params, closure_for, *groups, rho=0.1, relative_rho=0.2)
    gradient, size = gradient_at(START), START[6:].norm()
    norm = torch.cat([gradient[:6], size * gradient[6:]]).norm()
    torch.testing.assert_close(offsets[0].flatten(), 0.1 * gradient[:6] / norm)
    torch.testing.assert_close(offsets[1], 0.5 * size**2 * gradient[6:] / norm)


@with_relative_radius
def test_bad_relative_radii_are_refused(cls, transcription, options):
    p = nn.Parameter(torch.ones(1))
    for bad in (-1.0, float("inf"), float("nan"), "fast"):
        with pytest.raises(ValueError, match=f"Invalid relative_rho value: {bad!r}".replace("'", ".")):
            cls([p], relative_rho=bad)
    optimizer = cls([p], SGD, relative_rho=0.1, lr=0.1)
    with pytest.raises(ValueError, match="Invalid relative_rho value: -1"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "relative_rho": -1})
    with pytest.raises(ValueError, match="Invalid rho value: None; it must be a number"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "rho": None})
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "relative_rho": None})
    assert [group["relative_rho"] for group in optimizer.param_groups] == [0.1, None]


@with_relative_radius
def test_a_state_from_before_the_relative_radius_loads(cls, transcription, options):
    params, closure_for = make_quadratic()
    optimizer = cls(params, SGD, **options, lr=0.005, momentum=0.9)
    optimizer.step(closure_for(optimizer))
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        assert group.pop("relative_rho") is None
    others, closure_for_other = make_quadratic()
    other = cls(others, SGD, lr=7.0)
    with torch.no_grad():
        for p, q in zip(others, params, strict=True):
            p.copy_(q)
    other.load_state_dict(state)
    for _ in range(3):
        optimizer.step(closure_for(optimizer))
        other.step(closure_for_other(other))
    assert torch.equal(flat(others), flat(params))


def test_a_relative_radius_is_called_by_the_class_if_the_base_has_one():
    class Base(SGD):
        def __init__(self, params, lr, relative_rho=0.7):
            super().__init__(params, lr)
            self.defaults["relative_rho"] = relative_rho
            for group in self.param_groups:
                group["relative_rho"] = relative_rho

    params, closure_for = make_quadratic()
    optimizer = SAM([{"params": params, "sam_relative_rho": 0.3}], Base, lr=1.0)
    assert optimizer.param_groups[0]["relative_rho"] == 0.7
    optimizer.step(closure_for(optimizer))
    expected = direction(SAM, relative_rho=0.3)
    assert torch.equal(START - flat(params), expected)
    assert not torch.equal(expected, direction(SAM))
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "sam_relative_rho": None})


# --------------------------------------------------------------------------------- a perturbed loss far above the loss


def perturbed_losses(cls, *, ratio, steps=STEPS, result=float, **options):
    """Take steps whose first perturbed pass returns a multiple of the first pass's loss; return the warnings."""
    p = nn.Parameter(torch.ones(2))
    optimizer = cls([p], SGD, lr=0.01, **options)
    calls = itertools.count()

    def closure():
        optimizer.zero_grad()
        p.square().sum().backward()
        number, later = divmod(next(calls), cls.passes)
        return result(1.5 * (ratio(number) if callable(ratio) else ratio)) if later == 1 else result(1.5)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            optimizer.step(closure)
    return [one for one in caught if issubclass(one.category, UserWarning)]


@every_optimizer
@pytest.mark.parametrize("result", [float, torch.tensor, lambda loss: torch.tensor([loss], requires_grad=True)])
def test_a_perturbed_loss_far_above_the_loss_warns_once(cls, result):
    [caught] = perturbed_losses(cls, ratio=10.5, steps=5 * STEPS, result=result)
    message = str(caught.message)
    radius = "difference=0.02" if cls is GAM else "rho=0.5" if cls is ASAM else "rho=0.05"
    assert f"{cls.__name__}'s perturbed loss has been more than 10 times the loss for at least 20 steps" in message
    assert f"last 15.8 against 1.5: its radius is too large here. It is {radius}: give a smaller one" in message
    assert ("relative_rho" in message) == (cls not in (ASAM, GAM))
    assert caught.filename == __file__
    assert perturbed_losses(cls, ratio=9.5, steps=2 * STEPS, result=result) == []


def test_the_warning_names_the_relative_radius_in_use():
    [caught] = perturbed_losses(SAM, ratio=11, relative_rho=0.3)
    assert str(caught.message).endswith("It is relative_rho=0.3: give a smaller one")


def test_a_perturbed_loss_must_be_far_above_the_loss_on_end():
    assert perturbed_losses(SAM, ratio=lambda step: 1 if step % STEPS == 5 else 100, steps=6 * STEPS) == []
    late = perturbed_losses(SAM, ratio=lambda step: 100 if 5 < step < 38 else 1, steps=6 * STEPS)
    assert len(late) == 1  # between two looks
    assert len(perturbed_losses(SAM, ratio=lambda step: 1 if step == 5 else 100, steps=2 * STEPS)) == 1


@pytest.mark.parametrize(
    "result",
    [
        lambda loss: None,
        lambda loss: "loss",
        lambda loss: -loss,
        lambda loss: math.nan,
        lambda loss: math.inf if loss > 2 else 1.0,
        lambda loss: torch.tensor(math.inf if loss > 2 else 1.0),
        lambda loss: torch.tensor([loss, loss]),
        lambda loss: torch.tensor(loss, dtype=torch.complex64),
        lambda loss: torch.tensor(loss, device="meta"),
        lambda loss: {"loss": loss},
        lambda loss: None if loss > 2 else loss,
    ],
)
def test_what_is_no_finite_loss_above_zero_does_not_warn(result):
    assert perturbed_losses(SAM, ratio=100, steps=2 * STEPS, result=result) == []


def test_a_loss_that_the_closure_overwrites_is_seen_as_it_was():
    """As the result of a replayed graph, which is one tensor in every pass."""
    static = torch.zeros(())
    assert len(perturbed_losses(SAM, ratio=11, result=static.fill_)) == 1


def test_a_radius_that_is_too_large_for_a_network_warns_and_a_relative_one_does_not():
    """Large features and a last layer at zero, as in a pretrained network."""
    for options, warns in (({"rho": 0.5}, True), ({"relative_rho": 0.01}, False)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 3))
        with torch.no_grad():
            model[0].weight.mul_(100)
            model[2].weight.zero_()
        optimizer = SAM(model.parameters(), torch.optim.Adam, lr=1e-4, **options)
        closure = closure_of(model, optimizer)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            first, *_, last = [float(optimizer.step(closure)) for _ in range(3 * STEPS)]
        assert bool(caught) == warns
        assert warns or last < 0.8 * first


@every_optimizer
def test_copies_go_on_watching(cls):
    optimizer = cls([nn.Parameter(torch.ones(2))], SGD, lr=0.01)
    for one in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):  # noqa: S301
        [p] = one.param_groups[0]["params"]
        losses = itertools.cycle([1.0] + [11.0] * (cls.passes - 1))

        def closure(one=one, p=p, losses=losses):
            one.zero_grad()
            p.square().sum().backward()
            return next(losses)

        for _ in range(STEPS - 1):
            one.step(closure)
        with pytest.warns(UserWarning, match="last 11 against 1"):
            one.step(closure)


# ---------------------------------------------------------------------------------------------- what the base gives


def make_net(dropout=0.0, norm=False, dtype=torch.float32):
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(8)] if norm else []
    return nn.Sequential(nn.Linear(5, 8), *middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3)).to(dtype)


def make_batch(dtype=torch.float32):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(24, 5, generator=generator, dtype=dtype), torch.randint(3, (24,), generator=generator)


def closure_of(model, optimizer, parts=1):
    x, y = make_batch(next(model.parameters()).dtype)

    def closure():
        closure.calls += 1
        optimizer.zero_grad()
        total = 0.0
        for inputs, targets in zip(x.chunk(parts), y.chunk(parts), strict=True):
            loss = F.cross_entropy(model(inputs), targets) / parts
            loss.backward()
            total += loss.detach()
        return total

    closure.calls = 0
    return closure


def values(model):
    return [p.detach().clone() for p in model.parameters()]


def assert_equal(model, other):
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


@every_optimizer
def test_passes_are_the_closure_s_calls(cls):
    model = make_net()
    optimizer = cls(model.parameters(), lr=0.01)
    closure = closure_of(model, optimizer)
    losses = [optimizer.step(closure) for _ in range(20)]
    assert closure.calls == 20 * cls.passes
    assert losses[-1] < losses[0]


@every_optimizer
def test_weights_are_restored_exactly(cls):
    """Subtracting the perturbation again would leave rounding behind."""
    model = make_net()
    start = values(model)
    optimizer = cls(model.parameters(), SGD, rho=10.0, lr=0.0)
    closure = closure_of(model, optimizer)
    for _ in range(5):
        optimizer.step(closure)
    assert all(map(torch.equal, values(model), start))


@every_optimizer
def test_weights_and_generators_are_restored_when_a_later_pass_fails(cls):
    model = make_net(dropout=0.5)
    start = values(model)
    optimizer = cls(model.parameters(), SGD, lr=0.1)
    whole = closure_of(model, optimizer)

    def closure():
        if whole.calls == cls.passes - 1:
            raise ArithmeticError
        return whole()

    torch.manual_seed(3)
    model(make_batch()[0])
    expected = torch.get_rng_state()
    torch.manual_seed(3)
    with pytest.raises(ArithmeticError):
        optimizer.step(closure)
    assert all(map(torch.equal, values(model), start))
    assert torch.equal(torch.get_rng_state(), expected)


@every_optimizer
def test_batch_norm_counts_a_batch_once(cls):
    model = make_net(norm=True)
    plain = copy.deepcopy(model)
    optimizer = cls(model.parameters(), SGD, lr=0.1)
    optimizer.step(closure_of(model, optimizer))
    plain(make_batch()[0])
    for ours, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs)


@every_optimizer
def test_all_passes_draw_the_masks_of_the_first(cls):
    model, masks = make_net(dropout=0.5), []
    model[2].register_forward_hook(lambda module, inputs, output: masks.append(output == 0))
    optimizer = cls(model.parameters(), SGD, lr=0.1)
    torch.manual_seed(7)
    closure = closure_of(model, optimizer, parts=2)
    for _ in range(2):
        optimizer.step(closure)
    after = torch.get_rng_state()
    step = 2 * cls.passes
    assert len(masks) == 2 * step
    for i, mask in enumerate(masks):
        assert torch.equal(mask, masks[i // step * step + i % 2])
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[step])
    # A loop of one pass a step would have drawn the same.
    torch.manual_seed(7)
    for _ in range(2):
        for part in make_batch()[0].chunk(2):
            model(part)
    assert torch.equal(torch.get_rng_state(), after)


@every_optimizer
def test_accumulating_is_one_large_batch(cls):
    whole, parts = make_net(dtype=torch.float64), make_net(dtype=torch.float64)
    for model, number in ((whole, 1), (parts, 4)):
        optimizer = cls(model.parameters(), SGD, lr=0.1, momentum=0.9)
        closure = closure_of(model, optimizer, number)
        for _ in range(5):
            optimizer.step(closure)
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@every_optimizer
@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_may_be_zeroed_in_place(cls, set_to_none):
    """As in DDP's buckets: a pass then overwrites the gradients of the one before."""
    expected, model = make_net(), make_net()
    for net, zeroed in ((expected, True), (model, set_to_none)):
        optimizer = cls(net.parameters(), SGD, lr=0.1)
        zero_grad = optimizer.zero_grad
        optimizer.zero_grad = partial(zero_grad, zeroed)
        closure = closure_of(net, optimizer)
        for _ in range(3):
            optimizer.step(closure)
    assert_equal(model, expected)


@every_optimizer
@pytest.mark.parametrize(
    ("base", "options"),
    [
        (GENIE, {"lr": 1.0, "moment_dtype": "bfloat16", "seed": 3}),
        (partial(GENIE, beta=0.9), {"lr": 1.0, "seed": 3}),
        (torch.optim.RMSprop, {"lr": 0.01}),
        (torch.optim.Adadelta, {"lr": 1.0}),
        (torch.optim.AdamW, {"lr": 0.01, "betas": (0.8, 0.9)}),
    ],
)
def test_any_optimizer_can_be_the_base(cls, base, options):
    """GENIE has a beta too, RMSprop an alpha and Adadelta a rho: neither takes the other's."""
    model = make_net()
    optimizer = cls(model.parameters(), base, **options)
    alone = base(make_net().parameters(), **options)
    for name, value in alone.param_groups[0].items():
        if name != "params":
            assert optimizer.param_groups[0][name] == value
    closure = closure_of(model, optimizer)
    losses = [optimizer.step(closure) for _ in range(30)]
    assert losses[-1] < losses[0]
    assert set(optimizer.state) == set(model.parameters())
    assert optimizer.base.state is optimizer.state


def test_an_option_that_the_base_has_too_is_called_by_the_class():
    model = make_net()
    first, *others = model.parameters()
    groups = [{"params": [first], "fad_beta": 0.25}, {"params": others}]
    optimizer = FAD(groups, GENIE, beta=0.75)
    assert [group["fad_beta"] for group in optimizer.param_groups] == [0.25, 0.75]
    assert [group["beta"] for group in optimizer.param_groups] == [0.95, 0.95]
    assert optimizer.option(optimizer.param_groups[0], "beta") == 0.25
    assert optimizer.option(optimizer.param_groups[0], "rho") == 0.05


@every_optimizer
def test_groups_have_their_own_rho_and_lr(cls):
    """A group whose rho is 0 does not move in later passes, unless for GAM's other radius or SAGM's alpha."""
    model = make_net()
    still = {"difference": 0.0} if cls is GAM else {"alpha": 0.0} if cls is SAGM else {}
    groups = [{"params": model[0].parameters(), "rho": 0.0, **still}, {"params": model[3].parameters(), "lr": 0.0}]
    optimizer = cls(groups, SGD, rho=0.5, lr=0.1)
    start, moved = values(model), []
    closure = closure_of(model, optimizer)

    def watched():
        moved.append([not torch.equal(p, q) for p, q in zip(values(model), start, strict=True)])
        return closure()

    optimizer.step(watched)
    assert moved[0] == [False] * 4
    assert [False, False, True, True] in moved[1:]
    assert not any(before or after for before, after, *_ in moved)
    changed = [not torch.equal(p, q) for p, q in zip(values(model), start, strict=True)]
    assert changed == [True, True, False, False]


@every_optimizer
def test_a_group_can_be_added_later(cls):
    model = make_net()
    optimizer = cls(model[0].parameters(), GENIE, lr=0.1)
    optimizer.add_param_group({"params": list(model[3].parameters()), "lr": 0.5})
    assert optimizer.base.param_groups is optimizer.param_groups
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5]
    with pytest.raises(ValueError, match="Invalid dropout value: -1"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "dropout": -1})
    with pytest.raises(ValueError, match="Invalid rho value: -1"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "rho": -1})
    assert len(optimizer.param_groups) == 2
    optimizer.step(closure_of(model, optimizer))
    assert set(optimizer.state) == set(model.parameters())


@every_optimizer
def test_what_has_no_gradient_is_untouched(cls):
    model, unused = make_net(), nn.Parameter(torch.ones(3))
    model[0].requires_grad_(False)
    start = values(model)
    optimizer = cls([*model.parameters(), unused], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.step(closure_of(model, optimizer))
    assert torch.equal(unused, torch.ones(3))
    assert unused.grad is None
    assert [torch.equal(p, q) for p, q in zip(values(model), start, strict=True)] == [True, True, False, False]


@every_optimizer
def test_without_any_gradient_nothing_happens(cls):
    p = nn.Parameter(torch.ones(3))
    optimizer = cls([p], lr=0.1)
    assert optimizer.step(lambda: 1.5) == 1.5
    assert torch.equal(p, torch.ones(3))


@every_optimizer
@pytest.mark.parametrize("base", [SGD, torch.optim.Adam])
def test_zero_gradients_leave_finite_weights(cls, base):
    p = nn.Parameter(torch.ones(2, 3))
    optimizer = cls([p], base, lr=0.1)

    def closure():
        optimizer.zero_grad()
        (0 * p).sum().backward()

    for _ in range(3):
        optimizer.step(closure)
    assert torch.equal(p, torch.ones(2, 3))


@every_optimizer
def test_complex_parameters_are_their_real_views(cls):
    if cls is ASAM:
        pytest.skip("a complex vector's real view has two dimensions, which ASAM counts")
    torch.manual_seed(0)
    z, target = torch.randn(7, dtype=torch.complex128), torch.randn(7, dtype=torch.complex128)
    as_complex, as_real = nn.Parameter(z.clone()), nn.Parameter(torch.view_as_real(z).clone())
    for p in (as_complex, as_real):
        optimizer = cls([p], torch.optim.Adam, lr=0.01)

        def closure(optimizer=optimizer, p=p):
            optimizer.zero_grad()
            w = p if p.is_complex() else torch.view_as_complex(p)
            (w**2 - target).abs().pow(3).sum().backward()

        for _ in range(5):
            optimizer.step(closure)
    assert not torch.equal(as_complex, z)
    torch.testing.assert_close(torch.view_as_real(as_complex), as_real, rtol=1e-12, atol=1e-12)


@every_optimizer
def test_sparse_gradients_are_refused(cls):
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = cls(embedding.parameters(), SGD, lr=0.1)

    def closure():
        embedding(torch.tensor([1, 2])).sum().backward()

    with pytest.raises(RuntimeError, match=f"{cls.__name__} does not support sparse gradients"):
        optimizer.step(closure)


@every_optimizer
@pytest.mark.filterwarnings("ignore:Using backward")
def test_gradients_with_a_graph_are_refused(cls):
    p = nn.Parameter(torch.ones(2))
    optimizer = cls([p], SGD, lr=0.1)

    def closure():
        (p**3).sum().backward(create_graph=True)

    with pytest.raises(RuntimeError, match="have no common graph"):
        optimizer.step(closure)
    p.grad = None


@every_optimizer
def test_a_missing_closure_shows_what_to_write(cls):
    model = make_net()
    optimizer = cls(model.parameters(), lr=0.1)
    lines = r"needs a closure:\n.*def closure\(\):\n.*loss\.backward\(\).*\n.*optimizer\.step\(closure\)"
    with pytest.raises(ValueError, match=f"{cls.__name__} evaluates the loss {cls.passes} times a step.*{lines}"):
        optimizer.step()
    F.cross_entropy(model(make_batch()[0]), make_batch()[1]).backward()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    with pytest.raises(ValueError, match=lines):
        optimizer.step()


@every_optimizer
def test_a_closure_that_does_nothing_is_none(cls):
    """As Lightning gives one in manual optimization: all passes would find the gradient that stood there."""
    model = make_net()
    start = values(model)
    optimizer = cls(model.parameters(), SGD, lr=0.1)
    closure_of(model, optimizer)()
    with pytest.raises(ValueError, match=f"{cls.__name__} evaluates the loss {cls.passes} times a step, so it needs"):
        optimizer.step(lambda: None)
    assert all(map(torch.equal, values(model), start))


@pytest.mark.parametrize(("cls", "transcription", "options"), CASES)
def test_gradients_may_be_views_of_a_buffer_that_the_closure_zeroes(cls, transcription, options):
    """As in flat buffers and in the static gradients of a CUDA graph: ``.grad`` stays the view, in later steps too."""
    params, _ = make_quadratic()
    buffer = torch.zeros(8, dtype=torch.float64)
    views = [part.view(p.shape) for part, p in zip(buffer.split([6, 2]), params, strict=True)]
    for p, view in zip(params, views, strict=True):
        p.grad = view
    optimizer = cls(params, SGD, **options, lr=0.005)

    def closure():
        buffer.zero_()
        w = torch.cat([p.flatten() for p in params])
        (0.5 * w @ HESSIAN @ w).backward()

    w = START
    for _ in range(3):
        optimizer.step(closure)
        w = w - 0.005 * transcription(gradient_at, w, **options)
        torch.testing.assert_close(flat(params), w, rtol=1e-9, atol=0)
        assert all(p.grad is view for p, view in zip(params, views, strict=True))


@pytest.mark.parametrize(("cls", "transcription", "options"), CASES)
@pytest.mark.parametrize("computed_before", [False, True])
def test_gradients_may_be_written_past_autograd(cls, transcription, options, computed_before):
    """As NumPy and replayed graphs write them: no version tells of it, and the first pass may find what stood there."""
    params, _ = make_quadratic()
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer = cls(params, SGD, **options, lr=0.005)

    def closure():
        w = flat(params)
        for p, part in zip(params, (HESSIAN @ w).split([6, 2]), strict=True):
            p.grad.numpy()[...] = part.view(p.shape).numpy()

    if computed_before:
        closure()
    optimizer.step(closure)
    expected = START - 0.005 * transcription(gradient_at, START, **options)
    torch.testing.assert_close(flat(params), expected, rtol=1e-9, atol=0)


@every_optimizer
def test_only_a_grad_scaler_takes_it_for_one_that_unscales(cls):
    """Lightning would take that for a reason not to clip gradients."""
    assert not cls([nn.Parameter(torch.ones(1))], SGD, lr=0.1)._step_supports_amp_scaling


@every_optimizer
def test_a_grad_scaler_is_refused_and_leaves_no_trace(cls):
    model = make_net()
    start = values(model)
    optimizer = cls(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    scaled = closure_of(model, optimizer)

    def closure():
        loss = scaled()
        for p in model.parameters():
            p.grad *= 65536
        return loss

    def refused():
        return pytest.raises(RuntimeError, match=f"{cls.__name__} cannot be stepped by a GradScaler.*\n?.*bfloat16")

    scaler.scale(torch.ones(()))
    with refused():
        scaler.step(optimizer, closure)  # torch hands a positional closure on
    closure()
    with refused():
        scaler.step(optimizer)
    scaler.unscale_(optimizer)
    with refused():
        scaler.step(optimizer, closure)
    with pytest.raises(RuntimeError, match="Closure use is not currently supported"):
        scaler.step(optimizer, closure=closure)
    assert all(map(torch.equal, values(model), start))
    optimizer.step(scaled)
    torch.amp.GradScaler("cpu", enabled=False).step(optimizer, scaled)


@every_optimizer
def test_bad_options_are_refused(cls):
    p = nn.Parameter(torch.ones(1))
    for bad in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"Invalid rho value: {bad}; it must be at least 0"):
            cls([p], rho=bad)
    with pytest.raises(ValueError, match="Invalid rho value: 'fast'; it must be a number"):
        cls([p], rho="fast")
    with pytest.raises(ValueError, match="Invalid rho value: -1"):
        cls([{"params": [p], "rho": -1}])


def test_bad_options_of_single_optimizers_are_refused():
    p = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=r"Invalid weights value: \(0\.6, -0\.5, 0\.4\)"):
        GAM([p], weights=(0.6, -0.5, 0.4))
    for bad in (1.5, -0.5, float("nan")):
        with pytest.raises(ValueError, match=f"Invalid beta value: {bad}"):
            FAD([p], beta=bad)
    with pytest.raises(ValueError, match="Invalid alpha value: -1"):
        GSAM([p], alpha=-1)


def test_the_base_is_abstract():
    class Forgetful(MultiPass):
        passes = 2

    with pytest.raises(TypeError, match="abstract"):
        Forgetful([nn.Parameter(torch.ones(1))], SGD, {}, None, {})


# -------------------------------------------------------------------------------------------------- copies and state

BASES = [(torch.optim.Adam, {"lr": 0.01}), (GENIE, {"lr": 0.1, "moment_dtype": "bfloat16"}), (SGD, {"lr": 0.1})]
every_base = pytest.mark.parametrize(("base", "options"), BASES)


def trained(cls, base, options, steps=3):
    model = make_net()
    optimizer = cls(model.parameters(), base, **options)
    for _ in range(steps):
        optimizer.step(closure_of(model, optimizer))
    return model, optimizer


def assert_continues(model, optimizer, *others):
    for net, its_optimizer in ((model, optimizer), *others):
        for _ in range(3):
            its_optimizer.step(closure_of(net, its_optimizer))
        assert its_optimizer.base.state is its_optimizer.state
        assert its_optimizer.base.param_groups is its_optimizer.param_groups
        assert_equal(net, model)


@every_optimizer
@every_base
def test_copies_and_loaded_states_continue_bit_equal(cls, base, options):
    model, optimizer = trained(cls, base, options)
    copied = copy.deepcopy((model, optimizer))
    pickled = pickle.loads(pickle.dumps((model, optimizer)))  # noqa: S301
    saved = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), saved)
    saved.seek(0)
    model_state, state = torch.load(saved, weights_only=True)
    net = make_net()
    net.load_state_dict(model_state)
    loaded = cls(net.parameters(), base, rho=7.0, **{**options, "lr": 5.0})
    loaded.load_state_dict(state)
    assert loaded.param_groups[0]["rho"] == optimizer.param_groups[0]["rho"]
    for state, expected in zip(loaded.state.values(), optimizer.state.values(), strict=True):
        assert {name: value.dtype for name, value in state.items() if isinstance(value, torch.Tensor)} == {
            name: value.dtype for name, value in expected.items() if isinstance(value, torch.Tensor)
        }
    assert_continues(model, optimizer, copied, pickled, (net, loaded))


@every_optimizer
@every_base
def test_torch_s_distributed_checkpoints_work(cls, base, options):
    """Of a fresh optimizer they ask for a step without a closure, by which it is to create its state."""
    model, optimizer = trained(cls, base, options)
    state = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    net = copy.deepcopy(model)
    start = values(net)
    for p in net.parameters():
        p.grad = None
    fresh = cls(net.parameters(), base, rho=7.0, **options)
    assert set(get_optimizer_state_dict(net, fresh)["state"]) == set(state["state"])
    set_optimizer_state_dict(net, fresh, state)
    assert all(map(torch.equal, values(net), start))
    assert fresh.param_groups[0]["rho"] == optimizer.param_groups[0]["rho"]
    assert_continues(model, optimizer, (net, fresh))


def test_hooks_on_loading_see_and_change_the_state():
    model, optimizer = trained(SAM, *BASES[0])
    seen = []

    def before(optimizer, state_dict):
        return {**state_dict, "param_groups": [{**group, "lr": 0.125} for group in state_dict["param_groups"]]}

    optimizer.register_load_state_dict_pre_hook(before)

    def after(optimizer):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.param_groups[0]["rho"] = 0.5

    optimizer.register_load_state_dict_post_hook(after)
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == [0.125]
    assert optimizer.param_groups[0]["rho"] == 0.5
    optimizer.step(closure_of(model, optimizer))


def test_schedulers_reach_the_base_and_rho():
    model = make_net()
    start = values(model)
    optimizer = GSAM(model.parameters(), SGD, lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    optimizer.step(closure_of(model, optimizer))
    scheduler.step()
    assert all(map(torch.equal, values(model), start))
    optimizer.param_groups[0]["rho"] = 0.5
    assert optimizer.base.param_groups[0]["rho"] == 0.5


def test_options_of_groups_are_checked_too():
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="Invalid beta value: 'x'; it must be a number"):
        FAD([p], beta="x")
    with pytest.raises(ValueError, match=r"Invalid beta value: 2.0; it must be in \[0, 1\]"):
        FAD([{"params": [p], "beta": 2.0}], torch.optim.SGD, lr=0.1)
    with pytest.raises(ValueError, match="it must hold three numbers"):
        GAM([p], torch.optim.SGD, weights=(1.0, 2.0), lr=0.1)


@every_optimizer
def test_a_base_that_evaluates_the_loss_itself_is_refused(cls):
    p = nn.Parameter(torch.ones(2))
    for base in (torch.optim.LBFGS, partial(SAM, base=SGD)):
        with pytest.raises(ValueError, match=f"evaluates the loss itself, and {cls.__name__} hands .* such as SGD"):
            cls([p], base, lr=0.1)
    with pytest.raises(ValueError, match=f"AdaHessian differentiates the gradients again.*{cls.__name__}.*Adam"):
        cls([p], AdaHessian, lr=0.1)


def test_a_group_that_is_refused_does_not_stay():
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    for cls, base, bad in (
        (FAD, SGD, {"beta": 1.5}),
        (FAD, GENIE, {"fad_beta": 1.5}),
        (SAM, SGD, {"rho": -1}),
        (SAM, GENIE, {"dropout": 2}),
        (SAM, Yogi, {"eps": -1}),
    ):
        optimizer = cls([p], base, lr=0.1)
        with pytest.raises(ValueError, match="Invalid"):
            optimizer.add_param_group({"params": [q], **bad})
        assert [group["params"] for group in optimizer.param_groups] == [[p]]
        optimizer.add_param_group({"params": [q]})
        assert optimizer.base.param_groups is optimizer.param_groups


def test_schedulers_cycle_the_momentum_of_the_base():
    optimizer = SAM([nn.Parameter(torch.ones(2))], torch.optim.Adam, lr=0.1)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10, base_momentum=0.5)
    assert optimizer.base.param_groups[0]["betas"][0] == 0.95  # OneCycleLR's largest, where it starts


def test_a_state_of_the_base_alone_can_be_loaded():
    p = torch.nn.Parameter(torch.ones(2))
    plain = torch.optim.SGD([p], lr=0.5)
    optimizer = SAM([p], torch.optim.SGD, rho=0.2, lr=0.1)
    optimizer.load_state_dict(plain.state_dict())
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["rho"]) == (0.5, 0.2)
