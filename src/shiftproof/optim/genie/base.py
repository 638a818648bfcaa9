"""What GENIE and GENIEAdamW have in common: their state, how it is loaded, and the taking of a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from shiftproof.base.options import check_number
from shiftproof.optim.genie import fused_triton
from shiftproof.optim.genie.rule import Options, Row
from shiftproof.optim.genie.seeds import count_as_living, note_step, warn_of_repeated_draws
from shiftproof.optim.genie.statistics import GroupStatistics, group_statistics
from shiftproof.optim.genie.step import (
    Flags,
    describe_implementation,
    make_rows,
    refuse_sparse,
    refuse_unfused,
    take_step,
)
from shiftproof.optim.options import constructor_defaults, make_plain, plain
from shiftproof.optim.state import check_loaded_state, labelled, names_of
from shiftproof.optim.stream import MASK_LEVELS, mask_threshold

_MOMENTS = ("exp_avg", "exp_avg_sq")
_Member = tuple[Tensor, int, str | None]  # a parameter, its position in the random stream and its name


class GENIEBase(Optimizer, ABC):
    """Base of the optimizers whose step is taken by this folder's implementations.

    A subclass supplies its options: it checks them, and gives them to a step under the names of `Options`.

    Args:
        params: parameters, named parameters or groups.
        options: the options of the constructor by name.

    Raises:
        ValueError: an option is out of its range, or two contradict each other.

    Warns:
        UserWarning: FSDP1 or ZeroRedundancyOptimizer shards the parameters, so masks and noise repeat across parts.
    """

    def __init__(self, params: ParamsT, options: Mapping[str, Any]) -> None:
        defaults = plain({**options, "moment_dtype": _name(options["moment_dtype"])})
        self._check(defaults)
        super().__init__(params, defaults)
        count_as_living(self)
        if defaults["dropout"] or defaults.get("noise"):
            warn_of_repeated_draws(p for group in self.param_groups for p in group["params"])

    @abstractmethod
    def _check(self, options: Mapping[str, Any]) -> None:
        """Raise a ValueError that names the option if one is out of its range."""

    @abstractmethod
    def _check_saved(self, group: Mapping[str, Any]) -> None:
        """Raise a ValueError if a group of a state dict is not of this optimizer."""

    @abstractmethod
    def _step_options(self, group: Mapping[str, Any]) -> Options:
        """Return the options of a group's step."""

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
            ValueError: an option is out of its range.
        """
        make_plain(param_group)
        if "moment_dtype" in param_group:
            param_group["moment_dtype"] = _name(param_group["moment_dtype"])
        self._check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name, value in constructor_defaults(self).items():  # options that the state's version did not have
            self.defaults.setdefault(name, 0 if name == "seed" else value)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        if len(seeds := {group["seed"] for group in self.param_groups}) == 1:
            [self.defaults["seed"]] = seeds  # a group that is added later draws as it would have before
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
            ValueError: a moment's shape differs from its parameter's, a step count is invalid, or a group is of another
                form; nothing is loaded.
        """
        loaded: dict[str, Any] = {}

        def keep(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
            for group in state_dict["param_groups"]:
                self._check_saved(group)
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
                self._check_capture(group)
                refuse_sparse((p.grad for p, _, _ in members if p.grad is not None), type(self).__name__)
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

    def _check_capture(self, group: dict[str, Any]) -> None:
        initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        capturing = initialized and torch.cuda.is_current_stream_capturing()
        if capturing and not group["capturable"]:
            name = type(self).__name__
            raise RuntimeError(f"a CUDA graph is being captured, which needs {name}(..., capturable=True)")

    def _options(self, group: dict[str, Any]) -> Options:
        options = self._step_options(group)._replace(
            grad_scale=getattr(self, "grad_scale", None), found_inf=getattr(self, "found_inf", None)
        )
        if not 0 <= options.threshold < MASK_LEVELS:  # as set on the group since
            raise ValueError(f"Invalid dropout value: {options.dropout}; it must be in [0, 1)")
        if isinstance(options.lr, Tensor):  # of shape (1,) it would broadcast a scalar's update
            return options._replace(lr=options.lr.reshape(()))
        return options


def _rows(members: list[_Member], states: list[dict[str, Any]], group: dict[str, Any], *, begins: bool) -> list[Row]:
    return make_rows(
        [p for p, _, _ in members],
        [p.grad if begins and p.grad is not None else p for p, _, _ in members],  # statistics read no gradient
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


def check_shared_options(options: Mapping[str, Any]) -> None:
    """Raise a ValueError that names the option if one that both optimizers have is out of its range."""
    seed, dropout = options["seed"], options["dropout"]
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    check_number("dropout", dropout)
    if isinstance(dropout, Tensor):
        raise ValueError(f"Invalid dropout value: {dropout!r}; a tensor is not supported")  # noqa: TRY004
    for name, valid, expected in (
        ("dropout", 0 <= dropout < 1 and mask_threshold(dropout) < MASK_LEVELS, "in [0, 1)"),
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
