"""Surrogate gap guided sharpness-aware minimization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Adam, Optimizer
from torch.optim.optimizer import ParamsT

from shiftproof.optim.multipass import Landscape, MultiPass, NoSync, Vector


class GSAM(MultiPass):
    r"""Surrogate gap guided sharpness-aware minimization around any base optimizer, in 2 passes.

    Zhuang et al., "Surrogate Gap Minimization Improves Sharpness-Aware Training", ICLR 2022 (arXiv 2203.08065),
    algorithm 1. It minimises the perturbed loss, and narrows its gap to the loss at the weights by ascending the latter
    in directions that leave the perturbed loss unchanged. The base optimizer steps with

    .. math::
        g_p - \alpha \left(g - \frac{g \cdot g_p}{\lVert g_p \rVert^2}\, g_p\right),\quad
        g = \nabla L(\theta),\ g_p = \nabla L(\theta + \rho\, g / \lVert g \rVert)

    where norms and products are over all parameters. In the paper ``rho`` follows the learning rate; here it is
    constant unless you schedule it in the groups.

    Args:
        params: parameters, named parameters or groups, as the base takes them.
        base: class of the base optimizer, or a function that builds one from parameters and options.
        rho: radius of the perturbation, at least 0.
        alpha: weight of the ascent, at least 0.
        relative_rho: the radius as a share of each tensor's norm, at least 0, in place of ``rho``; None for ``rho``.
            See `Landscape.ascent`.
        no_sync: a DDP model's ``no_sync`` lets each process use its own gradients; see `MultiPass`.
        **base_options: options of the base optimizer (``lr``, ``weight_decay``, ...).

    Raises:
        ValueError: an option is negative or not finite.

    Examples:
        >>> from shiftproof.optim import GSAM
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = GSAM([weight], torch.optim.AdamW, rho=0.05, alpha=0.4, lr=0.1)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = weight.square().sum()
        ...     loss.backward()
        ...     return loss
        >>> losses = [optimizer.step(closure).item() for _ in range(20)]
        >>> losses[-1] < losses[0]
        True
    """

    passes = 2

    def __init__(
        self,
        params: ParamsT,
        base: Callable[..., Optimizer] = Adam,
        rho: float = 0.05,
        alpha: float = 0.4,
        *,
        relative_rho: float | None = None,
        no_sync: NoSync | None = None,
        **base_options: Any,
    ) -> None:
        super().__init__(
            params, base, {"rho": rho, "relative_rho": relative_rho, "alpha": alpha}, no_sync, base_options
        )

    def descent(self, at: Landscape, gradient: Vector) -> Vector:
        """Subtract the orthogonal part of the gradient at the weights from the gradient at the perturbed weights."""
        perturbed = at.gradient(at.ascent(gradient))
        rest = at.orthogonal(gradient, to=perturbed)
        return [g - alpha * r for g, r, alpha in zip(perturbed, rest, at.option("alpha"), strict=True)]
