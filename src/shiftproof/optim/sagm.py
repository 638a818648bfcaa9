"""Sharpness-aware gradient matching."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Adam, Optimizer
from torch.optim.optimizer import ParamsT

from shiftproof.optim.multipass import Landscape, MultiPass, NoSync, Vector


class SAGM(MultiPass):
    r"""Sharpness-aware gradient matching around any base optimizer, in 2 passes.

    Wang et al., "Sharpness-Aware Gradient Matching for Domain Generalization", CVPR 2023 (arXiv 2304.04353). It
    minimises the loss and the perturbed loss and aligns their gradients, all through the choice of the perturbation:
    the base optimizer steps with

    .. math::
        \tfrac12\, g + \tfrac12\, \nabla L\!\left(\theta + (\rho / \lVert g \rVert - \alpha)\, g\right),\quad
        g = \nabla L(\theta)

    where the norm is over all parameters. The factors of one half come from the released code.

    Args:
        params: parameters, named parameters or groups, as the base takes them.
        base: class of the base optimizer, or a function that builds one from parameters and options.
        rho: radius of the perturbation, at least 0.
        alpha: how far the perturbation is pulled back, in multiples of the gradient; at least 0.
        relative_rho: the radius as a share of each tensor's norm, at least 0, in place of ``rho``; None for ``rho``.
            See `Landscape.ascent`.
        no_sync: a DDP model's ``no_sync`` lets each process use its own gradients; see `MultiPass`.
        **base_options: options of the base optimizer (``lr``, ``weight_decay``, ...).

    Raises:
        ValueError: an option is negative or not finite.

    Examples:
        >>> from shiftproof.optim import SAGM
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = SAGM([weight], torch.optim.AdamW, rho=0.05, lr=0.1)
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
        alpha: float = 0.001,
        *,
        relative_rho: float | None = None,
        no_sync: NoSync | None = None,
        **base_options: Any,
    ) -> None:
        super().__init__(
            params, base, {"rho": rho, "relative_rho": relative_rho, "alpha": alpha}, no_sync, base_options
        )

    def descent(self, at: Landscape, gradient: Vector) -> Vector:
        """Return the mean of the gradients at the weights and at the perturbed weights."""
        offset = zip(at.ascent(gradient), gradient, at.option("alpha"), strict=True)
        perturbed = at.gradient([e - alpha * g for e, g, alpha in offset])
        return [0.5 * g + 0.5 * p for g, p in zip(gradient, perturbed, strict=True)]
