"""GENIE: the optimizer that equalises how much each parameter's update contributes to generalization.

Source: Cho, Kim and Kim, "One-Step Generalization Ratio Guided Optimization for Domain Generalization", ICML 2025
(Algorithm 1), and the code its authors released with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from shiftproof.base.options import check_number
from shiftproof.optim.genie.base import GENIEBase, check_shared_options
from shiftproof.optim.genie.rule import DEFAULT_LR, Form, Options
from shiftproof.optim.genie.seeds import free_seed
from shiftproof.optim.options import make_plain

_REMOVED_FORM = (
    'form="invariant" was removed: it cost three times AdamW and was no easier to tune. Use form="paper" or '
    'form="released" to reproduce the paper, or GENIEAdamW, which does not depend on the scale of the loss either'
)


class GENIE(GENIEBase):
    r"""Generalization-ratio guided optimizer (ICML 2025): the paper's form, or the released code's.

    With the moving averages :math:`m` and :math:`v` of the gradient and its square, ``form="paper"`` is
    Algorithm 1 as published:

    .. math::
        \sigma^2 = \max(v - m^2, 0),\quad
        u = \frac{m}{1-\beta^t}\,\tanh(1/\sigma^2)\,\frac{m^2}{v},\quad
        z = \xi\,(1 - \tanh(1/\sigma^2)),\ \xi \sim N(0, \sigma^2),\quad
        \theta \leftarrow \theta - \eta\,(u + z)\,M

    where each element of :math:`M` is 0 with probability ``dropout`` and 1 otherwise, and :math:`u = 0` where
    :math:`v = 0`. ``form="released"`` is the authors' code, which produced the published tables. It corrects the
    variance for the moving average (Balles and Hennig, ICML 2018), preconditions with
    :math:`\tanh(\min(1/\sigma^2, 10)) / (1 + \rho\sigma^2 / (\bar g^2 + 10^{-8}))`, scales the noise per tensor, and
    divides the elements that the mask keeps by one minus ``dropout``. Its first step is defined to have no noise,
    because its variance there is 0/0 and would depend on rounding.

    Both forms compare the variance with absolute numbers (1, 10, :math:`10^{-8}`), so the scale of the loss matters.
    `GENIEAdamW` does not depend on it, and is the one for a loop of your own.

    With gradients of the usual size, noise acts only where a spike lifts a variance above about 0.1; there it moves the
    weight by about ``lr`` times the standard deviation, which can be far more than the update. On rotated digits at
    ``lr=10`` it left 3 of 60 runs stuck, and without it none; ``noise=0`` was better by 1.8 points on unseen domains
    [+0.2, +3.4]. `statistics` tells when a step's noise is larger than its update.

    Mask and noise are functions of (seed, step, position of the parameter, element). Replicas that share ``seed`` stay
    identical, shards draw the same numbers as the whole tensor would, and torch's generators are not touched. Masks
    agree bit for bit between all implementations, and noise to about 1e-6 of its size. ``dropout`` is rounded to a
    multiple of 1/65536.

    Args:
        params: parameters, named parameters or groups, as every torch optimizer takes them.
        lr: step size; None is the form's default (0.1 for "paper", 0.015 for "released").
        beta: decay of both moving averages, in [0, 1).
        dropout: probability of dropping an element's update, in [0, 1); 0 draws no mask.
        noise: factor of the noise term; 0 draws none.
        precondition: False uses the plain bias-corrected mean gradient as the update (the noise keeps its scale).
        weight_decay: L2 penalty, added to the gradient.
        form: "paper" or "released".
        seed: key of the random stream, in [0, 2**64); it must be equal on all replicas. None takes the lowest number
            that no other living GENIE of this process has, 0 for the first, so that two optimizers of one model draw
            different numbers. Replicas that build their optimizers in the same order get the same seeds. Repeated
            ``optimizer = GENIE(...)``, as in a loop or a notebook, alternates between two seeds, because it builds the
            new optimizer before the old one is gone: set the seed if runs must repeat.
        maximize: ascend instead of descending.
        foreach: whether to use the foreach implementation; None leaves the choice to this class.
        fused: whether to use the fused implementation: a compiled kernel on the CPU, Triton on a GPU. None uses it if
            possible (``repr`` says why if not), otherwise foreach, or the for-loop for tensor subclasses. The CPU
            kernel is compiled once per machine, at the first step, unless it came with the package.
        capturable: count steps on the device and read no value on the host, as capture in a CUDA graph requires.
        differentiable: let autograd record the step; for-loop only.
        moment_dtype: dtype of both moving averages, or its name; None is float32, or the parameter's dtype if that is
            wider. ``torch.bfloat16`` halves the state, and rounds stochastically so that averages do not lose small
            changes.

    Raises:
        ValueError: an argument is out of its range, or two contradict each other.

    Warns:
        UserWarning: FSDP1 or ZeroRedundancyOptimizer shards the parameters, so masks and noise repeat across parts.

    Examples:
        >>> import torch
        >>> from shiftproof.optim import GENIE
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = GENIE([weight], lr=0.01)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().backward()
        ...     optimizer.step()
        >>> bool(weight.detach().square().sum() < 5.0)
        True
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
        seed: int | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        moment_dtype: torch.dtype | str | None = None,
    ) -> None:
        _check_form(form)
        options = {
            "lr": DEFAULT_LR[form] if lr is None else lr,
            "beta": beta,
            "dropout": dropout,
            "noise": noise,
            "precondition": precondition,
            "weight_decay": weight_decay,
            "form": form,
            "seed": free_seed() if seed is None else seed,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
            "differentiable": differentiable,
            "moment_dtype": moment_dtype,
        }
        super().__init__(params, options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, whose options may differ from the optimizer's.

        Raises:
            ValueError: an option is out of its range, or the group has another form and no lr of its own.
        """
        make_plain(param_group)
        form = param_group.get("form", self.defaults["form"])
        _check_form(form)
        if form != self.defaults["form"] and "lr" not in param_group:
            raise ValueError(f"a group with form '{form}' in a '{self.defaults['form']}' GENIE needs its own lr")
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "defaults" in state:  # a pickle, which may be older than the option
            defaults = state["defaults"]
            state = {**state, "defaults": {"lr": DEFAULT_LR.get(defaults.get("form", "paper")), **defaults}}
        super().__setstate__(state)
        for group in self.param_groups:
            _check_form(group["form"])
        for entries in self.state.values():
            entries.pop("scale", None)  # of a form that was removed

    def _check(self, options: Mapping[str, Any]) -> None:
        _check_form(options["form"])
        for name in ("lr", "beta", "noise", "weight_decay"):
            check_number(name, options[name])
        lr = options["lr"]
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        for name, valid, expected in (
            ("lr", bool(0 <= lr < math.inf), "at least 0"),
            ("beta", 0 <= options["beta"] < 1, "in [0, 1)"),
            ("noise", 0 <= options["noise"] < math.inf, "at least 0"),
            ("weight_decay", 0 <= options["weight_decay"] < math.inf, "at least 0"),
        ):
            if not valid:
                raise ValueError(f"Invalid {name} value: {options[name]}; it must be {expected}")
        check_shared_options(options)

    def _check_saved(self, group: Mapping[str, Any]) -> None:
        if "betas" in group and "beta" not in group:  # moments on two scales of time
            raise ValueError("the state is of GENIEAdamW or another Adam, which GENIE cannot continue")
        _check_form(group.get("form", self.defaults["form"]))

    def _step_options(self, group: Mapping[str, Any]) -> Options:
        return Options(
            lr=group["lr"],
            betas=(group["beta"], group["beta"]),
            eps=0.0,
            dropout=group["dropout"],
            noise=group["noise"],
            precondition=group["precondition"],
            weight_decay=group["weight_decay"],
            form=group["form"],
            seed=group["seed"],
            maximize=group["maximize"],
        )


def _check_form(form: object) -> None:
    if form == "invariant":
        raise ValueError(_REMOVED_FORM)
    if form not in DEFAULT_LR:
        raise ValueError(f"Invalid form: {form!r}; valid forms: {', '.join(DEFAULT_LR)}")
