"""The base of optimizers that evaluate the loss several times a step, such as SAM."""

from __future__ import annotations

import inspect
import math
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from shiftproof.base.options import check_number
from shiftproof.base.precise_sums import dot
from shiftproof.base.sharding import local_part, shard_of, sum_over_shards
from shiftproof.gradients import frozen_statistics
from shiftproof.optim.adahessian import AdaHessian
from shiftproof.optim.options import constructor_defaults, make_plain, plain
from shiftproof.optim.perturbed_loss import FACTOR, STEPS, PerturbedLossWatch, number
from shiftproof.optim.state import names_of

Vector = list[Tensor]
"""One tensor per parameter that has a gradient."""

NoSync = Callable[[], AbstractContextManager[Any]]
"""Returns a context without gradient averaging, as ``no_sync`` of `torch.nn.parallel.DistributedDataParallel` does."""

_MISSING_CLOSURE = """{name} evaluates the loss {passes} times a step, so it needs a closure:
    def closure():
        optimizer.zero_grad(); loss = loss_fn(model(inputs), targets); loss.backward(); return loss
    optimizer.step(closure)"""
_SCALED = """{name} cannot be stepped by a GradScaler, which would scale the gradients of all its {passes} passes. \
Use bfloat16, which needs no scaler:
    with torch.autocast(device, torch.bfloat16): loss = ...  # in the closure
    optimizer.step(closure)"""
_OWN_CLOSURE = """{base} evaluates the loss itself, and {name} hands its base a single gradient: \
use a base whose step needs no closure, such as SGD, AdamW or GENIE"""
_OWN_GRAPH = """AdaHessian differentiates the gradients again, but {name} hands its base a gradient without a graph: \
use a base that needs none, such as Adam"""
_FAR = """{name}'s perturbed loss has been more than {factor} times the loss for at least {steps} steps on end, last \
{perturbed:.3g} against {loss:.3g}: its radius is too large here"""
_SMALLER = ". It is {radius}: give a smaller one"
_UNITS = ", or {relative}, the radius as a share of the weights' norms"
_RELATIVE = "relative_"
"""Begins the name of the option that gives the radius of another as a share of the weights' norms, or is None."""
_TINY = 1e-12


