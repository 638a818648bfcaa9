"""GENIE: the optimizer that equalises how much each parameter's update contributes to generalization.

Source: Cho, Kim and Kim, "One-Step Generalization Ratio Guided Optimization for Domain Generalization", ICML 2025
(Algorithm 1), and the code its authors released with it. The functional core `genie` has a for-loop
implementation, which is the readable ground truth, and a foreach one, which equals it bit for bit.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from shiftproof.optim.stream import MASK_LEVELS, draw_masks, draw_normals, mask_threshold

Form = Literal["paper", "released"]
DEFAULT_LR: dict[str, float] = {"paper": 0.1, "released": 0.015}

# The released code's constants.
_VARIANCE_FLOOR = 1e-8
_LARGEST_INVERSE_VARIANCE = 10.0


class GENIE(Optimizer):
    r"""Generalization-ratio guided optimizer (ICML 2025), in the paper's form or the released code's.

    With the moving averages :math:`m` and :math:`v` of the gradient and its square, ``form="paper"`` is
    Algorithm 1 as published:

    .. math::
        \sigma^2 = \max(v - m^2, 0),\quad
        u = \frac{m}{1-\beta^t}\,\tanh(1/\sigma^2)\,\frac{m^2}{v},\quad
        z = \xi\,(1 - \tanh(1/\sigma^2)),\ \xi \sim N(0, \sigma^2),\quad
        \theta \leftarrow \theta - \eta\,(u + z)\,M

    where an element of :math:`M` is 0 with probability ``dropout``, else 1, and :math:`u = 0` where :math:`v = 0`.
    ``form="released"`` is what produced the published tables: the variance is corrected for the moving average
    (Balles and Hennig, ICML 2018), the preconditioner is :math:`\tanh(\min(1/\sigma^2, 10)) / (1 + \rho\sigma^2 /
    (\bar g^2 + 10^{-8}))`, the noise has one scale per tensor, and what the mask keeps is divided by one minus
    ``dropout``. Its first step is defined to have no noise: there its variance is 0/0, decided by rounding.

    Mask and noise are functions of (seed, step, position of the parameter, element): replicas that share ``seed``
    stay identical and torch's generators are not touched. ``dropout`` is rounded to a multiple of 1/65536.

    Args:
        params: parameters, named parameters or groups, as every torch optimizer takes them.
        lr: step size; None is the form's default (0.1 for "paper", 0.015 for "released").
        beta: decay of both moving averages, in [0, 1).
        dropout: probability of dropping an element's update, in [0, 1); 0 draws no mask.
        noise: factor of the noise term; 0 draws none.
        precondition: False leaves the bias-corrected mean gradient as the update ("released" keeps its noise scale).
        weight_decay: L2 penalty, added to the gradient.
        form: "paper" or "released".
        seed: key of the random stream, in [0, 2**64); equal on all replicas.
        maximize: ascend instead of descending.
        foreach: whether to use the foreach implementation; None uses it unless a parameter is a tensor subclass.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> optimizer = GENIE(model.parameters(), lr=0.1)
        >>> loss_fn(model(images), labels).backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor | None = None,
        beta: float = 0.95,
        *,
        dropout: float = 0.4,
        noise: float = 1.0,
        precondition: bool = True,
        weight_decay: float = 0.0,
        form: Form = "paper",
        seed: int = 0,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        _check_form(form)
        defaults = {
            "lr": DEFAULT_LR[form] if lr is None else lr,
            "beta": beta,
            "dropout": dropout,
            "noise": noise,
            "precondition": precondition,
            "weight_decay": weight_decay,
            "form": form,
            "seed": seed,
            "maximize": maximize,
            "foreach": foreach,
        }
        _check_options(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, whose options may differ from the optimizer's.

        Raises:
            ValueError: an option is out of its range, or the group has another form and no lr of its own.
        """
        options = {**self.defaults, **param_group}
        _check_form(options["form"])
        if options["form"] != self.defaults["form"] and "lr" not in param_group:
            raise ValueError(
                f"a group with form '{options['form']}' in a '{self.defaults['form']}' GENIE needs its own lr"
            )
        _check_options(options)
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():  # options that the state's version did not have
                group.setdefault(name, value)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; moments keep at least float32, whatever the precision of the parameters."""
        loaded: dict[str, Any] = {}

        def keep(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
            loaded.update(state_dict)

        def restore(optimizer: Optimizer) -> None:
            saved = [index for group in loaded["param_groups"] for index in group["params"]]
            params = [p for group in self.param_groups for p in group["params"]]
            for index, p in zip(saved, params, strict=True):
                if _moment_dtype(p) != p.dtype and index in loaded["state"]:
                    for name in ("exp_avg", "exp_avg_sq"):
                        self.state[p][name] = loaded["state"][index][name].to(p.device, _moment_dtype(p), copy=True)

        # torch casts all state to the parameter's type. As the last hook before and the first after it, these
        # see what the user's hooks before made of the state, and leave theirs after the last word.
        handles = [
            self.register_load_state_dict_pre_hook(keep),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], Any]) -> Any: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: re-evaluates the model, leaves gradients and returns the loss; called once if given.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        position = 0
        for group in self.param_groups:
            members = _Members([], [], [], [], [], [])
            for p in group["params"]:
                if p.grad is not None:
                    self._add_member(members, p, position)
                position += 1
            genie(
                *members,
                lr=group["lr"],
                beta=group["beta"],
                dropout=group["dropout"],
                noise=group["noise"],
                precondition=group["precondition"],
                weight_decay=group["weight_decay"],
                form=group["form"],
                seed=group["seed"],
                maximize=group["maximize"],
                foreach=group["foreach"],
            )
        return loss

    def _add_member(self, members: _Members, p: Tensor, position: int) -> None:
        grad = cast(Tensor, p.grad)
        if grad.is_sparse:
            raise RuntimeError("GENIE does not support sparse gradients")
        state = self.state[p]
        if not state:
            state["step"] = torch.tensor(0.0, dtype=torch.float32)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(p, dtype=_moment_dtype(p), memory_format=torch.preserve_format)
        if not isinstance(state["step"], Tensor):
            state["step"] = torch.tensor(float(state["step"]), dtype=torch.float32)
        for column, value in zip(
            members,
            (p, grad, state["exp_avg"], state["exp_avg_sq"], state["step"], position),
            strict=True,
        ):
            cast(list[Any], column).append(value)


