"""GENIE: the optimizer that equalises how much each parameter's update contributes to generalization.

Source: Cho, Kim and Kim, "One-Step Generalization Ratio Guided Optimization for Domain Generalization", ICML 2025
(Algorithm 1), and the code its authors released with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from shiftproof.base.options import check_number
from shiftproof.optim.genie import fused_triton
from shiftproof.optim.genie.functional import (
    Flags,
    describe_implementation,
    make_rows,
    refuse_sparse,
    refuse_unfused,
    take_step,
)
from shiftproof.optim.genie.rule import DEFAULT_LR, Form, Options, Row
from shiftproof.optim.genie.seeds import count_as_living, free_seed, note_step, warn_of_repeated_draws
from shiftproof.optim.genie.statistics import GroupStatistics, group_statistics
from shiftproof.optim.options import constructor_defaults, make_plain, plain
from shiftproof.optim.state import check_loaded_state, labelled, names_of
from shiftproof.optim.stream import MASK_LEVELS, mask_threshold

_MOMENTS = ("exp_avg", "exp_avg_sq")
_GROUP_OPTIONS = [name for name in Options._fields if name not in Options._field_defaults]
_REMOVED_FORM = (
    'form="invariant" was removed: it cost three times AdamW and was no easier to tune. Use form="paper" or '
    'form="released"; a form that tunes like Adam is planned as GENIEAdamW'
)


_Member = tuple[Tensor, int, str | None]  # a parameter, its position in the random stream and its name


class GENIE(Optimizer):
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

    Both forms compare the variance with absolute numbers (1, 10, :math:`10^{-8}`). So the scale of the loss matters,
    and with gradients of the usual size, noise acts only where a spike lifts a variance above about 0.1.

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
            "moment_dtype": _name(moment_dtype),
        }
        defaults = plain(options)
        _check_options(defaults)
        super().__init__(params, defaults)
        count_as_living(self)
        if defaults["dropout"] or defaults["noise"]:
            warn_of_repeated_draws(p for group in self.param_groups for p in group["params"])

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a GradScaler may leave unscaling to `step`; otherwise it unscales itself, and synchronises."""
        return all(
            group["capturable"] and _flags(group).may_fuse and all(map(fused_triton.takes, group["params"]))
            for group in self.param_groups
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, whose options may differ from the optimizer's.

        Raises:
            ValueError: an option is out of its range, or the group has another form and no lr of its own.
        """
        make_plain(param_group)
        if "moment_dtype" in param_group:
            param_group["moment_dtype"] = _name(param_group["moment_dtype"])
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
        for name, value in constructor_defaults(self).items():  # options that the state's version did not have
            if name not in self.defaults:
                chosen = {"lr": DEFAULT_LR[self.defaults.get("form", "paper")], "seed": 0}
                self.defaults[name] = chosen.get(name, value)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            _check_form(group["form"])
        if len(seeds := {group["seed"] for group in self.param_groups}) == 1:
            [self.defaults["seed"]] = seeds  # a group that is added later draws as it would have before
        for entries in self.state.values():
            entries.pop("scale", None)  # of a form that was removed
        count_as_living(self)

    def __repr__(self) -> str:
        lines = super().__repr__().splitlines()
        names = [
            f"    implementation of group {i}: {describe_implementation(group['params'], _flags(group))}"
            for i, group in enumerate(self.param_groups)
        ]
        return "\n".join([*lines[:-1], *names, lines[-1]])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict; moments get the groups' ``moment_dtype``, whatever the precision of the parameters.

        Raises:
            ValueError: a moment's shape differs from its parameter's, a step count is invalid, or the form is unknown;
                nothing is loaded.
        """
        loaded: dict[str, Any] = {}

        def keep(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
            for group in state_dict["param_groups"]:
                _check_form(group.get("form", self.defaults["form"]))
            check_loaded_state(self, state_dict, _MOMENTS)
            loaded.update(state_dict)

        def restore(optimizer: Optimizer) -> None:
            saved = [index for group in loaded["param_groups"] for index in group["params"]]
            for index, (p, group, _) in zip(saved, labelled(self), strict=True):
                entries, state = loaded["state"].get(index, {}), self.state.get(p)
                if not state:
                    continue
                dtype = _moment_dtype(p, group)
                for name in _MOMENTS:
                    if name in entries and state[name].dtype != dtype:
                        state[name] = entries[name].to(p.device, dtype, copy=True)
                for name in _MOMENTS:  # in the parameter's memory order, which the saved one may not have had
                    moment = state.get(name)
                    if moment is not None and moment.shape == p.shape and moment.stride() != p.stride():
                        state[name] = torch.empty_like(p, dtype=moment.dtype).copy_(moment)
                if isinstance(state.get("step"), Tensor) and not group["capturable"]:
                    state["step"] = state["step"].cpu()

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

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: re-evaluates the model, back-propagates and returns the loss; called once if given.

        Returns:
            The closure's result, or None.

        Raises:
            RuntimeError: a gradient is sparse; a gradient or moving average differs from its parameter in shape or
                device; ``fused`` is True and the fused implementation does not support a parameter; or a CUDA graph is
                captured without ``capturable``.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            stepped = [
                (group, [member for member in members if member[0].grad is not None])
                for group, members in self._groups()
            ]
            for group, members in stepped:  # refuse what cannot be done before anything changes
                _check_capture(group)
                refuse_sparse(p.grad for p, _, _ in members if p.grad is not None)
                if group["fused"]:
                    refuse_unfused([p for p, _, _ in members if not self.state.get(p)], _flags(group))
            groups, steps = [], []
            for group, members in stepped:
                states = [self._init_state(p, group) for p, _, _ in members]
                rows = _rows(members, states, group, begins=True)
                groups.append((rows, self._options(group), _flags(group)))
                steps.append([state["step"] for state in states])
            take_step(groups, steps)
        note_step()
        return loss

    def init_state(self) -> None:
        """Create the state of all parameters that train, which `step` otherwise does on their first gradients.

        Use it if something reads the state before the first step, such as torch's distributed checkpoints.
        """
        for group in self.param_groups:
            for p in group["params"]:
                if p.requires_grad:
                    self._init_state(p, group)

    @torch.no_grad()
    def statistics(self) -> list[GroupStatistics | None]:
        """Return statistics of the last step, one entry per group; None for a group that took no step.

        They are recomputed from the moving averages, at about the cost of a step in torch's operations, with the
        current options of the groups: call this before a scheduler changes them. For sharded parameters they cover this
        process's parts, and all processes must make the call, because they sum the scale of the noise.
        """
        result = []
        for group, members in self._groups():
            stepped = [member for member in members if self.state.get(member[0], {}).get("step", 0) > 0]
            rows = _rows(stepped, [self.state[p] for p, _, _ in stepped], group, begins=False)
            result.append(group_statistics(rows, self._options(group)) if stepped else None)
        return result

    def _groups(self) -> Iterator[tuple[dict[str, Any], list[_Member]]]:
        """Yield the groups with their parameters."""
        position = 0
        for group in self.param_groups:
            members = enumerate(zip(group["params"], names_of(group), strict=True), start=position)
            yield group, [(p, place, name) for place, (p, name) in members]
            position += len(group["params"])

    def _init_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        state: dict[str, Any] = self.state[p]
        if not state:
            device = p.device if group["capturable"] else torch.device("cpu")
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            for name in _MOMENTS:
                state[name] = torch.zeros_like(p, dtype=_moment_dtype(p, group), memory_format=torch.preserve_format)
        for name in ("step", *_MOMENTS) if len(state) < 3 else ():
            if name not in state:
                raise RuntimeError(f"the state of a parameter of shape {tuple(p.shape)} has no {name}")
        if not isinstance(state["step"], Tensor):
            state["step"] = torch.tensor(float(state["step"]), dtype=torch.float32, device="cpu")
        if (
            group["capturable"] and state["step"].device != p.device
        ):  # a graph would hold a count on the host for constant
            state["step"] = state["step"].to(p.device)
        return state

    def _options(self, group: dict[str, Any]) -> Options:
        options = Options(
            **{name: group[name] for name in _GROUP_OPTIONS},
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=getattr(self, "found_inf", None),
        )
        if not 0 <= options.threshold < MASK_LEVELS:  # as set on the group since
            raise ValueError(f"Invalid dropout value: {options.dropout}; it must be in [0, 1)")
        if isinstance(options.lr, Tensor):  # of shape (1,) it would broadcast a scalar's update
            return options._replace(lr=options.lr.reshape(()))
        return options


def _rows(members: list[_Member], states: list[dict[str, Any]], group: dict[str, Any], *, begins: bool) -> list[Row]:
    return make_rows(
        [p for p, _, _ in members],
        [p if p.grad is None else p.grad for p, _, _ in members],  # without one where only statistics are asked for
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [state["step"] for state in states],
        [position for _, position, _ in members],
        [name for _, _, name in members],
        capturable=group["capturable"],
        begins=begins,
    )


def _flags(group: dict[str, Any]) -> Flags:
    return Flags(**{name: group[name] for name in Flags._fields})


def _name(dtype: torch.dtype | str | None) -> str | None:
    """Return the name of a dtype, which groups store because torch cannot gather state dicts that contain dtypes."""
    return str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype


def _moment_dtype(p: Tensor, group: dict[str, Any]) -> torch.dtype:
    if group["moment_dtype"] is not None and not p.is_complex():
        dtype: torch.dtype = getattr(torch, group["moment_dtype"])
        return dtype
    return torch.float32 if p.dtype in (torch.float16, torch.bfloat16) else p.dtype


def _check_capture(group: dict[str, Any]) -> None:
    initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    capturing = initialized and torch.cuda.is_current_stream_capturing()
    if capturing and not group["capturable"]:
        raise RuntimeError("a CUDA graph is being captured, which needs GENIE(..., capturable=True)")


def _check_form(form: object) -> None:
    if form == "invariant":
        raise ValueError(_REMOVED_FORM)
    if form not in DEFAULT_LR:
        raise ValueError(f"Invalid form: {form!r}; valid forms: {', '.join(DEFAULT_LR)}")


def _check_options(options: dict[str, Any]) -> None:
    """Raise a ValueError that names the option if one is out of range."""
    for name in ("lr", "beta", "dropout", "noise", "weight_decay"):
        check_number(name, options[name])
    lr = options["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    seed = options["seed"]
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    dropout = options["dropout"]
    for name, valid, expected in (
        ("lr", bool(0 <= lr < math.inf), "at least 0"),
        ("beta", 0 <= options["beta"] < 1, "in [0, 1)"),
        ("dropout", 0 <= dropout < 1 and mask_threshold(dropout) < MASK_LEVELS, "in [0, 1)"),
        ("noise", 0 <= options["noise"] < math.inf, "at least 0"),
        ("weight_decay", 0 <= options["weight_decay"] < math.inf, "at least 0"),
        ("seed", whole and 0 <= seed < 2**64, "an integer in [0, 2**64)"),
        (
            "moment_dtype",
            options["moment_dtype"] in (None, "float32", "bfloat16"),
            "torch.float32, torch.bfloat16 or None",
        ),
    ):
        if not valid:
            raise ValueError(f"Invalid {name} value: {options[name]}; it must be {expected}")
    chosen = [name for name in ("foreach", "fused", "differentiable") if options[name]]
    if len(chosen) > 1:
        raise ValueError(f"{' and '.join(chosen)} are different implementations; choose one")
    if options["differentiable"] and options["moment_dtype"] == "bfloat16":
        raise ValueError("differentiable cannot record the random rounding of moment_dtype bfloat16; choose one")
    if options["capturable"] and options["foreach"]:
        raise ValueError("foreach reads step counts on the host, capturable does not; choose one")
