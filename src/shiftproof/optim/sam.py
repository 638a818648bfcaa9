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

    Examples:
        >>> from shiftproof.optim import SAM
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = SAM([weight], torch.optim.SGD, rho=0.05, lr=0.1)
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

    where the norm is over all parameters, and :math:`T = 1` for parameters with fewer than two dimensions: biases and
    the factors of normalisation layers. The authors' code sets :math:`T = 1` for parameters whose name does not contain
    "weight", which ``by_name`` does. It differs for the factors of normalisation layers, which that code measures in
    units of their size, and for parameters such as the positions and the class token of a vision transformer, which it
    does not. Scaling a layer's factors against the next layer's weights leaves the network as it is only if the layer's
    shifts are scaled too, so their units win no invariance; but the published results have them.

    Args:
        params: parameters, named parameters or groups, as the base takes them; named ones with ``by_name``.
        base: class of the base optimizer, or a function that builds one from parameters and options.
        rho: radius of the perturbation, at least 0.
        eta: added to the size of each weight, at least 0, so that weights near zero can move.
        by_name: whether the names of parameters say which are measured in units of their size, as in the authors' code,
            rather than their dimensions.
        no_sync: a DDP model's ``no_sync`` lets each process ascend along its own gradient; see `MultiPass`.
        **base_options: options of the base optimizer (``lr``, ``weight_decay``, ...).

    Raises:
        ValueError: an option is negative or not finite.

    Examples:
        >>> from shiftproof.optim import ASAM
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = ASAM([weight], torch.optim.SGD, rho=0.5, lr=0.1)
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
        rho: float = 0.5,
        eta: float = 0.01,
        *,
        by_name: bool = False,
        no_sync: NoSync | None = None,
        **base_options: Any,
    ) -> None:
        super().__init__(params, base, {"rho": rho, "eta": eta, "by_name": by_name}, no_sync, base_options)

    def descent(self, at: Landscape, gradient: Vector) -> Vector:
        """Return the gradient at the perturbed weights.

        Raises:
            ValueError: parameters are told apart by names that they do not have.
        """
        by_name = at.option("by_name")
        if any(asked and name is None for asked, name in zip(by_name, at.names, strict=True)):
            raise ValueError("ASAM tells parameters apart by_name, but has no names: give it model.named_parameters()")
        scaled = [
            "weight" in str(name) if asked else p.ndim > 1
            for p, name, asked in zip(at.params, at.names, by_name, strict=True)
        ]
        sizes = [
            weight.abs() + eta if scales else 1.0
            for scales, weight, eta in zip(scaled, at.weights, at.option("eta"), strict=True)
        ]
        offset = at.ascent([size * g for size, g in zip(sizes, gradient, strict=True)])
        return at.gradient([size * e for size, e in zip(sizes, offset, strict=True)])
