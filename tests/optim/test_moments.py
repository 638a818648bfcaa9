"""Yogi, AdaBelief, AdaHessian, M-SVAG and Signum against transcriptions of their papers, in float64."""

import gc
import math
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shiftproof.algorithms import ERM
from shiftproof.annealing import Annealer
from shiftproof.models import build_network
from shiftproof.optim import MSVAG, AdaBelief, AdaHessian, Signum, Yogi
from shiftproof.optim.stream import Place, draw_signs
from shiftproof.training import StepBuilder

BETA1, BETA2 = 0.8, 0.99


class _Transcription:
    """Theta, m and v of one parameter, as NumPy arrays."""

    def __init__(self, theta, lr, weight_decay, eps, accumulator=0.0):
        self.theta, self.lr, self.weight_decay, self.eps = theta.copy(), lr, weight_decay, eps
        self.m, self.v, self.t = np.zeros_like(theta), np.full_like(theta, accumulator), 0

    def _descend(self):
        m, v = self.m / (1 - BETA1**self.t), self.v / (1 - BETA2**self.t)
        return self.lr * m / (np.sqrt(v) + self.eps)

    def yogi(self, g):
        self.t += 1
        g = g + self.weight_decay * self.theta
        self.m = BETA1 * self.m + (1 - BETA1) * g
        self.v = self.v - (1 - BETA2) * np.sign(self.v - g**2) * g**2
        self.theta = self.theta - self._descend()

    def adabelief(self, g):
        self.t += 1
        self.m = BETA1 * self.m + (1 - BETA1) * g
        self.v = BETA2 * self.v + (1 - BETA2) * (g - self.m) ** 2 + self.eps
        self.theta = self.theta - self.lr * self.weight_decay * self.theta - self._descend()

    def msvag(self, g):
        self.t += 1
        g = g + self.weight_decay * self.theta
        self.m = BETA1 * self.m + (1 - BETA1) * g
        self.v = BETA1 * self.v + (1 - BETA1) * g**2
        m, v = self.m / (1 - BETA1**self.t), self.v / (1 - BETA1**self.t)
        # the sum of the squared weights of an average of t gradients, over the square of their sum
        weights = [BETA1**k for k in range(self.t)]
        rho = sum(w**2 for w in weights) / sum(weights) ** 2
        s = np.zeros_like(m) if self.t == 1 else (v - m**2) / (1 - rho)
        factor = np.array([a**2 / (a**2 + rho * max(b, 0)) if a else 0 for a, b in zip(m.flat, s.flat, strict=True)])
        self.theta = self.theta - self.lr * factor.reshape(m.shape) * m

    def signum(self, g):
        self.t += 1
        self.m = BETA1 * self.m + (1 - BETA1) * g
        self.theta = self.theta - self.lr * (np.sign(self.m) + self.weight_decay * self.theta)

    def coupled_signum(self, g):
        g = g + self.weight_decay * self.theta
        self.m = BETA1 * self.m + (1 - BETA1) * g
        self.theta = self.theta - self.lr * np.sign(self.m)

    def adahessian(self, g, diagonal):
        self.t += 1
        if diagonal.ndim > 2:  # each kernel's mean
            kernels = np.abs(diagonal).reshape(*diagonal.shape[:2], -1)
            diagonal = np.broadcast_to(kernels.mean(2)[(..., *[None] * (diagonal.ndim - 2))], diagonal.shape)
        self.m = BETA1 * self.m + (1 - BETA1) * g
        self.v = BETA2 * self.v + (1 - BETA2) * diagonal**2
        self.theta = self.theta - self.lr * self.weight_decay * self.theta - self._descend()


def _parameters(*shapes):
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]
    return params, generator


