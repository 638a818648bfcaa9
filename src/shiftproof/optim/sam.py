"""Sharpness-aware minimization: the gradient is taken where the loss nearby is highest."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.optimizer import ParamsT

from shiftproof.optim.batch_norm import frozen_statistics

_MISSING_CLOSURE = """SAM evaluates the loss twice a step, so it needs a closure:
    def closure():
        optimizer.zero_grad(); loss = loss_fn(model(inputs), targets); loss.backward(); return loss
    optimizer.step(closure)"""


class SAM(Optimizer):
    r"""Sharpness-aware minimization around any base optimizer.

    The base optimizer steps with the gradient at :math:`\theta + \rho\, g / \lVert g \rVert` (Foret et al.,
    "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR 2021, algorithm 1; the norm is over
    all parameters). Weights are restored from a copy, so nothing drifts, and batch-norm statistics are updated by
    the first pass only.

    Args:
        params: parameters or groups.
        base: class of the base optimizer.
        rho: radius of the perturbation, at least 0.
        **base_options: options of the base optimizer (``lr``, ``weight_decay``, ...).

    Raises:
        ValueError: ``rho`` is negative or not finite.
    """

    base: Optimizer

    def __init__(
        self,
        params: ParamsT,
        base: Callable[..., Optimizer] = Adam,
        rho: float = 0.05,
        **base_options: Any,
    ) -> None:
        if not 0 <= rho < math.inf:
            raise ValueError(f"Invalid rho value: {rho}; it must be at least 0")
        optimizer = base(params, **base_options)
        # The base's groups and state are this optimizer's own, so schedulers and checkpoints see one optimizer.
        super().__init__(optimizer.param_groups, {**optimizer.defaults, "rho": rho})
        self.base = optimizer
        self._share()

    def _share(self) -> None:
        self.base.param_groups = self.param_groups
        self.base.state = self.state

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "base": self.base}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; the closure is called twice.

        Args:
            closure: zeroes the gradients, evaluates the model, back-propagates and returns the loss.

        Returns:
            What the closure returned at the unperturbed weights.

        Raises:
            ValueError: no closure was given.
        """
        if closure is None:
            raise ValueError(_MISSING_CLOSURE)
        with torch.enable_grad():
            loss = closure()
        perturbed = [
            (p, p.grad, group["rho"]) for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        norm = torch.nn.utils.get_total_norm([grad for _, grad, _ in perturbed])
        weights: list[tuple[Tensor, Tensor]] = []
        for p, grad, rho in perturbed:
            weights.append((p, p.clone()))
            p.add_(grad * (rho / (norm + 1e-12)))
        with torch.enable_grad(), frozen_statistics():
            closure()
        for p, weight in weights:
            p.copy_(weight)
        self.base.step()
        return loss
