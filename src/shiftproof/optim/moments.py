"""The parts of Adam that Yogi, AdaBelief, AdaHessian, M-SVAG and Signum share: moving averages, and checks of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from shiftproof.base.options import check_number
from shiftproof.optim.options import constructor_defaults, make_plain, plain
from shiftproof.optim.state import check_loaded_state, labelled, mismatch


class MomentOptimizer(Optimizer):
    """Base of the optimizers with moving averages of the gradient and, unless they have none, of its square.

    Args:
        params: parameters or groups.
        **options: all options, kept in the groups: ``lr``, ``weight_decay``, the decay of the averages (``betas``,
            ``beta`` or ``momentum``) and others.

    Raises:
        ValueError: an option is out of range.
    """

    moments: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    """The averages in the state of a parameter."""

    def __init__(self, params: ParamsT, **options: Any) -> None:
        super().__init__(params, plain(options))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: evaluates the model, back-propagates and returns the loss.

        Returns:
            The closure's result.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for batch in begin_step(self):
            self._update(batch)
        return loss

    def _update(self, batch: ParameterBatch) -> None:
        """Step parameters whose step has begun; subclasses that do not define `step` define it."""
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, whose options may differ from the optimizer's.

        Raises:
            ValueError: an option is out of range.
        """
        make_plain(param_group)
        _check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name, value in constructor_defaults(self).items():  # options newer than the pickle
            default = self.defaults.setdefault(name, value)
            for group in self.param_groups:
                group.setdefault(name, default)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict.

        Raises:
            ValueError: a moment's shape differs from its parameter's, or a step count is invalid; nothing is loaded.
        """

        def check(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
            check_loaded_state(self, state_dict, self.moments)

        handle = self.register_load_state_dict_pre_hook(check)  # after the user's hooks, which may change the state
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()


class ParameterBatch(NamedTuple):
    """Parameters of equal group, device, dtype and step count, which are updated together.

    Attributes:
        group: the group's options.
        step: number of the step that begins, from 1.
        steps: counts of the steps taken, which `descend` increments.
        params: the parameters.
        grads: their gradients, never changed in place.
        exp_avgs: first moments.
        exp_avg_sqs: second moments; none for optimizers without them.
        positions: indices of the parameters, counted over all groups.
    """

    group: dict[str, Any]
    step: int
    steps: list[Tensor]
    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    positions: list[int]


def _check_options(options: dict[str, Any]) -> None:
    """Raise a ValueError that names the option if one is out of range."""
    for name in ("lr", "eps", "weight_decay", "initial_accumulator"):
        check_number(name, options.get(name, 0.0))
        if not 0 <= options.get(name, 0.0) < math.inf:
            raise ValueError(f"Invalid {name} value: {options[name]}; it must be at least 0")
    for name in ("beta", "momentum"):
        check_number(name, options.get(name, 0.0))
        if not 0 <= options.get(name, 0.0) < 1:
            raise ValueError(f"Invalid {name} value: {options[name]}; it must be in [0, 1)")
    for beta in options.get("betas", ()):
        check_number("betas", beta)
    if not all(0 <= beta < 1 for beta in options.get("betas", ())):
        raise ValueError(f"Invalid betas value: {options['betas']}; each must be in [0, 1)")


def begin_step(optimizer: MomentOptimizer) -> list[ParameterBatch]:
    """Return the parameters that have a gradient, with their moments; it changes no weight and counts no step.

    Second moments start at the group's ``initial_accumulator``, or 0.

    Raises:
        RuntimeError: a gradient is sparse, a parameter is complex, or a tensor differs from its parameter in shape or
            device.
    """
    batches: dict[object, ParameterBatch] = {}
    for position, (p, group, label) in enumerate(labelled(optimizer)):
        if p.grad is None:
            continue
        if p.grad.layout is not torch.strided or p.is_complex():
            raise RuntimeError(f"{type(optimizer).__name__} supports neither sparse nor complex gradients")
        state = optimizer.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
            state["exp_avg"] = torch.zeros_like(p)
            if "exp_avg_sq" in optimizer.moments:
                state["exp_avg_sq"] = torch.full_like(p, group.get("initial_accumulator", 0.0))
        if not isinstance(state["step"], Tensor):  # a state saved by another library may hold a number
            state["step"] = torch.tensor(float(state["step"]), dtype=torch.float32, device="cpu")
        tensors = {"the gradient": p.grad, **{name: state[name] for name in optimizer.moments}}
        for name, tensor in tensors.items():
            if (reason := mismatch(tensor, p)) is not None:
                raise RuntimeError(f"{name} of {label} is {reason}")
            if tensor.device != p.device:
                raise RuntimeError(f"{name} of {label} is on {tensor.device}, but the parameter is on {p.device}")
        step = int(state["step"]) + 1
        batch = batches.setdefault(
            (id(group), p.device, p.dtype, step), ParameterBatch(group, step, [], [], [], [], [], [])
        )
        batch.steps.append(state["step"])
        batch.params.append(p)
        batch.grads.append(p.grad)
        batch.exp_avgs.append(state["exp_avg"])
        if "exp_avg_sq" in optimizer.moments:
            batch.exp_avg_sqs.append(state["exp_avg_sq"])
        batch.positions.append(position)
    return list(batches.values())


def held_eps(batch: ParameterBatch) -> float:
    """Return the group's ``eps``, raised to the smallest normal number of the parameters' dtype if it is below that.

    In float16, 1e-16 would round to 0, and a zero gradient would give a step of 0 / 0.
    """
    eps: float = batch.group["eps"]
    return max(eps, torch.finfo(batch.params[0].dtype).tiny) if eps else 0.0


def average(averages: list[Tensor], values: list[Tensor] | tuple[Tensor, ...], beta: float) -> None:
    """Move exponential averages towards values, in place."""
    torch._foreach_mul_(averages, beta)
    torch._foreach_add_(averages, values, alpha=1 - beta)


def average_squares(averages: list[Tensor], values: list[Tensor] | tuple[Tensor, ...], beta: float) -> None:
    """Move exponential averages towards the squares of values, in place."""
    torch._foreach_mul_(averages, beta)
    torch._foreach_addcmul_(averages, values, values, value=1 - beta)


def decay(batch: ParameterBatch) -> None:
    """Shrink weights by ``lr * weight_decay``, decoupled from the gradient."""
    if batch.group["weight_decay"]:
        torch._foreach_mul_(batch.params, 1 - float(batch.group["lr"]) * batch.group["weight_decay"])


def descend(batch: ParameterBatch) -> None:
    """Subtract ``lr * m / (sqrt(v) + eps)``, with Adam's bias correction of both moments, and count the step."""
    beta1, beta2 = batch.group["betas"]
    denominators = torch._foreach_sqrt(batch.exp_avg_sqs)
    torch._foreach_div_(denominators, math.sqrt(1 - beta2**batch.step))
    torch._foreach_add_(denominators, held_eps(batch))
    rate = float(batch.group["lr"]) / (1 - beta1**batch.step)
    torch._foreach_addcdiv_(batch.params, batch.exp_avgs, denominators, value=-rate)
    count_step(batch)


def count_step(batch: ParameterBatch) -> None:
    """Count the step."""
    torch._foreach_add_(batch.steps, 1)
