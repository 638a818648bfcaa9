"""Signum: steps of one length for all weights, in the direction of the sign of the momentum."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch.optim.optimizer import ParamsT

from shiftproof.optim.moments import MomentOptimizer, ParameterBatch, average, count_step, decay


class Signum(MomentOptimizer):
    r"""Signum (Bernstein et al., "signSGD: Compressed Optimisation for Non-Convex Problems", ICML 2018, algorithm 2).

    .. math::
        m_t &= \beta m_{t-1} + (1 - \beta) g_t \\
        \theta_t &= \theta_{t-1} - \eta\, (\operatorname{sign}(m_t) + \lambda \theta_{t-1})

    (arXiv 1802.04434). A weight whose momentum is exactly 0 stays. With ``momentum`` 0 this is signSGD. Weight decay
    :math:`\lambda` is decoupled, as in the authors' next paper (Bernstein et al., ICLR 2019, arXiv 1810.05291,
    algorithm 1); the first paper has none. With ``decoupled_weight_decay=False`` it is an L2 penalty, added to the
    gradient, as in the code that GENIE's authors released. That code's ``momentum`` is 0.09 by default, where its
    docstring says 0.9.

    It is implemented here because torch has no Signum.

    Args:
        params: parameters or groups.
        lr: learning rate: how far every weight moves.
        momentum: decay of the moving average of the gradient.
        weight_decay: strength of the weight decay.
        decoupled_weight_decay: whether weight decay shrinks the weights, and does not enter the momentum.

    Raises:
        ValueError: an option is out of range.

    Examples:
        >>> import torch
        >>> from shiftproof.optim import Signum
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = Signum([weight], lr=0.1)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().backward()
        ...     optimizer.step()
        >>> bool(weight.detach().square().sum() < 5.0)
        True
    """

    moments: ClassVar[tuple[str, ...]] = ("exp_avg",)

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
        )

    def _update(self, batch: ParameterBatch) -> None:
        grads: Any = batch.grads
        if batch.group["decoupled_weight_decay"]:
            decay(batch)
        elif batch.group["weight_decay"]:
            grads = torch._foreach_add(grads, batch.params, alpha=batch.group["weight_decay"])
        average(batch.exp_avgs, grads, batch.group["momentum"])
        torch._foreach_add_(batch.params, torch._foreach_sign(batch.exp_avgs), alpha=-float(batch.group["lr"]))
        count_step(batch)
