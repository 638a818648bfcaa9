"""Find the optimizer whose step runs torch's hooks."""

from __future__ import annotations

from torch.optim import Optimizer


def hooked_optimizer(optimizer: Optimizer) -> Optimizer:
    """Return an optimizer whose step runs hooks: the given one, or the one that it wraps.

    A wrapper may be a subclass of torch's optimizers and still run no hooks. Examples are accelerate's
    ``AcceleratedOptimizer``, Lightning's ``LightningOptimizer`` and timm's ``Lookahead``. The optimizer inside runs
    them when it steps.

    Raises:
        TypeError: the optimizer runs no hooks, and does not hold exactly one other optimizer.
    """
    seen: list[object] = []
    while not getattr(getattr(type(optimizer), "step", None), "hooked", False):
        seen.append(optimizer)
        held = [value for value in getattr(optimizer, "__dict__", {}).values() if isinstance(value, Optimizer)]
        if len(held) != 1 or any(held[0] is one for one in seen):
            raise TypeError(
                f"{type(optimizer).__name__} is not a torch.optim.Optimizer whose step runs hooks, and holds "
                f"{len(held)} optimizers: pass the one that steps the parameters"
            )
        [optimizer] = held
    return optimizer
