"""GENIE and its random numbers in float64, line by line from their definition.

Shares no code with the package. Sources: Cho, Kim, Kim, "One-Step Generalization Ratio Guided Optimization
for Domain Generalization", ICML 2025, Algorithm 1 (form "paper") and the code released with it (form
"released"); Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Philox4x32-10).
"""

import numpy as np

DEFAULT_LR = {"paper": 0.1, "released": 0.015}
MASK, NOISE = 0, 1


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
):
    """Return the weights (a flat array) after one step; updates ``state``, a dict that is empty at first."""
    g = (-grad if maximize else grad) + weight_decay * theta
    t = state["step"] = state.get("step", 0) + 1
    m = state["exp_avg"] = beta * state.get("exp_avg", 0.0) + (1 - beta) * g
    v = state["exp_avg_sq"] = beta * state.get("exp_avg_sq", 0.0) + (1 - beta) * g**2
    lr = DEFAULT_LR[form] if lr is None else lr
    threshold = round(65536 * dropout)
    keep = halfwords(seed, theta.size, position, t) >= threshold
    xi = normals(seed, theta.size, position, t)
    form_update = {"paper": _paper, "released": _released}[form]
    with np.errstate(divide="ignore", invalid="ignore"):
        u, z, rescale = form_update(m, v, t, beta, xi, threshold / 65536, precondition)
    return theta - lr * (u + noise * z) * keep * rescale


def _paper(m, v, t, beta, xi, p, precondition):
    var = v - m**2
    tanh = np.where(var > 0, np.tanh(1 / var), 1.0)
    factor = np.where(v > 0, tanh * m**2 / v, 0.0) if precondition else 1.0
    return m / (1 - beta**t) * factor, xi * np.sqrt(np.maximum(var, 0)) * (1 - tanh), 1.0


def _released(m, v, t, beta, xi, p, precondition):
    c = 1 - beta**t
    rho = (1 - beta) * (2 - c) / ((1 + beta) * c)
    gm = m / c
    # Step 1 is defined, since rho = 1 leaves it to rounding: 1e-8 everywhere.
    var = (v / c - gm**2) / (1 - rho) if t > 1 else np.zeros_like(m)
    var = np.where(var > 0, var, 1e-8)
    spread = np.where(rho * var > 0, rho * var, 1e-8)
    a = np.tanh(np.minimum(1 / var, 10))
    f = a / (1 + spread / (gm**2 + 1e-8))
    s = np.sum(f * np.abs(gm)) / np.sum(a)
    return gm * (f if precondition else 1.0), xi * s * (1 - a), 1 / (1 - p)