def _assert_equal(params, transcriptions):
    for p, transcription in zip(params, transcriptions, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), transcription.theta, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("optimizer", "rule", "eps", "accumulator", "options"),
    [
        (Yogi, "yogi", 1e-3, 1e-6, {"betas": (BETA1, BETA2)}),
        (AdaBelief, "adabelief", 1e-16, 0.0, {"betas": (BETA1, BETA2)}),
        (MSVAG, "msvag", 0.0, 0.0, {"beta": BETA1}),
        (Signum, "signum", 0.0, 0.0, {"momentum": BETA1}),
        (Signum, "coupled_signum", 0.0, 0.0, {"momentum": BETA1, "decoupled_weight_decay": False}),
    ],
    ids=["Yogi", "AdaBelief", "M-SVAG", "Signum", "Signum with an L2 penalty"],
)
def test_steps_are_the_papers(optimizer, rule, eps, accumulator, options):
    params, generator = _parameters((3, 4), (5,), (2, 2, 3, 3), ())
    settings = [(0.01, 0.0), (0.01, 0.0), (0.3, 0.1), (0.3, 0.1)]
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.3, "weight_decay": 0.1}]
    optimizer = optimizer(groups, lr=0.01, **options)
    expected = [
        _Transcription(p.detach().numpy(), lr, decay, eps, accumulator)
        for p, (lr, decay) in zip(params, settings, strict=True)
    ]
    for step in range(15):
        for p, transcription in zip(params, expected, strict=True):
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 10.0 ** (step % 3 - 1)
            if step in (4, 5):
                p.grad.zero_()
            if step == 7 and p is params[1]:  # from now on a step behind
                p.grad = None
            else:
                getattr(transcription, rule)(p.grad.numpy())
        optimizer.step()
        _assert_equal(params, expected)


def test_yogis_second_moment_falls_by_additions():
    p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = Yogi([p], initial_accumulator=4.0)
    p.grad = torch.tensor([1.0, 3.0], dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[p]["exp_avg_sq"], torch.tensor([3.999, 4.009], dtype=torch.float64))


def test_adabelief_strides_where_the_gradient_is_constant():
    p = nn.Parameter(torch.zeros(2))
    optimizer = AdaBelief([p], lr=1.0, betas=(0.0, 0.9))  # m is g: s holds eps alone
    p.grad = torch.tensor([1e-8, 0.0])
    optimizer.step()
    assert math.isclose(p[0].item(), -1e-8 / (1e-8 / math.sqrt(0.1)), rel_tol=1e-5)
    assert p[1] == 0


def test_signum_without_momentum_is_sign_descent_and_leaves_weights_without_gradient():
    p = nn.Parameter(torch.zeros(3))
    optimizer = Signum([p], lr=0.5, momentum=0.0)
    for grad in ([1e-30, -7.0, 0.0], [-1.0, -1e-30, 0.0], [-1.0, -1.0, 0.0]):
        p.grad = torch.tensor(grad)
        optimizer.step()
    assert p.tolist() == [-0.5 + 1.0, 1.5, 0.0]


def test_m_svag_is_momentum_where_gradients_agree_and_descent_without_memory():
    """With constant gradients the averages are those gradients; with ``beta`` 0, single gradients have no variance."""
    for beta, grads in ((0.9, [[2.0, -1e-3, 0.0]] * 5), (0.0, [[2.0, -1e-3, 0.0], [-1.0, 5.0, 0.0]])):
        p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        optimizer = MSVAG([p], lr=0.5, beta=beta)
        for grad in grads:
            p.grad = torch.tensor(grad, dtype=torch.float64)
            optimizer.step()
        torch.testing.assert_close(p.detach(), -0.5 * torch.tensor(grads, dtype=torch.float64).sum(0))


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_m_svag_s_factor_does_not_depend_on_the_scale_of_the_loss(scale):
    steps = []
    for factor in (1.0, scale):
        p = nn.Parameter(torch.zeros(50))
        optimizer, generator = MSVAG([p], lr=1.0), torch.Generator().manual_seed(0)
        for _ in range(4):
            p.grad = (0.5 + torch.randn(50, generator=generator)) * factor
            optimizer.step()
        steps.append(p.detach() / factor)
    torch.testing.assert_close(*steps, rtol=1e-4, atol=1e-4)


def test_adahessian_has_the_diagonal_of_a_quadratic_exactly():
    params, generator = _parameters((4, 3), (5,), (3, 2, 3, 3), (2, 3, 4))
    curvatures = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in params]  # of both signs
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.3, "weight_decay": 0.1}]
    optimizer = AdaHessian(groups, lr=0.01, betas=(BETA1, BETA2))
    settings = [(0.01, 0.0), (0.01, 0.0), (0.3, 0.1), (0.3, 0.1)]
    expected = [
        _Transcription(p.detach().numpy(), lr, decay, 1e-4) for p, (lr, decay) in zip(params, settings, strict=True)
    ]

    def closure():
        optimizer.zero_grad()
        loss = sum((a * p * p).sum() / 2 for a, p in zip(curvatures, params, strict=True))
        loss.backward(create_graph=True)
        return loss.detach()

    for _ in range(12):
        optimizer.step(closure)
        for transcription, a in zip(expected, curvatures, strict=True):
            transcription.adahessian(a.numpy() * transcription.theta, a.numpy())
        _assert_equal(params, expected)
    kernels = optimizer.state[params[2]]["exp_avg_sq"]
    assert torch.equal(kernels, kernels[:, :, :1, :1].expand_as(kernels))