class _Members(NamedTuple):
    """The parameters of a group that have a gradient, in the order of `genie`'s arguments."""

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    steps: list[Tensor]
    positions: list[int]


def genie(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    positions: list[int],
    *,
    lr: float | Tensor,
    beta: float,
    dropout: float,
    noise: float,
    precondition: bool,
    weight_decay: float,
    form: Form,
    seed: int,
    maximize: bool,
    foreach: bool | None,
) -> None:
    """Take one GENIE step on lists of tensors, in place (parameters, moving averages and step counts).

    Args:
        params: parameters.
        grads: their gradients.
        exp_avgs: moving averages of the gradients.
        exp_avg_sqs: moving averages of the squared gradients.
        steps: steps taken so far, scalar tensors; increased by one.
        positions: each parameter's position in the random stream.
        lr: see `GENIE`, as for all that follow.
        beta: decay of the moving averages.
        dropout: probability of dropping an element's update.
        noise: factor of the noise.
        precondition: whether the mean gradient is preconditioned.
        weight_decay: L2 penalty.
        form: the update rule.
        seed: key of the random stream.
        maximize: whether to ascend.
        foreach: the implementation.
    """
    if foreach is None:
        foreach = all(type(p) in (Tensor, torch.nn.Parameter) for p in params)
    if isinstance(lr, Tensor):
        lr = lr.reshape(())  # a (1,) tensor would broadcast a scalar parameter's update
    options = _Options(lr, beta, mask_threshold(dropout), noise, precondition, weight_decay, form, seed, maximize)
    rows = [
        row for row in zip(params, grads, exp_avgs, exp_avg_sqs, steps, positions, strict=True) if row[0].numel() > 0
    ]
    for step in steps:
        step += 1
    if foreach:
        for batch in _foreach_batches(rows):
            _multi_tensor_genie(batch, int(batch.steps[0].item()), options)
    else:
        for param, grad, exp_avg, exp_avg_sq, step, position in rows:
            _single_tensor_genie(param, grad, exp_avg, exp_avg_sq, int(step.item()), position, options)


