"""GENIE and its random numbers in float64, line by line from their definition.

Shares no code with the package. Sources: Cho, Kim, Kim, "One-Step Generalization Ratio Guided Optimization
for Domain Generalization", ICML 2025, Algorithm 1 (form "paper") and the code released with it (form
"released"); Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Philox4x32-10). Moments in
bfloat16 are the package's own, and are transcribed from the docstring of GENIE.
"""

from typing import NamedTuple

import numpy as np

DEFAULT_LR = {"paper": 0.1, "released": 0.015}
MASK, NOISE, ROUNDING = 0, 1, 2


class Terms(NamedTuple):
    """What an update is made of: mean * factor + xi * spread * (1 - certainty)."""

    mean: np.ndarray
    factor: np.ndarray
    spread: np.ndarray | float
    certainty: np.ndarray


def philox(seed, counter):
    """Philox4x32-10 of the counter's four words (integers or arrays of them): an array of shape (4, ...)."""
    low = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(word, dtype=np.uint64) for word in counter))
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & low,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & low,
        )
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return np.stack([c0, c1, c2, c3])


def words(seed, blocks, stream, position, step):
    """The four words of blocks 0, 1, ... of a stream, of shape (blocks, 4)."""
    block = np.arange(blocks, dtype=np.uint64)
    high = (block >> np.uint64(32)) | np.uint64(stream << 28)
    return philox(seed, (block & np.uint64(0xFFFFFFFF), high, position, step)).T


def halfwords(seed, size, position, step):
    """The 16 bits that decide on each of ``size`` elements."""
    word = words(seed, -(-size // 8), MASK, position, step)
    return np.stack([word & np.uint64(0xFFFF), word >> np.uint64(16)], axis=-1).reshape(-1)[:size].astype(int)


def normals(seed, size, position, step):
    """Each element's standard normal draw."""
    u = ((words(seed, -(-size // 4), NOISE, position, step) >> np.uint64(9)) + 0.5) * 2.0**-23
    radius, angle = np.sqrt(-2 * np.log(u[:, 0::2])), 2 * np.pi * u[:, 1::2]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(-1)[:size]


def rounded_to_bfloat16(values, halfwords):
    """Float32 values with 16 random bits added below bfloat16's last bit, and cut there."""
    bits = np.asarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64) + halfwords
    return (bits & np.uint64(0xFFFF0000)).astype(np.uint32).view(np.float32).astype(float)


def step(
    theta,
    grad,
    state,
    position,
    *,
    form="paper",
    lr=None,
    beta=0.95,
    dropout=0.4,
    noise=1.0,
    precondition=True,
    weight_decay=0.0,
    seed=0,
    maximize=False,
    bfloat16=False,
):
    """Return the weights (a flat array) after one step; updates ``state``, a dict that is empty at first."""
    g = (-grad if maximize else grad) + weight_decay * theta
    t = state["step"] = state.get("step", 0) + 1
    m = beta * state.get("exp_avg", 0.0) + (1 - beta) * g
    v = beta * state.get("exp_avg_sq", 0.0) + (1 - beta) * g**2
    if bfloat16:
        word = words(seed, -(-theta.size // 4), ROUNDING, position, t).reshape(-1)[: theta.size]
        m = rounded_to_bfloat16(m, word & np.uint64(0xFFFF))
        v = rounded_to_bfloat16(v, word >> np.uint64(16))
    state["exp_avg"], state["exp_avg_sq"] = m, v
    mean, factor, spread, certainty = terms(state, form, beta)
    threshold = round(65536 * dropout)
    keep = halfwords(seed, theta.size, position, t) >= threshold
    z = normals(seed, theta.size, position, t) * spread * (1 - certainty)
    rescale = 1.0 if form == "paper" else 1 / (1 - threshold / 65536)
    lr = DEFAULT_LR[form] if lr is None else lr
    return theta - lr * (mean * (factor if precondition else 1.0) + noise * z) * keep * rescale


def terms(state, form, beta=0.95):
    """What the step was made of that left ``state``."""
    m, v, t = state["exp_avg"], state["exp_avg_sq"], state["step"]
    with np.errstate(divide="ignore", invalid="ignore"):
        if form == "paper":
            return _paper(m, v, t, beta)
        return _released(m, v, t, beta)


def _paper(m, v, t, beta):
    var = v - m**2
    tanh = np.where(var > 0, np.tanh(1 / var), 1.0)
    factor = np.where(v > 0, tanh * m**2 / v, 0.0)
    return Terms(m / (1 - beta**t), factor, np.sqrt(np.maximum(var, 0)), tanh)


def _released(m, v, t, beta):
    c = 1 - beta**t
    rho = (1 - beta) * (2 - c) / ((1 + beta) * c)
    gm = m / c
    # Step 1 is defined, since rho = 1 leaves it to rounding: 1e-8 everywhere.
    var = (v / c - gm**2) / (1 - rho) if t > 1 else np.zeros_like(m)
    var = np.where(var > 0, var, 1e-8)
    averaged = np.where(rho * var > 0, rho * var, 1e-8)
    a = np.tanh(np.minimum(1 / var, 10))
    f = a / (1 + averaged / (gm**2 + 1e-8))
    return Terms(gm, f, np.sum(f * np.abs(gm)) / np.sum(a), a)
