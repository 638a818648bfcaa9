"""Gradient norm aware minimization: the first-order flatness of the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Adam, Optimizer
from torch.optim.optimizer import ParamsT

from shiftproof.optim.multipass import Landscape, MultiPass, NoSync, Vector


class GAM(MultiPass):
    r"""Gradient norm aware minimization around any base optimizer, in 4 passes.

    Zhang et al., "Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves Generalization", CVPR 2023
    (arXiv 2303.03108), which minimises the loss plus :math:`\rho` times the largest gradient norm within radius
    :math:`\rho`. This follows the released code, which approximates Hessian-vector products by differences of gradients
    over a distance :math:`\rho'` and combines the gradients as GSAM does. With :math:`\hat v = v / \lVert v \rVert`,

    .. math::
        g_0 &= \nabla L(\theta), & g_1 &= \nabla L(\theta + \rho' \hat g_0), \\
        g_2 &= \nabla L(\theta + d),\ d = \rho\, \widehat{g_1 - g_0}, & g_3 &= \nabla L(\theta + d + \rho' \hat g_2),

    and the base optimizer steps with

    .. math::
        a - \gamma \left(b - \frac{a \cdot b}{\lVert a \rVert^2}\, a\right),\quad
        a = \beta_1 g_1 + \beta_3 g_3,\ b = g_0 + \beta_2 g_2

    where norms and products are over all parameters.

    Args:
        params: parameters, named parameters or groups, as the base takes them.
        base: class of the base optimizer, or a function that builds one from parameters and options.
        rho: radius within which the largest gradient norm is sought (``grad_norm_rho`` in the code), at least 0.
        difference: the distance :math:`\rho'` of the differences (``grad_rho`` in the code), at least 0.
        weights: weights :math:`\beta_1, \beta_2, \beta_3` of :math:`g_1, g_2, g_3`; the defaults are the code's for
            ResNets on CIFAR-100.
        gamma: weight of the ascended part, at least 0.
        no_sync: a DDP model's ``no_sync`` lets each process use its own gradients; see `MultiPass`.
        **base_options: options of the base optimizer (``lr``, ``weight_decay``, ...).

    Raises:
        ValueError: an option is negative or not finite.

    Examples:
        >>> from shiftproof.optim import GAM
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = GAM([weight], torch.optim.SGD, lr=0.1)
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
        rho: float = 0.2,
        difference: float = 0.02,
        weights: tuple[float, float, float] = (0.6, 0.5, 0.4),
        gamma: float = 0.03,
        *,
        no_sync: NoSync | None = None,
        **base_options: Any,
    ) -> None:
        if len(weights) != 3:
            raise ValueError(f"Invalid weights value: {weights}; it must hold three numbers")
        options = {"rho": rho, "difference": difference, "weights": tuple(weights), "gamma": gamma}
        super().__init__(params, base, options, no_sync, base_options)

    def descent(self, at: Landscape, gradient: Vector) -> Vector:
        """Return the descended gradients less the orthogonal part of the ascended ones (see the formula above)."""
        first = at.gradient(at.ascent(gradient, "difference"))
        steepest = at.ascent([b - a for a, b in zip(gradient, first, strict=True)])
        second = at.gradient(steepest)
        beyond = at.ascent(second, "difference")
        third = at.gradient([d + e for d, e in zip(steepest, beyond, strict=True)])
        weights = at.option("weights")
        descended = [w[0] * g + w[2] * h for w, g, h in zip(weights, first, third, strict=True)]
        ascended = [g + w[1] * h for w, g, h in zip(weights, gradient, second, strict=True)]
        rest = at.orthogonal(ascended, to=descended)
        return [g - gamma * r for g, r, gamma in zip(descended, rest, at.option("gamma"), strict=True)]