class _Options(NamedTuple):
    lr: float | Tensor
    beta: float
    threshold: int
    noise: float
    precondition: bool
    weight_decay: float
    form: Form
    seed: int
    maximize: bool


def _real(t: Tensor) -> Tensor:
    return torch.view_as_real(t) if t.is_complex() else t


def _moment_dtype(p: Tensor) -> torch.dtype:
    return torch.float32 if p.dtype in (torch.float16, torch.bfloat16) else p.dtype


def _released_rho(beta: float, correction: float) -> float:
    """Return the variance of the moving average over that of one gradient (Balles and Hennig, eq. 10)."""
    return (1 - beta) * (2 - correction) / ((1 + beta) * correction)


def _single_tensor_genie(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    position: int,
    options: _Options,
) -> None:
    lr, beta, threshold, noise, precondition, weight_decay, form, seed, maximize = options
    param, m, v = _real(param), _real(exp_avg), _real(exp_avg_sq)
    g = _real(grad).to(m.dtype)
    if maximize:
        g = -g
    if weight_decay:
        g = g + weight_decay * param.to(m.dtype)
    m.mul_(beta).add_(g, alpha=1 - beta)
    v.mul_(beta).addcmul_(g, g, value=1 - beta)
    correction = 1 - beta**step
    mean = m / correction

    if form == "paper":
        variance = (v - m * m).clamp(min=0)  # negative by rounding; then 1 / 0 leaves no noise
        certainty = torch.tanh(1 / variance)
        factor = torch.where(v > 0, certainty * (m * m) / v, 0)
        spread = variance.sqrt()
    else:
        if step == 1:  # rho is 1 and the quotient x / 0: rounding would decide which elements get noise
            variance = averaged = torch.full_like(m, _VARIANCE_FLOOR)
        else:
            rho = _released_rho(beta, correction)
            variance = (v / correction - mean * mean) / (1 - rho)
            variance = torch.where(variance > 0, variance, _VARIANCE_FLOOR)
            averaged = variance * rho
            averaged = torch.where(averaged > 0, averaged, _VARIANCE_FLOOR)
        certainty = torch.tanh((1 / variance).clamp(max=_LARGEST_INVERSE_VARIANCE))
        factor = certainty / (averaged / (mean * mean + _VARIANCE_FLOOR) + 1)
        spread = (factor * mean.abs()).sum() / certainty.sum()

    update = mean * factor if precondition else mean
    uncertainty = 1 - certainty
    if noise and uncertainty.any():  # certain everywhere is the usual case: then nothing is drawn
        [normal] = draw_normals([m.shape], [position], seed, step, m.dtype, m.device)
        update = update + normal * spread * uncertainty * noise
    if threshold:
        [kept] = draw_masks([m.shape], [position], seed, step, threshold, m.device)
        update = update * kept
        if form == "released":
            update = update / (1 - threshold / MASK_LEVELS)
    param.sub_(update * lr)


def _foreach_batches(rows: list[Any]) -> list[_Members]:
    """Group rows that one foreach call can take: one device, one type of parameter and moment, one step."""
    batches: dict[Any, list[Any]] = defaultdict(list)
    for row in rows:
        p, _, exp_avg, _, step, _ = row
        batches[p.device, p.dtype, exp_avg.dtype, float(step)].append(row)
    return [_Members(*(list(column) for column in zip(*batch, strict=True))) for batch in batches.values()]


