"""The step of the authors' ``Sign_GENIE`` (commit c51494b) without the signs that it computes and does not use."""

import numpy as np
import pytest
import torch

from shiftproof.optim import OPTIMIZERS


def _transcribed(theta, gradients, lr, beta, weight_decay):
    """All steps, element by element in float64."""
    path = []
    mean, square, scale = np.zeros_like(theta), np.zeros_like(theta), 0.0
    for step, gradient in enumerate(gradients, start=1):
        gradient = gradient + weight_decay * theta
        scale = beta * scale + 1
        first = (1 - beta) * scale
        rho = (1 - beta) * (2 - first) / (1 + beta) / first
        mean = beta * mean + (1 - beta) * gradient
        square = beta * square + (1 - beta) * gradient**2
        theta = theta.copy()
        for k in range(theta.size):
            gm = mean[k] / first
            variance = (square[k] / first - gm**2) / (1 - rho) if step > 1 else 0.0
            variance = variance if variance > 0 else 1e-8
            of_mean = rho * variance if rho * variance > 0 else 1e-8
            sureness = np.tanh(min(1 / variance, 10))
            theta[k] -= lr * gm * sureness / (1 + of_mean / (gm**2 + 1e-8))
        path.append(theta)
    return path


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_steps_agree_with_a_transcription(dtype, weight_decay):
    generator = np.random.default_rng(0)
    start, gradients = generator.normal(size=7), generator.normal(size=(9, 7)) * np.geomspace(1e-3, 1e2, 7)
    param = torch.tensor(start, dtype=dtype)
    optimizer = OPTIMIZERS["sign_genie"]([param], lr=0.02, beta=0.9, weight_decay=weight_decay)
    expected = _transcribed(start, gradients, 0.02, 0.9, weight_decay)
    assert np.abs(expected[-1] - start).min() > 1e-5  # every element has moved
    for gradient, after in zip(gradients, expected, strict=True):
        param.grad = torch.tensor(gradient, dtype=dtype)
        optimizer.step()
        rtol = 1e-12 if dtype == torch.float64 else 2e-5
        torch.testing.assert_close(param.double(), torch.from_numpy(after), rtol=rtol, atol=rtol)


def test_it_draws_nothing_and_masks_nothing():
    params = [torch.ones(50) for _ in range(2)]
    for seed, param in enumerate(params):
        param.grad = torch.full((50,), 0.5)
        OPTIMIZERS["sign_genie"]([param], lr=0.1, seed=seed).step()
    assert torch.equal(*params)
    assert (params[0] < 1).all()