def test_adahessian_estimates_a_full_hessian_with_its_own_signs():
    params, generator = _parameters((4, 2, 2, 2), (4,), (3, 4), (1,))
    params[3].requires_grad_(False)  # positions are counted with it
    images = torch.randn(6, 2, 5, 5, generator=generator, dtype=torch.float64)
    labels = torch.arange(6) % 3

    def loss_of(kernel, bias, matrix):
        return F.cross_entropy(F.conv2d(images, kernel, bias).tanh().mean((2, 3)) @ matrix.T, labels)

    trained = [params[0], params[1], params[2]]
    groups = [{"params": [params[3], params[0]]}, {"params": params[1:3], "seed": 8}]
    optimizer = AdaHessian(groups, lr=0.1, betas=(BETA1, BETA2), seed=7)
    expected = [_Transcription(p.detach().numpy(), 0.1, 0.0, 1e-4) for p in trained]
    for step in range(1, 11):
        points = [torch.from_numpy(transcription.theta) for transcription in expected]
        blocks = torch.autograd.functional.hessian(loss_of, tuple(points))
        sizes = [p.numel() for p in points]
        hessian = torch.cat([
            torch.cat([block.reshape(m, n) for block, n in zip(row, sizes, strict=True)], 1)
            for row, m in zip(blocks, sizes, strict=True)
        ])  # fmt: skip
        gradients = torch.autograd.functional.jacobian(loss_of, tuple(points))
        signs = [
            draw_signs([Place(p.shape, position)], seed, step, p.dtype, p.device)[0].flatten()
            for p, position, seed in zip(trained, (1, 2, 3), (7, 8, 8), strict=True)
        ]
        diagonals = (torch.cat(signs) * (hessian @ torch.cat(signs))).split(sizes)
        for transcription, gradient, diagonal in zip(expected, gradients, diagonals, strict=True):
            transcription.adahessian(gradient.numpy(), diagonal.view(gradient.shape).numpy())

        loss_of(*trained).backward(create_graph=True)
        optimizer.step()
        optimizer.zero_grad()
        _assert_equal(trained, expected)


def test_signs_are_fair_and_functions_of_seed_step_position_and_element():
    def draw(seed=1, step=1, position=1, size=100_001):
        [signs] = draw_signs([Place((size,), position)], seed, step, torch.float32, torch.device("cpu"))
        return signs

    signs = draw()
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(signs.mean()) < 0.015
    assert torch.equal(draw(size=1000), signs[:1000])
    for other in (draw(seed=2), draw(step=2), draw(position=2), signs.roll(1), signs.roll(32), signs.roll(128)):
        assert abs((signs * other).mean()) < 0.015


def _adahessian_net():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return model, AdaHessian(model.parameters()), torch.ones(2, 3)


def test_adahessian_says_what_to_write_if_there_is_no_graph():
    model, optimizer, inputs = _adahessian_net()
    model(inputs).square().sum().backward()
    with pytest.raises(RuntimeError, match=r"loss\.backward\(create_graph=True\)"):
        optimizer.step()
    assert not optimizer.state
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()  # how distributed checkpoints make the state: gradients of 0, without a graph
    assert len(optimizer.state) == 4


@pytest.mark.filterwarnings("ignore:Using backward")
def test_adahessian_frees_the_graph():
    model, optimizer, inputs = _adahessian_net()
    hidden = model[:2](inputs)
    model[2](hidden).square().sum().backward(create_graph=True)
    kept, gradients = weakref.ref(hidden), [p.grad.clone() for p in model.parameters()]
    gc.collect()
    gc.disable()
    try:
        del hidden
        assert kept() is not None
        optimizer.step()
        assert kept() is None
    finally:
        gc.enable()
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert p.grad.grad_fn is None
        assert torch.equal(p.grad, gradient)


def test_adahessian_steps_through_fused_attention():
    p = nn.Parameter(torch.randn(1, 1, 4, 8, generator=torch.Generator().manual_seed(0)))
    optimizer = AdaHessian([p])

    def closure():
        optimizer.zero_grad()
        loss = F.scaled_dot_product_attention(p, 2 * p, p).square().sum()
        loss.backward(create_graph=True)
        return loss.detach()

    assert optimizer.step(closure) > optimizer.step(closure)
    assert optimizer.state[p]["exp_avg_sq"].all()


