"""M-SVAG: momentum whose elements are scaled down by how much they vary."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from shiftproof.optim.moments import MomentOptimizer, ParameterBatch, average, average_squares, count_step


class MSVAG(MomentOptimizer):
    r"""M-SVAG (Balles and Hennig, "Dissecting Adam", ICML 2018, arXiv 1705.07774, section 4).

    .. math::
        m_t &= \beta m_{t-1} + (1 - \beta) g_t, \qquad v_t = \beta v_{t-1} + (1 - \beta) g_t^2 \\
        \rho_t &= \frac{(1 - \beta)(1 + \beta^t)}{(1 + \beta)(1 - \beta^t)}, \qquad
            s_t = \frac{\hat v_t - \hat m_t^2}{1 - \rho_t} \\
        \theta_t &= \theta_{t-1} - \eta\, \frac{\hat m_t^2}{\hat m_t^2 + \rho_t s_t}\, \hat m_t

    with both averages divided by :math:`1 - \beta^t` (:math:`\hat m_t`, :math:`\hat v_t`). :math:`\rho_t` is the
    variance of the average over that of a gradient, so the factor is the one that brings :math:`\hat m_t` closest to
    the true gradient. At the first step :math:`\rho` is 1 and :math:`s` is 0 / 0: it counts as 0, and the step is one
    of gradient descent; the authors' code has 0.999 for :math:`\rho` there, which gives the same but for rounding.
    Where :math:`s` is negative by rounding it counts as 0, and the factor is 0 where :math:`\hat m_t` is. The
    preconditioner of GENIE's released form is this factor, with constants added to it and times a tanh.

    Weight decay is an L2 penalty, added to the gradient; the authors' code has none.

    It is implemented here because torch has no M-SVAG.

    Args:
        params: parameters or groups.
        lr: learning rate.
        beta: decay of both averages.
        weight_decay: strength of the L2 penalty.

    Raises:
        ValueError: an option is out of range.

    Examples:
        >>> import torch
        >>> from shiftproof.optim import MSVAG
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = MSVAG([weight], lr=0.1)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().backward()
        ...     optimizer.step()
        >>> bool(weight.detach().square().sum() < 5.0)
        True
    """

    def __init__(self, params: ParamsT, lr: float = 0.1, beta: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr=lr, beta=beta, weight_decay=weight_decay)

    def _update(self, batch: ParameterBatch) -> None:
        beta = batch.group["beta"]
        grads: Any = batch.grads
        if batch.group["weight_decay"]:
            grads = torch._foreach_add(grads, batch.params, alpha=batch.group["weight_decay"])
        average(batch.exp_avgs, grads, beta)
        average_squares(batch.exp_avg_sqs, grads, beta)
        _descend(batch)
        count_step(batch)


def _descend(batch: ParameterBatch) -> None:
    """Subtract the learning rate times the bias-corrected momentum times its factor."""
    beta, step = batch.group["beta"], batch.step
    correction = 1 - beta**step
    rho = (1 - beta) * (1 + beta**step) / ((1 + beta) * correction)
    means = torch._foreach_div(batch.exp_avgs, correction)
    squares = torch._foreach_mul(means, means)
    variances = torch._foreach_div(batch.exp_avg_sqs, correction)
    torch._foreach_sub_(variances, squares)
    torch._foreach_clamp_min_(variances, 0)
    torch._foreach_mul_(variances, rho / (1 - rho) if step > 1 and rho < 1 else 0.0)
    torch._foreach_add_(variances, squares)
    torch._foreach_clamp_min_(variances, torch.finfo(batch.params[0].dtype).tiny)  # or 0 / 0 where all gradients were 0
    torch._foreach_mul_(means, torch._foreach_div(squares, variances))
    torch._foreach_add_(batch.params, means, alpha=-float(batch.group["lr"]))