class Landscape:
    """The loss around the weights of one step.

    With a base that ascends (``maximize``), the loss is the negative of the closure's, so that every method perturbs
    towards the worse side. Vectors hold one tensor per parameter that has a gradient: this process's part if the
    parameter is sharded, the real view if it is complex. Norms and products cover all parameters in full and are summed
    in float64, so sharding does not change them.

    Attributes:
        params: the parameters that have a gradient.
        names: their names; None for those without.
        weights: their values when the step began.
        radius: name of the option by which `ascent` was first called; None before.
    """

    def __init__(self, optimizer: MultiPass, evaluate: Callable[[], object]) -> None:
        members = [
            (p, name, group)
            for group in optimizer.param_groups
            for p, name in zip(group["params"], names_of(group), strict=True)
            if p.grad is not None
        ]
        if any(p.grad.layout != torch.strided for p, _, _ in members):
            raise RuntimeError(f"{type(optimizer).__name__} does not support sparse gradients")
        if any(p.grad.requires_grad for p, _, _ in members):
            raise RuntimeError(
                f"{type(optimizer).__name__} combines gradients of several passes, which have no common graph: "
                "back-propagate without create_graph, and use a base optimizer that does not need it"
            )
        self.params = [p for p, _, _ in members]
        self.names = [name for _, name, _ in members]
        self._groups = [group for _, _, group in members]
        self._optimizer = optimizer
        self._evaluate = evaluate
        self._places = [local_part(p) for p in self.params]
        self._shards = [shard_of(p) for p in self.params]
        self._ascends = [bool(group.get("maximize")) for group in self._groups]
        self.weights = [place.clone() for place in self._places]
        self.radius: str | None = None

    def option(self, name: str) -> list[Any]:
        """Return the value of an option for each parameter, taken from its group."""
        return [self._optimizer.option(group, name) for group in self._groups]

    def gradient(self, offset: Vector | None = None) -> Vector:
        """Return the gradient at an offset from the weights, which takes a pass; without one, the current gradient."""
        if offset is not None:
            for place, weight, distance in zip(self._places, self.weights, offset, strict=True):
                place.copy_(weight).add_(distance)
            self._evaluate()
        # Copies, because the closure or DDP may reuse the memory.
        gradients = [_local_gradient(p) for p in self.params]
        return [g.neg() if ascends else g.clone() for g, ascends in zip(gradients, self._ascends, strict=True)]

    def ascent(self, vector: Vector, rho: str = "rho") -> Vector:
        r"""Return the offset of a given radius along which the loss rises the most, if a vector is its gradient.

        The radius is that of the option ``rho``, a distance: the offset is the vector :math:`v` scaled to that length.
        Where the optimizer has an option ``relative_rho`` and it is not None, it is that share of the weights' norms:

        .. math:: \epsilon_i = \rho\, T_i^2 v_i / \lVert T v \rVert,\quad T_i = \lVert \theta_i \rVert

        with one :math:`T_i` per tensor, and 1 for the tensors of groups where it is None. No tensor then moves by more
        than that share of its norm. Zeros stay zeros.

        Args:
            vector: the vector.
            rho: name of the option.
        """
        self.radius = self.radius or rho
        radii, shares = self.option(rho), self.shares(rho)
        squares = self._products(vector, vector)
        if any(share is not None for share in shares):
            one = torch.ones_like(squares[0])
            units = [one if share is None else norm for share, norm in zip(shares, self._squared_norms, strict=True)]
            squares = squares * torch.stack(units)
            whole = zip(radii, shares, units, strict=True)
            radii = [radius if share is None else share * unit for radius, share, unit in whole]
        norm = squares.sum().sqrt() + _TINY
        return [v * (radius / norm).to(v.device) for v, radius in zip(vector, radii, strict=True)]

    def shares(self, rho: str) -> list[Any]:
        """Return for each parameter the radius as a share of its norm; None where the option ``rho`` gives it."""
        name = _RELATIVE + rho
        return self.option(name) if self._optimizer.has_option(name) else [None] * len(self.params)

    def orthogonal(self, vector: Vector, to: Vector) -> Vector:
        """Return the part of a vector that is orthogonal to another."""
        share = self.dot(vector, to) / self.dot(to, to).clamp(min=_TINY**2)
        return [v - t * share.to(t.device) for v, t in zip(vector, to, strict=True)]

    def norm(self, vector: Vector) -> Tensor:
        """Return the Euclidean norm."""
        return self.dot(vector, vector).sqrt()

    def dot(self, a: Vector, b: Vector) -> Tensor:
        """Return the scalar product."""
        return self._products(a, b).sum()

    def restore(self) -> None:
        """Restore the weights."""
        for place, weight in zip(self._places, self.weights, strict=True):
            place.copy_(weight)

    def leave(self, gradient: Vector) -> None:
        """Store a gradient for the base optimizer to step with."""
        for p, g, ascends in zip(self.params, gradient, self._ascends, strict=True):
            _local_gradient(p).copy_(-g if ascends else g)

    @cached_property
    def _squared_norms(self) -> Tensor:
        """The squared norm of each parameter when the step began."""
        return self._products(self.weights, self.weights)

    def _products(self, a: Vector, b: Vector) -> Tensor:
        """Return the scalar product of each parameter's part in two vectors."""
        products = [dot(x, y) for x, y in zip(a, b, strict=True)]
        stacked = torch.stack([product.to(products[0].device) for product in products])
        return sum_over_shards(stacked[:, None], self._shards)[:, 0]