def _trained(steps=1, **options):
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(8, 1, 16, 16, generator=generator), torch.randint(3, (8,), generator=generator)) for _ in range(2)
    ]
    algorithm = ERM(build_network("small_conv", (1, 16, 16), 3, dropout=0.0, seed=0), 2)
    algorithm.build_optimizers(AdaHessian)
    builder = StepBuilder(algorithm, Annealer(), seed=0, create_graph=True, **options)
    losses = [float(builder.take(batches, step)) for step in range(1, steps + 1)]
    state = algorithm.optimizers["all"].state.values()
    return losses, [s["exp_avg"] for s in state], [s["exp_avg_sq"] for s in state]


def test_adahessian_with_accumulation_has_gradient_and_curvature_of_the_whole_batch():
    _, m, v = _trained()
    _, split_m, split_v = _trained(accumulate=4)
    torch.testing.assert_close(split_m, m, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(split_v, v, rtol=1e-3, atol=1e-8)


def test_adahessian_with_clipping_keeps_the_curvature():
    _, m, v = _trained()
    _, clipped_m, clipped_v = _trained(clip_norm=0.01)
    torch.testing.assert_close(clipped_v, v)
    assert math.isclose(torch.nn.utils.get_total_norm(clipped_m), 0.001, rel_tol=1e-3)
    assert torch.nn.utils.get_total_norm(m) > 0.002


def test_adahessian_trains_with_bf16():
    losses, _, _ = _trained(steps=30, precision="bf16")
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("optimizer", [Yogi, AdaBelief, AdaHessian])
def test_invalid_options_are_refused(optimizer):
    p = nn.Parameter(torch.ones(1))
    for bad in ({"eps": -1.0}, {"betas": (0.9, 1.0)}, {"lr": math.nan}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            optimizer([p], **bad)
    for name, bad in (("lr", "fast"), ("betas", (0.9, "x")), ("eps", None)):
        with pytest.raises(ValueError, match=f"Invalid {name} value: .*; it must be a number"):
            optimizer([p], **{name: bad})
    with pytest.raises(ValueError, match="initial_accumulator"):
        Yogi([p], initial_accumulator=-1.0)


@pytest.mark.parametrize(("optimizer", "decay"), [(MSVAG, "beta"), (Signum, "momentum")])
def test_invalid_decays_of_one_average_are_refused(optimizer, decay):
    p = nn.Parameter(torch.ones(1))
    for bad in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match=rf"Invalid {decay} value: {bad}; it must be in \[0, 1\)"):
            optimizer([p], **{decay: bad})
    with pytest.raises(ValueError, match=f"Invalid {decay} value: 'x'; it must be a number"):
        optimizer([p], **{decay: "x"})


@pytest.mark.parametrize("optimizer", [Yogi, AdaBelief, AdaHessian, MSVAG, Signum])
def test_complex_and_sparse_gradients_are_refused(optimizer):
    for grad in (torch.zeros(2, dtype=torch.complex64), torch.zeros(2).to_sparse()):
        p = nn.Parameter(torch.ones(2, dtype=grad.dtype))
        p.grad = grad
        with pytest.raises(RuntimeError, match="sparse nor complex"):
            optimizer([p]).step()


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        *((one, options) for one in (Yogi, AdaBelief, AdaHessian) for options in ({}, {"eps": 1e-8}, {"eps": 1e-16})),
        (MSVAG, {}),
        (Signum, {}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_zero_gradients_change_nothing_in_half_precision(optimizer, options, dtype):
    """An eps that the type cannot hold would be 0, and the step 0 / 0."""
    p = nn.Parameter(torch.ones(5, dtype=dtype))
    optimizer = optimizer([p], **options)
    for _ in range(3):
        p.grad = torch.zeros_like(p)
        optimizer.step()
    assert torch.equal(p, torch.ones(5, dtype=dtype))


def test_adabelief_s_steps_in_float16_follow_the_smallest_eps_that_it_holds():
    """Two steps written out with eps 2^-14, in float64: gradients of 0.5 vary too little for their square to count."""
    p = nn.Parameter(torch.ones(1, dtype=torch.float16))
    optimizer, eps = AdaBelief([p], lr=0.25), 2.0**-14
    m = v = 0.0
    expected = 1.0
    for t in (1, 2):
        p.grad = torch.full_like(p, 0.5)
        optimizer.step()
        m = 0.9 * m + 0.1 * 0.5
        v = 0.999 * v + 0.001 * (0.5 - m) ** 2 + eps
        expected -= 0.25 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + eps)
        assert p.item() == pytest.approx(expected, rel=5e-3)
