"""GENIEAdamW in float64, line by line from its definition. Shares no code with the package; masks are passed in."""

import numpy as np


def step(
    theta,
    grad,
    state,
    mask=True,
    *,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=1e-2,
    dropout=0.0,
    maximize=False,
):
    """Return the weights after one step; updates ``state``, a dict that is empty at first.

    ``mask`` is True for the elements that dropout keeps.
    """
    b1, b2 = betas
    g = -grad if maximize else grad
    t = state["step"] = state.get("step", 0) + 1
    m = state["exp_avg"] = b1 * state.get("exp_avg", 0.0) + (1 - b1) * g
    v = state["exp_avg_sq"] = b2 * state.get("exp_avg_sq", 0.0) + (1 - b2) * g**2
    p = round(65536 * dropout) / 65536
    u = np.where(mask, update(m, v, t, betas, eps) / (1 - p), 0.0)
    return theta - lr * (u + weight_decay * theta)


def update(m, v, t, betas, eps):
    """Return u, what a step at learning rate 1 moves the weights by, before dropout and weight decay."""
    b1, b2 = betas
    c = 1 - b1**t
    mhat = m / c
    V = v / (1 - b2**t)  # noqa: N806
    f = factor(mhat, V, c, b1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(V == 0, 0.0, f * mhat / (np.sqrt(V) + eps))


def factor(mhat, V, c, b1):  # noqa: N803
    """Return f, which is 1 where the averaged gradient is certain and 0 where it is noise."""
    rho = (1 - b1) * (2 - c) / ((1 + b1) * c)
    M = mhat**2  # noqa: N806
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(V == 0, 0.0, M / (M + rho * np.maximum(V - M, 0)))