class MultiPass(Optimizer, ABC):
    """Base of optimizers that evaluate the loss several times a step, around any base optimizer.

    A subclass supplies the mathematics: `passes` and `descent`. This class takes care of the rest:

    - Weights are restored from copies, even if the closure fails.
    - Every pass starts from the gradients present when `step` was called. A closure that does not zero them therefore
      sees in each pass what it would see under a plain optimizer.
    - Only the first pass changes buffers, such as the statistics of batch norms.
    - All passes draw the same numbers from torch's generators (dropout masks, for example) and advance them once.
    - Groups and state are shared with the base optimizer, so schedulers and checkpoints see one optimizer. If the base
      has an option of the same name, the groups prefix the method's with its class: ``"fad_beta"`` around GENIE.
    - A warning, once, if the loss of the first perturbed pass is more than ten times the loss for many steps on end.

    Args:
        params: parameters, named parameters or groups, as the base takes them.
        base: class of the base optimizer, or a function that builds one from parameters and options.
        options: options of the method by name: numbers of at least 0, or tuples of them; ``relative_rho`` also None.
        no_sync: with None, DDP averages the gradient of each pass, so that all processes ascend in one direction. With
            a DDP model's ``no_sync``, each process ascends along its own gradients, and only the gradient that the base
            steps with is averaged.
        base_options: options of the base optimizer.

    Attributes:
        passes: how often `step` calls its closure.
        base: the base optimizer.

    Raises:
        ValueError: an option is negative or not finite, or the base evaluates the loss itself.
    """

    passes: ClassVar[int]
    base: Optimizer

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """True only when torch's GradScaler asks, which then announces itself to `step` instead of scaling gradients.

        Others must see False: Lightning, for one, would otherwise refuse to clip gradients.
        """
        return sys._getframe(1).f_globals.get("__name__") == "torch.amp.grad_scaler"

    def __init__(
        self,
        params: ParamsT,
        base: Callable[..., Optimizer],
        options: Mapping[str, Any],
        no_sync: NoSync | None,
        base_options: Mapping[str, Any],
    ) -> None:
        optimizer = base(params, **plain(base_options))
        self._refuse_base(optimizer)
        options = plain(options)
        self._own = [self._prefixed(name) if name in optimizer.defaults else name for name in options]
        own = dict(zip(self._own, options.values(), strict=True))
        super().__init__(optimizer.param_groups, {**optimizer.defaults, **own})
        self.base = optimizer
        self.no_sync = no_sync
        self._watch: PerturbedLossWatch | None = PerturbedLossWatch()
        self._share()

    @abstractmethod
    def descent(self, at: Landscape, gradient: Vector) -> Vector:
        """Return the gradient that the base optimizer steps with.

        Args:
            at: the loss around the weights; call its `gradient` with an offset exactly `passes` - 1 times.
            gradient: the gradient at the weights.
        """

    def option(self, group: Mapping[str, Any], name: str) -> Any:
        """Return a group's value of one of the method's options."""
        prefixed = self._prefixed(name)
        return group[prefixed if prefixed in self._own else name]

    def has_option(self, name: str) -> bool:
        """Return whether the method has an option."""
        return not {name, self._prefixed(name)}.isdisjoint(self._own)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, whose options may differ from the optimizer's.

        Raises:
            ValueError: an option is out of range.
        """
        make_plain(param_group)
        for name in self._own:
            value = param_group.setdefault(name, self.defaults[name])
            if value is None and _RELATIVE in name:
                continue
            for one in value if isinstance(value, tuple) else (value,):
                check_number(name, one)
                if not 0 <= one < math.inf:
                    raise ValueError(f"Invalid {name} value: {value}; it must be at least 0")
        if "base" in self.__dict__:
            self.base.add_param_group(param_group)  # the list is shared
        else:
            super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "base": self.base, "no_sync": self.no_sync, "_own": self._own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._own = list(self._own)
        self._watch = PerturbedLossWatch()
        for name, value in constructor_defaults(self).items():  # options newer than the pickle
            if name not in ("base", "no_sync", *self._own) and self._prefixed(name) not in self._own:
                self._own.append(self._prefixed(name) if name in self.base.defaults else name)
                self.defaults.setdefault(self._own[-1], value)
        self._fill_options()
        self._share()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict through the base optimizer."""
        loaded: dict[str, Any] = {}

        def keep(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
            loaded.update(state_dict)

        def hand_on(optimizer: Optimizer) -> None:
            self.base.load_state_dict(loaded)
            self.param_groups, self.state = self.base.param_groups, self.base.state
            self._fill_options()

        # Last of the pre-hooks and first of the post-hooks, so that the user's hooks work as with any optimizer.
        handles = [
            self.register_load_state_dict_pre_hook(keep),
            self.register_load_state_dict_post_hook(hand_on, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; the closure is called `passes` times.

        Args:
            closure: zeroes the gradients, evaluates the model, back-propagates and returns the loss. To accumulate
                gradients, either loop over the parts of a batch inside it, or call ``backward`` for all parts but the
                last beforehand and let the closure add the last without zeroing: every pass starts from the sum.

        Returns:
            The closure's result at the unperturbed weights.

        Raises:
            ValueError: no closure was given, or it changed no gradient.
            RuntimeError: a GradScaler called `step`, or a gradient is sparse or has a graph.
        """
        self._refuse_grad_scaler()
        if closure is None:
            return self._step_without_closure()
        params = [p for group in self.param_groups for p in group["params"]]
        devices = {p.device for p in params}
        left = [None if p.grad is None else p.grad.detach().clone() for p in params]
        stood = [p.grad for p in params]
        versions = [_version(gradient) for gradient in stood]

        def is_idle() -> bool:
            """Return whether a pass changed no gradient; versions alone would miss writes through ``.data``."""
            return any(gradient is not None for gradient in stood) and all(
                p.grad is there
                and _version(there) == version
                and (there is None or before is None or torch.equal(local_part(there), local_part(before)))
                for p, there, version, before in zip(params, stood, versions, left, strict=True)
            )

        def evaluate() -> Any:
            with torch.enable_grad(), nullcontext() if self.no_sync is None else self.no_sync():
                return closure()

        def evaluate_again() -> None:
            _set_generators(before)
            with torch.no_grad():  # into the same tensors, which may be views of a buffer
                for p, there, gradient in zip(params, stood, left, strict=True):
                    p.grad = there if there is None or gradient is None else there.copy_(gradient)
            versions[:] = map(_version, stood)
            with frozen_statistics():
                losses.append(number(evaluate()))
            if idle and is_idle():  # as with the closure that Lightning passes under manual optimization
                missing = _MISSING_CLOSURE.format(name=type(self).__name__, passes=self.passes)
                raise ValueError(f"the closure changed no gradient; {missing}")

        before = _generators(devices)
        loss = evaluate()
        losses = [number(loss)]
        idle = is_idle()  # one pass alone proves nothing: it may have recomputed the same gradients
        after = _generators(devices)
        at = Landscape(self, evaluate_again)
        if at.params:
            try:
                gradient = self.descent(at, at.gradient())
            finally:
                at.restore()
                _set_generators(after)
            at.leave(gradient)
        if self.no_sync is not None:
            self._average_gradients(self.no_sync)
        self.base.step()
        if self._watch is not None and len(losses) > 1 and self._watch.is_far(*losses[:2]):
            self._watch = None
            warnings.warn(self._far_message(at, *losses[:2]), stacklevel=4)  # where the user calls `step`
        return loss

    def _far_message(self, at: Landscape, loss: Tensor | float, perturbed: Tensor | float) -> str:
        losses = {"loss": float(loss), "perturbed": float(perturbed)}
        message = _FAR.format(name=type(self).__name__, factor=FACTOR, steps=STEPS, **losses)
        if at.radius is None:  # a method of the user's own perturbs as it likes
            return message
        relative, shares = _RELATIVE + at.radius, at.shares(at.radius)
        radii = [
            f"{at.radius}={radius}" if share is None else f"{relative}={share}"
            for radius, share in zip(at.option(at.radius), shares, strict=True)
        ]
        message += _SMALLER.format(radius=", ".join(dict.fromkeys(radii)))
        return message + (_UNITS.format(relative=relative) if self.has_option(relative) and None in shares else "")

    def _prefixed(self, name: str) -> str:
        return f"{type(self).__name__.lower()}_{name}"

    def _share(self) -> None:
        self.base.param_groups = self.param_groups
        self.base.state = self.state

    def _fill_options(self) -> None:
        """Fill in the method's options where groups lack them, as after loading a state of the base alone."""
        for group in self.param_groups:
            for name in self._own:
                group.setdefault(name, self.defaults[name])

    def _refuse_base(self, base: Optimizer) -> None:
        """Raise ValueError if a base cannot step with a gradient alone."""
        closure = inspect.signature(base.step).parameters.get("closure")
        names = {"base": type(base).__name__, "name": type(self).__name__}
        evaluates = isinstance(base, MultiPass) or (closure is not None and closure.default is closure.empty)
        if evaluates or isinstance(base, AdaHessian):
            raise ValueError((_OWN_CLOSURE if evaluates else _OWN_GRAPH).format(**names))

    def _refuse_grad_scaler(self) -> None:
        if "grad_scale" in self.__dict__:
            for name in ("grad_scale", "found_inf"):  # after an error the scaler does not remove them
                self.__dict__.pop(name, None)
            raise RuntimeError(_SCALED.format(name=type(self).__name__, passes=self.passes))

    def _step_without_closure(self) -> None:
        """Step the base with zero gradients, as torch's distributed checkpoints do to make it create its state."""
        params = [p for group in self.param_groups for p in group["params"]]
        moves = any(group.get("lr", 0) != 0 for group in self.param_groups)
        if moves or any(p.grad is not None and local_part(p.grad).any() for p in params):
            raise ValueError(_MISSING_CLOSURE.format(name=type(self).__name__, passes=self.passes))
        self.base.step()

    def _average_gradients(self, no_sync: NoSync) -> None:
        """Average gradients over processes; where a process did not use a parameter, zeros count, as in DDP."""
        model = getattr(no_sync, "__self__", None)
        processes = getattr(model, "process_group", None)
        params = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        used = torch.tensor([float(p.grad is not None) for p in params], device=params[0].device)
        torch.distributed.all_reduce(used, group=processes)
        for p, uses in zip(params, used.tolist(), strict=True):
            if uses:
                gradient = torch.zeros_like(p) if p.grad is None else p.grad
                total = gradient.contiguous()
                torch.distributed.all_reduce(total, group=processes)
                p.grad = gradient.copy_(total / torch.distributed.get_world_size(processes))


def _local_gradient(p: Tensor) -> Tensor:
    """Return this process's part of a gradient, placed like its parameter; zeros if the pass left none."""
    if p.grad is None:
        p.grad = torch.zeros_like(p)
    placements = getattr(p, "placements", None)
    if getattr(p.grad, "placements", None) != placements:
        p.grad = cast(Any, p.grad).redistribute(placements=placements)
    return local_part(cast(Tensor, p.grad))


def _version(gradient: Tensor | None) -> int:
    """Return how often a gradient has been changed in place."""
    return -1 if gradient is None else local_part(gradient)._version


def _generators(devices: Iterable[torch.device]) -> dict[torch.device, Tensor]:
    """Return the states of the generators that a closure draws from."""
    states = {torch.device("cpu"): torch.get_rng_state()}
    for device in devices:
        if device.type not in ("cpu", "meta"):
            states[device] = torch.get_device_module(device).get_rng_state(device)
    return states


def _set_generators(states: Mapping[torch.device, Tensor]) -> None:
    for device, state in states.items():
        if device.type == "cpu":
            torch.set_rng_state(state)
        else:
            torch.get_device_module(device).set_rng_state(state, device)
