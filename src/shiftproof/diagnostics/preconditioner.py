"""The factors by which optimizers multiply gradients, element by element, read from their state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from shiftproof.base.precise_sums import at_least_float32
from shiftproof.diagnostics.hooked_optimizer import hooked_optimizer

State = Mapping[str, Any]
Group = Mapping[str, Any]


@torch.no_grad()
def preconditioner(optimizer: Optimizer) -> list[Tensor] | None:
    r"""Return the factor :math:`P_t` by which an optimizer multiplies the (mean) gradient, read from its state.

    Read before a step, it does not depend on the step's batch. So :math:`u = P_t g_D` shows what preconditioning alone
    does to the one-step generalization ratio, without momentum, noise, masks or weight decay. It includes each group's
    learning rate, because groups may differ in theirs.

    These optimizers are supported, by the name of their class: SGD (:math:`P = \eta`); Adam, AdamW, Yogi, AdaBelief and
    AdaHessian (:math:`\eta / (\sqrt{\hat v} + \epsilon)` with their second moments); GENIE in both forms (:math:`\eta`
    times the factor of its last step, because the next one depends on the next gradient) and GENIEAdamW (Adam's times
    that factor); optimizers with one of these as their ``base``, such as SAM; and wrappers around one (see
    `hooked_optimizer`).

    Args:
        optimizer: the optimizer, before its next step.

    Returns:
        One tensor per parameter, at least float32, in the order of the groups; 0 for parameters that have taken no
        step, such as frozen ones. None if the optimizer or a complex parameter is not supported, or if no parameter
        has the necessary state: except for SGD, there is none before the first step.
    """
    try:
        optimizer = hooked_optimizer(optimizer)
    except TypeError:
        return None
    base = getattr(optimizer, "base", None)
    if isinstance(base, Optimizer):
        return preconditioner(base)
    name = type(optimizer).__name__
    factor = _FACTORS.get(name)
    members = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    stepped = any(optimizer.state.get(p, {}).get("step", 0) > 0 for p, _ in members)
    if factor is None or not (stepped or name == "SGD") or any(p.is_complex() for p, _ in members):
        return None
    result = []
    try:
        for p, group in members:
            state = optimizer.state.get(p, {})
            if name == "SGD" or state.get("step", 0) > 0:
                result.append(float(group["lr"]) * at_least_float32(factor(p, state, group)))
            else:
                result.append(at_least_float32(torch.zeros_like(p)))
    except KeyError:  # another library's optimizer of the same name, with a different state
        return None
    return result


def _sgd_factor(p: Tensor, state: State, group: Group) -> Tensor:
    return torch.ones_like(p)


def _adam_factor(p: Tensor, state: State, group: Group) -> Tensor:
    """Return the factor of Adam and of optimizers that replace its second moment."""
    square: Tensor = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
    correction = 1 - float(group["betas"][1]) ** float(state["step"])
    factor: Tensor = 1 / ((at_least_float32(square) / correction).sqrt() + group["eps"])
    return factor


def _genie_factor(p: Tensor, state: State, group: Group) -> Tensor:
    if not group["precondition"]:
        return torch.ones_like(p)
    # moments may be stored in bfloat16, but the step computes in float32
    wide = torch.float64 if state["exp_avg"].dtype == torch.float64 else torch.float32
    m, v = state["exp_avg"].to(wide), state["exp_avg_sq"].to(wide)
    if group["form"] == "paper":
        return _paper_factor(m, v)
    return _released_factor(m, v, float(group["beta"]), float(state["step"]))


def _paper_factor(m: Tensor, v: Tensor) -> Tensor:
    r"""Return :math:`\tanh(1/\sigma^2)\, m^2 / v` with :math:`\sigma^2 = v - m^2` (GENIE's Algorithm 1)."""
    certainty = (1 / (v - m * m).clamp(min=0)).tanh()
    return torch.where(v > 0, certainty * m * m / v, 0)


def _released_factor(m: Tensor, v: Tensor, beta: float, step: float) -> Tensor:
    r"""Return the released code's :math:`a\, s / (s + \rho\sigma^2)`.

    Here :math:`s = \bar g^2 + 10^{-8}` and :math:`a = \tanh(\min(1/\sigma^2, 10))`.
    """
    correction = 1 - beta**step
    rho = (1 - beta) * (2 - correction) / ((1 + beta) * correction)
    square, floor = (m / correction) ** 2, 1e-8
    # a single gradient, as at step 1, has no variance, which is then defined as the floor
    known = step > 1 and rho < 1
    variance = (v / correction - square) / (1 - rho) if known else torch.full_like(m, floor)
    variance = torch.where(variance > 0, variance, floor)
    averaged = torch.where(variance * rho > 0, variance * rho, floor)
    factor: Tensor = (1 / variance).clamp(max=10).tanh() * (square + floor) / (square + floor + averaged)
    return factor


def _genie_adamw_factor(p: Tensor, state: State, group: Group) -> Tensor:
    r"""Return :math:`f / (\sqrt{\hat v} + \epsilon)`, with :math:`f` as in `GENIEAdamW`."""
    (beta1, beta2), step = group["betas"], float(state["step"])
    correction = 1 - beta1**step
    rho = (1 - beta1) * (2 - correction) / ((1 + beta1) * correction)
    square = (at_least_float32(state["exp_avg"]) / correction) ** 2
    power = at_least_float32(state["exp_avg_sq"]) / (1 - beta2**step)
    factor = square / (square + rho * (power - square).clamp(min=0))
    return torch.where((power > 0) & (square > 0), factor / (power.sqrt() + group["eps"]), 0)


_FACTORS: dict[str, Callable[[Tensor, State, Group], Tensor]] = {
    "SGD": _sgd_factor,
    "Adam": _adam_factor,
    "AdamW": _adam_factor,
    "Yogi": _adam_factor,
    "AdaBelief": _adam_factor,
    "AdaHessian": _adam_factor,
    "GENIE": _genie_factor,
    "GENIEAdamW": _genie_adamw_factor,
}
