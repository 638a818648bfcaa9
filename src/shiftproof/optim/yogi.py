"""Yogi: Adam with an additive update of the second moment, which can therefore fall only slowly."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from shiftproof.optim.moments import MomentOptimizer, ParameterBatch, average, descend


class Yogi(MomentOptimizer):
    r"""Yogi (Zaheer et al., "Adaptive Methods for Nonconvex Optimization", NeurIPS 2018, algorithm 2).

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= v_{t-1} - (1 - \beta_2)\, \mathrm{sign}(v_{t-1} - g_t^2)\, g_t^2 \\
        \theta_t &= \theta_{t-1} - \eta\, \hat m_t / (\sqrt{\hat v_t} + \epsilon)

    with Adam's bias correction (:math:`\hat m_t`, :math:`\hat v_t`), which the paper's algorithm leaves out but the
    usual implementations include. Weight decay is an L2 penalty, added to the gradient.

    It is implemented here because neither torch nor timm has it.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the denominator.
        initial_accumulator: second moment at the start, at least 0.
        weight_decay: strength of the L2 penalty.

    Raises:
        ValueError: an option is out of range.

    Examples:
        >>> import torch
        >>> from shiftproof.optim import Yogi
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = Yogi([weight], lr=0.1)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().backward()
        ...     optimizer.step()
        >>> bool(weight.detach().square().sum() < 5.0)
        True
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-3,
        initial_accumulator: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, initial_accumulator=initial_accumulator
        )

    def _update(self, batch: ParameterBatch) -> None:
        beta1, beta2 = batch.group["betas"]
        grads: Any = batch.grads
        if batch.group["weight_decay"]:
            grads = torch._foreach_add(grads, batch.params, alpha=batch.group["weight_decay"])
        average(batch.exp_avgs, grads, beta1)
        squares = torch._foreach_mul(grads, grads)
        signs = torch._foreach_sign(torch._foreach_sub(batch.exp_avg_sqs, squares))
        torch._foreach_addcmul_(batch.exp_avg_sqs, signs, squares, value=beta2 - 1)
        descend(batch)