def _multi_tensor_genie(members: _Members, step: int, options: _Options) -> None:
    gs: Sequence[Tensor]
    spreads: Sequence[Tensor]
    lr, beta, threshold, noise, precondition, weight_decay, form, seed, maximize = options
    params, ms, vs = ([_real(t) for t in ts] for ts in (members[0], members[2], members[3]))
    device, dtype = ms[0].device, ms[0].dtype
    gs = [_real(grad).to(dtype) for grad in members.grads]
    if maximize:
        gs = torch._foreach_neg(gs)
    if weight_decay:
        gs = torch._foreach_add(gs, torch._foreach_mul([p.to(dtype) for p in params], weight_decay))
    torch._foreach_mul_(ms, beta)
    torch._foreach_add_(ms, gs, alpha=1 - beta)
    torch._foreach_mul_(vs, beta)
    torch._foreach_addcmul_(vs, gs, gs, 1 - beta)
    correction = 1 - beta**step
    means = torch._foreach_div(ms, correction)

    if form == "paper":
        squares = torch._foreach_mul(ms, ms)
        variances = torch._foreach_sub(vs, squares)
        torch._foreach_clamp_min_(variances, 0)
        certainties = torch._foreach_reciprocal(variances)
        torch._foreach_tanh_(certainties)
        factors = torch._foreach_div(torch._foreach_mul(certainties, squares), vs)
        factors = tuple(torch.where(v > 0, factor, 0) for v, factor in zip(vs, factors, strict=True))
        spreads = torch._foreach_sqrt(variances)
    else:
        squares = torch._foreach_mul(means, means)
        if step == 1:
            variances = averages = tuple(torch.full_like(m, _VARIANCE_FLOOR) for m in ms)
        else:
            rho = _released_rho(beta, correction)
            variances = torch._foreach_div(vs, correction)
            torch._foreach_sub_(variances, squares)
            torch._foreach_div_(variances, 1 - rho)
            variances = tuple(torch.where(t > 0, t, _VARIANCE_FLOOR) for t in variances)
            averages = torch._foreach_mul(variances, rho)
            averages = tuple(torch.where(t > 0, t, _VARIANCE_FLOOR) for t in averages)
        certainties = torch._foreach_reciprocal(variances)
        torch._foreach_clamp_max_(certainties, _LARGEST_INVERSE_VARIANCE)
        torch._foreach_tanh_(certainties)
        torch._foreach_add_(squares, _VARIANCE_FLOOR)
        denominators = torch._foreach_div(averages, squares)
        torch._foreach_add_(denominators, 1)
        factors = torch._foreach_div(certainties, denominators)
        weighted = torch._foreach_mul(factors, torch._foreach_abs(means))
        spreads = [w.sum() / certainty.sum() for w, certainty in zip(weighted, certainties, strict=True)]

    updates = torch._foreach_mul(means, factors) if precondition else means
    if noise:
        uncertainties = torch._foreach_neg(certainties)
        torch._foreach_add_(uncertainties, 1)
        largest = torch.stack(torch._foreach_max(uncertainties)).tolist()
        noisy = [i for i, value in enumerate(largest) if value != 0]
        if noisy:
            shapes, positions = [ms[i].shape for i in noisy], [members.positions[i] for i in noisy]
            normals = draw_normals(shapes, positions, seed, step, dtype, device)
            for i, normal in zip(noisy, normals, strict=True):
                updates[i].add_(normal * spreads[i] * uncertainties[i] * noise)
    if threshold:
        masks = draw_masks([m.shape for m in ms], members.positions, seed, step, threshold, device)
        torch._foreach_mul_(updates, [mask.to(dtype) for mask in masks])
        if form == "released":
            torch._foreach_div_(updates, 1 - threshold / MASK_LEVELS)
    torch._foreach_mul_(updates, lr)
    torch._foreach_sub_(params, updates)


def _check_form(form: object) -> None:
    if form not in DEFAULT_LR:
        raise ValueError(f"Invalid form: {form!r}; valid forms: {', '.join(DEFAULT_LR)}")


def _check_options(options: dict[str, Any]) -> None:
    """Raise ValueError, naming the option, unless all are in range."""
    lr = options["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    seed = options["seed"]
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    dropout = options["dropout"]
    for name, valid, expected in (
        ("lr", 0 <= float(lr) < math.inf, "at least 0"),
        ("beta", 0 <= options["beta"] < 1, "in [0, 1)"),
        ("dropout", 0 <= dropout < 1 and mask_threshold(dropout) < MASK_LEVELS, "in [0, 1)"),
        ("noise", 0 <= options["noise"] < math.inf, "at least 0"),
        ("weight_decay", 0 <= options["weight_decay"] < math.inf, "at least 0"),
        ("seed", whole and 0 <= seed < 2**64, "an integer in [0, 2**64)"),
    ):
        if not valid:
            raise ValueError(f"Invalid {name} value: {options[name]}; it must be {expected}")
