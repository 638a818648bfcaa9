"""Sharpness-aware minimization: the gradient is taken where the loss nearby is highest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Adam, Optimizer
from torch.optim.optimizer import ParamsT

from shiftproof.optim.multipass import Landscape, MultiPass, NoSync, Vector


class SAM(MultiPass):
    r"""Sharpness-aware minimization around any base optimizer, in 2 passes.

    Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR 2021, algorithm 1. The
    base optimizer steps with the gradient

    .. math:: \nabla L(\theta + \rho\, g / \lVert g \rVert),\quad g = \nabla L(\theta)

    where the norm is over all parameters.

    Args:
        params: parameters, named parameters or groups, as the base takes them.
        base: class of the base optimizer, or a function that builds one from parameters and options.
        rho: radius of the perturbation, at least 0.
        relative_rho: the radius as a share of each tensor's norm, at least 0, in place of ``rho``; None for ``rho``.
            See `Landscape.ascent`.
        no_sync: a DDP model's ``no_sync`` lets each process ascend along its own gradient; see `MultiPass`.
        **base_options: options of the base optimizer (``lr``, ``weight_decay``, ...).

    Raises:
        ValueError: an option is negative or not finite.
    """

    passes = 2

    def __init__(
        self,
        params: ParamsT,
        base: Callable[..., Optimizer] = Adam,
        rho: float = 0.05,
        *,
        relative_rho: float | None = None,
        no_sync: NoSync | None = None,
        **base_options: Any,
    ) -> None:
        super().__init__(params, base, {"rho": rho, "relative_rho": relative_rho}, no_sync, base_options)

    def descent(self, at: Landscape, gradient: Vector) -> Vector:
        """Return the gradient at the perturbed weights."""
        return at.gradient(at.ascent(gradient))


class ASAM(MultiPass):
    r"""Adaptive sharpness-aware minimization around any base optimizer, in 2 passes.

    Kwon et al., "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks",
    ICML 2021 (arXiv 2102.11600), algorithm 1 with p = 2. The radius is measured in units of each weight's size, so that
    rescaling two layers' weights against each other changes nothing. The base optimizer steps with the gradient

    .. math:: \nabla L(\theta + \rho\, T^2 g / \lVert T g \rVert),\quad g = \nabla L(\theta),\ T = |\theta| + \eta

    where the norm is over all parameters. The authors' code sets :math:`T = 1` for parameters whose name does not
    contain "weight". An optimizer sees no names, so here :math:`T = 1` for parameters with fewer than two dimensions:
    biases, and also the factors of normalisation layers, which the authors' code scales.

    Args:
        params: parameters, named parameters or groups, as the base takes them.
        base: class of the base optimizer, or a function that builds one from parameters and options.
        rho: radius of the perturbation, at least 0.
        eta: added to the size of each weight, at least 0, so that weights near zero can move.
        no_sync: a DDP model's ``no_sync`` lets each process ascend along its own gradient; see `MultiPass`.
        **base_options: options of the base optimizer (``lr``, ``weight_decay``, ...).

    Raises:
        ValueError: an option is negative or not finite.
    """

    passes = 2

    def __init__(
        self,
        params: ParamsT,
        base: Callable[..., Optimizer] = Adam,
        rho: float = 0.5,
        eta: float = 0.01,
        *,
        no_sync: NoSync | None = None,
        **base_options: Any,
    ) -> None:
        super().__init__(params, base, {"rho": rho, "eta": eta}, no_sync, base_options)

    def descent(self, at: Landscape, gradient: Vector) -> Vector:
        """Return the gradient at the perturbed weights."""
        sizes = [
            weight.abs() + eta if p.ndim > 1 else 1.0
            for p, weight, eta in zip(at.params, at.weights, at.option("eta"), strict=True)
        ]
        offset = at.ascent([size * g for size, g in zip(sizes, gradient, strict=True)])
        return at.gradient([size * e for size, e in zip(sizes, offset, strict=True)])
