"""The optimizer whose step torch's hooks are around."""

from __future__ import annotations

from torch.optim import Optimizer


def hooked_optimizer(optimizer: Optimizer) -> Optimizer:
    """Return an optimizer whose step runs hooks: the given one, or the one that it wraps.

    A wrapper may be a subclass of torch's optimizers and yet run no hooks, as accelerate's ``AcceleratedOptimizer``,
    Lightning's ``LightningOptimizer`` and timm's ``Lookahead`` are. What it holds runs them where that steps.

    Raises:
        TypeError: it runs none, and does not hold just one optimizer.
    """
    seen: list[object] = []
    while not getattr(getattr(type(optimizer), "step", None), "hooked", False):
        seen.append(optimizer)
        held = [value for value in getattr(optimizer, "__dict__", {}).values() if isinstance(value, Optimizer)]
        if len(held) != 1 or any(held[0] is one for one in seen):
            raise TypeError(
                f"{type(optimizer).__name__} is no torch.optim.Optimizer whose step runs hooks, and holds {len(held)} "
                "optimizers: give the one that steps the parameters"
            )
        [optimizer] = held
    return optimizer
