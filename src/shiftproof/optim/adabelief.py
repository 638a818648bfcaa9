"""AdaBelief: Adam that takes large steps where gradients stay close to their moving average."""

from __future__ import annotations

import torch
from torch.optim.optimizer import ParamsT

from shiftproof.optim.moments import MomentOptimizer, ParameterBatch, average, average_squares, decay, descend, held_eps


class AdaBelief(MomentOptimizer):
    r"""AdaBelief (Zhuang et al., "AdaBelief Optimizer", NeurIPS 2020, arXiv 2010.07468, algorithm 2).

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        s_t &= \beta_2 s_{t-1} + (1 - \beta_2) (g_t - m_t)^2 + \epsilon \\
        \theta_t &= \theta_{t-1} - \eta\, (\hat m_t / (\sqrt{\hat s_t} + \epsilon) + \lambda \theta_{t-1})

    with Adam's bias correction (:math:`\hat m_t`, :math:`\hat s_t`) and, as in the authors' package, decoupled weight
    decay :math:`\lambda`. The rectification that the package added after the paper is left out. float16 cannot hold
    1e-16, so there :math:`\epsilon` is at least the smallest normal number, 6.1e-5.

    It is implemented here because torch has no AdaBelief and timm comes only with the benchmark's extra.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the second moment at every step, and to the denominator.
        weight_decay: strength of the decoupled weight decay.

    Raises:
        ValueError: an option is out of range.

    Examples:
        >>> import torch
        >>> from shiftproof.optim import AdaBelief
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = AdaBelief([weight], lr=0.1)
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
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def _update(self, batch: ParameterBatch) -> None:
        beta1, beta2 = batch.group["betas"]
        average(batch.exp_avgs, batch.grads, beta1)
        average_squares(batch.exp_avg_sqs, torch._foreach_sub(batch.grads, batch.exp_avgs), beta2)
        torch._foreach_add_(batch.exp_avg_sqs, held_eps(batch))
        decay(batch)
        descend(batch)
