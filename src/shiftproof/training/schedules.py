"""Schedules of the learning rate, which are functions of the step alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor
from torch.optim import Optimizer

from shiftproof.base.choices import Schedule


def rate_factor(schedule: Schedule, step: int, *, steps: int, warm_up: int = 0) -> float:
    r"""Return the share of its learning rate that a step takes.

    With :math:`T` steps of which the first :math:`w` warm up, the share at step :math:`t`, from 1, is

    .. math:: f(t) = t / w \text{ for } t \le w,\quad\text{then } 1,\quad \frac{T - t}{T - w} \quad\text{or}\quad
        \frac12\left(1 + \cos \pi \frac{t - w}{T - w}\right)

    if the schedule is constant, linear or cosine. The last two are 0 at the last step, which then moves no weight by
    itself, and after it. The warm-up is that of Goyal et al., arXiv 1706.02677, section 2.2, and the cosine that of
    Loshchilov and Hutter, ICLR 2017 (arXiv 1608.03983, equation 5) without restarts.

    Args:
        schedule: "constant", "linear" or "cosine".
        step: number of the step, from 1.
        steps: number of steps of the run.
        warm_up: number of steps of the warm-up, below ``steps``.
    """
    if step <= warm_up:
        return step / warm_up
    if schedule == "constant":
        return 1.0
    left = max(steps - step, 0) / (steps - warm_up)
    return left if schedule == "linear" else (1 + math.cos(math.pi * (1 - left))) / 2


class ScheduledRates:
    """The learning rates of a run's optimizers, each group's its own times a factor of the step.

    The rates are those that the optimizers have when this is made. Nothing else is kept, so that a checkpoint need not
    hold it: a run that continues builds its optimizers anew, and sets the rates before every step.

    Args:
        optimizers: the optimizers by name.
        factor: returns the factor of a step, numbered from 1.

    Raises:
        ValueError: an optimizer has no learning rate in its groups.
    """

    def __init__(self, optimizers: Mapping[str, Optimizer], factor: Callable[[int], float]) -> None:
        for optimizer in optimizers.values():
            if any("lr" not in group for group in optimizer.param_groups):
                raise ValueError(f"{type(optimizer).__name__} has no lr in its param_groups that a schedule could set")
        self._optimizers = optimizers
        self._factor = factor
        self._rates = {name: [float(group["lr"]) for group in one.param_groups] for name, one in optimizers.items()}

    def set(self, step: int) -> None:
        """Set the rates of step number ``step``, from 1."""
        factor = self._factor(step)
        for name, rates in self._rates.items():
            for group, rate in zip(self._optimizers[name].param_groups, rates, strict=True):
                scheduled = rate * factor * group.get("lr_ratio", 1.0)  # of an optimizer that was built later
                if isinstance(group["lr"], Tensor):  # a captured graph reads this tensor
                    group["lr"].fill_(scheduled)
                else:
                    group["lr"] = scheduled
