"""Flatness-aware minimization: the zeroth- and first-order flatness of the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Adam, Optimizer
from torch.optim.optimizer import ParamsT

from shiftproof.base.options import check_number
from shiftproof.optim.multipass import Landscape, MultiPass, NoSync, Vector
from shiftproof.optim.options import make_plain


class FAD(MultiPass):
    r"""Flatness-aware minimization around any base optimizer, in 4 passes.

    Zhang et al., "Flatness-Aware Minimization for Domain Generalization", ICCV 2023 (arXiv 2307.11108). There is no
    public code; this is derived from the objective

    .. math::
        L(\theta) + \alpha \left[\beta R_0(\theta) + (1 - \beta) R_1(\theta)\right],\quad
        R_0(\theta) = \max_{\lVert d \rVert \le \rho} L(\theta + d) - L(\theta),\quad
        R_1(\theta) = \rho \max_{\lVert d \rVert \le \rho} \lVert \nabla L(\theta + d) \rVert

    with :math:`R_0` for zeroth-order and :math:`R_1` for first-order flatness. Let :math:`\hat v = v / \lVert v \rVert`
    and :math:`g_0 = \nabla L(\theta)`.

    *Zeroth order.* To first order in :math:`\rho` the loss is largest at :math:`d = \rho\, \hat g_0`. As in SAM, we
    neglect that :math:`d` depends on :math:`\theta`, so

    .. math:: \nabla R_0 \approx g_1 - g_0,\quad g_1 = \nabla L(\theta + \rho\, \hat g_0).

    *First order.* The gradient of the norm is :math:`\nabla \lVert \nabla L \rVert = H \hat g_0` with the Hessian
    :math:`H` at :math:`\theta`, and :math:`g_1 - g_0 = \rho H \hat g_0 + O(\rho^2)` points the same way. So to first
    order the norm is largest at :math:`d = \rho\, \widehat{g_1 - g_0}`. With :math:`g_2 = \nabla L(\theta + d)`, and
    :math:`d` held fixed as above,

    .. math::
        \nabla R_1 \approx \rho\, \nabla \lVert \nabla L(\theta + d) \rVert = \rho\, H(\theta + d)\, \hat g_2
        \approx g_3 - g_2,\quad g_3 = \nabla L(\theta + d + \rho\, \hat g_2).

    The last step replaces a derivative by a difference over :math:`\rho`, which supplies the factor :math:`\rho` of
    :math:`R_1`; its error is of order :math:`\rho^2`, one order above the term. The base optimizer steps with

    .. math:: g_0 + \alpha \left[\beta (g_1 - g_0) + (1 - \beta) (g_3 - g_2)\right].

    Norms are over all parameters. With ``alpha`` 1 and ``beta`` 1 this is SAM's gradient. The defaults of ``alpha`` and
    ``beta`` are our own choice.

    Args:
        params: parameters, named parameters or groups, as the base takes them.
        base: class of the base optimizer, or a function that builds one from parameters and options.
        rho: radius within which flatness is measured, at least 0.
        alpha: weight of flatness, at least 0.
        beta: share of the zeroth-order term in it, in [0, 1].
        relative_rho: the radius as a share of each tensor's norm, at least 0, in place of ``rho``; None for ``rho``.
            See `Landscape.ascent`.
        no_sync: a DDP model's ``no_sync`` lets each process use its own gradients; see `MultiPass`.
        **base_options: options of the base optimizer (``lr``, ``weight_decay``, ...).

    Raises:
        ValueError: an option is out of its range.

    Examples:
        >>> from shiftproof.optim import FAD
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = FAD([weight], torch.optim.SGD, lr=0.1)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = weight.square().sum()
        ...     loss.backward()
        ...     return loss
        >>> losses = [optimizer.step(closure).item() for _ in range(20)]
        >>> losses[-1] < losses[0]
        True
    """

    passes = 4

    def __init__(
        self,
        params: ParamsT,
        base: Callable[..., Optimizer] = Adam,
        rho: float = 0.05,
        alpha: float = 1.0,
        beta: float = 0.5,
        *,
        relative_rho: float | None = None,
        no_sync: NoSync | None = None,
        **base_options: Any,
    ) -> None:
        super().__init__(
            params,
            base,
            {"rho": rho, "relative_rho": relative_rho, "alpha": alpha, "beta": beta},
            no_sync,
            base_options,
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, whose options may differ from the optimizer's.

        Raises:
            ValueError: an option is out of range.
        """
        make_plain(param_group)
        beta = self.option({**self.defaults, **param_group}, "beta")
        check_number("beta", beta)
        if not beta <= 1:
            raise ValueError(f"Invalid beta value: {beta}; it must be in [0, 1]")
        super().add_param_group(param_group)

    def descent(self, at: Landscape, gradient: Vector) -> Vector:
        """Return the gradient of the loss plus that of its weighted flatness terms."""
        first = at.gradient(at.ascent(gradient))
        zeroth_order = [b - a for a, b in zip(gradient, first, strict=True)]
        steepest = at.ascent(zeroth_order)
        second = at.gradient(steepest)
        third = at.gradient([d + e for d, e in zip(steepest, at.ascent(second), strict=True)])
        first_order = [b - a for a, b in zip(second, third, strict=True)]
        terms = zip(gradient, zeroth_order, first_order, at.option("alpha"), at.option("beta"), strict=True)
        return [g + alpha * (beta * r0 + (1 - beta) * r1) for g, r0, r1, alpha, beta in terms]
