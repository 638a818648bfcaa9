"""Sums over samples of per-sample gradients and of their squares."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from shiftproof.base.precise_sums import norm
from shiftproof.gradients.kinds import check_dense_layers, check_real
from shiftproof.gradients.layers import LAYERS, Workspace, accumulate, fits, parameter_sums
from shiftproof.gradients.modes import evaluation_mode

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps outputs (n, ...) and targets (n, ...) to their mean loss, as ``F.cross_entropy`` does."""

_HELD = 2**24  # elements of per-sample gradients that the vectorised way holds at once, unless one sample has more


class GradientSums(NamedTuple):
    """Sums of the per-sample gradients of a chunk.

    Attributes:
        losses: losses of the samples (n,), detached.
        sums: sum over samples of the gradient, by name of the parameter, in the parameter's shape and in its dtype, but
            at least float32.
        squares: the same for the gradient's elementwise square.
    """

    losses: Tensor
    sums: dict[str, Tensor]
    squares: dict[str, Tensor]


class PerSampleGradients:
    """Sums per-sample gradients and their squares at little more than the cost of a backward pass.

    Linear layers, convolutions and affine normalisation layers that the model calls once have formulas
    (`shiftproof.gradients.layers`), which take one pass over the chunk. All other parameters (tied, used twice or
    outside their layer, or of other layers) take a second pass with the vectorised gradients of ``torch.func``. The
    first chunk of at least two samples decides which parameters use the formulas: on two of its samples these must
    agree with one backward pass per sample.

    Every module is in evaluation mode meanwhile, so that nothing is dropped and normalisation does not mix samples.
    Modes are restored, and weights, ``.grad`` and torch's generators do not change.

    Args:
        model: maps inputs (n, ...) to outputs (n, ...).
        loss: mean loss of a batch; a sample's loss is that of a batch of one.
        parameters: names from ``model.named_parameters()``, None for all; parameters that are frozen when a chunk is
            evaluated are left out of its result.

    Raises:
        ValueError: a name is unknown, no parameter requires a gradient, or one that does is complex.
        RuntimeError: a layer has sparse gradients.
    """

    def __init__(self, model: nn.Module, loss: Loss, parameters: Iterable[str] | None = None) -> None:
        self._model, self._loss = model, loss
        self._parameters = dict(model.named_parameters())
        chosen = list(self._parameters) if parameters is None else list(parameters)
        if unknown := [name for name in chosen if name not in self._parameters]:
            raise ValueError(f"the model has no parameter {', '.join(unknown)}")
        self._chosen = chosen
        self._names: list[str] = []  # parameters that were not frozen at the last chunk
        self._workspace = Workspace()
        self._layers: list[_Layer] | None = None  # layers that use the formulas; None until known
        self._update_names()

    def __call__(self, inputs: Tensor, targets: Tensor) -> GradientSums:
        """Return the sums over a chunk of samples, whose activations must all fit into memory.

        Args:
            inputs: inputs (n, ...).
            targets: targets (n, ...).

        Raises:
            ValueError: there are no samples, the numbers of inputs and targets differ, no parameter requires a
                gradient, or the loss of a batch is not a scalar.
            RuntimeError: a layer is not called as it was in the first chunk.
        """
        if not 0 < len(inputs) == len(targets):
            raise ValueError(f"expected as many targets as inputs, at least one, not {len(targets)} for {len(inputs)}")
        self._update_names()
        inputs, device = inputs.detach(), self._parameters[self._names[0]].device
        with torch.random.fork_rng([device] if device.type == "cuda" else []), _inert(self._model):
            if self._layers is None and len(inputs) > 1:  # one sample does not show whether samples mix
                self._layers = _verified_layers(self._model, self._names, inputs[:2])
            layers = self._layers or []
            done = {name for layer in layers for name in layer.names.values()}
            rest = [name for name in self._names if name not in done]
            sums: dict[str, Tensor] = {}
            squares: dict[str, Tensor] = {}
            for result in (
                self._by_formulas(layers, inputs, targets) if layers else None,
                self._vectorised(rest, inputs, targets) if rest else None,
            ):
                if result is not None:
                    losses = result.losses
                    sums |= result.sums
                    squares |= result.squares
        return GradientSums(losses, *({name: by_name[name] for name in self._names} for by_name in (sums, squares)))

    def _update_names(self) -> None:
        names = [name for name in self._chosen if self._parameters[name].requires_grad]
        if not names:
            raise ValueError("no parameter requires a gradient")
        if names != self._names:
            parameters = [self._parameters[name] for name in names]
            check_real(parameters)
            check_dense_layers(self._model, parameters)
            self._names, self._layers = names, None

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self._loss is F.cross_entropy and outputs.ndim == 2:  # the same in a fifth of the time
            return F.cross_entropy(outputs, targets, reduction="none")
        losses: Tensor = vmap(lambda output, target: self._loss(output[None], target[None]))(outputs, targets)
        if losses.ndim != 1:
            raise ValueError(f"the loss of a batch must be a scalar, not of shape {tuple(losses.shape[1:])}")
        return losses

    def _by_formulas(self, layers: Sequence[_Layer], inputs: Tensor, targets: Tensor) -> GradientSums:
        result, regular = _layer_sums(
            layers, len(inputs), self._workspace, lambda: self._losses(self._model(inputs), targets)
        )
        if irregular := [layer.names for layer in layers if layer not in regular]:
            names = ", ".join(name for names in irregular for name in names.values())
            raise RuntimeError(f"the layers of {names} are not called once with the batch, as in the first chunk")
        return result

    def _vectorised(self, names: Sequence[str], inputs: Tensor, targets: Tensor) -> GradientSums:
        chosen = {name: self._parameters[name].detach() for name in names}

        def loss_of(chosen: dict[str, Tensor], sample: Tensor, target: Tensor) -> Tensor:
            return self._loss(functional_call(self._model, chosen, (sample[None],)), target[None])

        samples = max(1, _HELD // sum(p.numel() for p in chosen.values()))
        gradients_of = vmap(grad_and_value(loss_of), in_dims=(None, 0, 0))
        losses = []
        sums, squares = _zeros(chosen), _zeros(chosen)
        # torch.func records by itself what it needs; fused attention would be evaluated sample by sample
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            for x, y in zip(torch.split(inputs, samples), torch.split(targets, samples), strict=True):
                gradients, values = gradients_of(chosen, x, y)
                losses.append(values)
                for name in names:
                    # a copy, because accumulate overwrites it, and it may be a view of another parameter's gradient
                    own = gradients[name].to(sums[name].dtype, copy=True, memory_format=torch.contiguous_format)
                    accumulate(own, sums[name], squares[name])
        return GradientSums(torch.cat(losses), sums, squares)


class _Layer(NamedTuple):
    """A layer, and the names of its parameters that use the formulas, by attribute."""

    module: nn.Module
    names: dict[str, str]


class _Token(torch.autograd.Function):
    """Makes a tensor depend on a token without changing or copying it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, token: Tensor) -> Tensor:
        ctx.mark_dirty(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        return None, None


@contextmanager
def _inert(model: nn.Module) -> Iterator[None]:
    """Put all modules in evaluation mode and let no parameter require a gradient within the context."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    with evaluation_mode(model):
        try:
            for p in parameters:
                p.requires_grad_(False)
            yield
        finally:
            for p in parameters:
                p.requires_grad_(True)


def _layer_sums(
    layers: Sequence[_Layer], samples: int, workspace: Workspace, evaluate: Callable[[], Tensor]
) -> tuple[GradientSums, list[_Layer]]:
    """Differentiate the per-sample losses (n,) that a function evaluates; also return the layers called exactly once.

    No parameter requires a gradient, so autograd computes no parameter gradients. To have a graph all the same, the
    outputs of layers that do not depend on other layers are made to depend on a token.
    """
    token = torch.zeros((), device="cpu", requires_grad=True)
    calls: Counter[nn.Module] = Counter()
    sums: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}

    def watch(names: Mapping[str, str]) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def after_forward(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            usual = len(args) == 1 and fits(module, args[0], samples)
            calls[module] += 1 if usual else 2
            if calls[module] > 1:
                return output
            x = args[0].detach()

            def collect(g: Tensor) -> None:
                for attribute, name in names.items():
                    sums[name], squares[name] = parameter_sums(module, attribute, x, g, workspace)

            if not output.requires_grad:
                output = _Token.apply(output.detach(), token)
            output.register_hook(collect)  # type: ignore[no-untyped-call]
            return output

        return after_forward

    handles = [layer.module.register_forward_hook(watch(layer.names)) for layer in layers]
    try:
        with torch.enable_grad():
            losses = evaluate()
            if losses.requires_grad:
                torch.autograd.grad(losses.sum(), token, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    for layer in layers:
        for attribute, name in layer.names.items():
            if name not in sums:  # the losses do not depend on it
                zeros = _zeros({name: getattr(layer.module, attribute)})
                sums[name], squares[name] = zeros[name], zeros[name].clone()
    return GradientSums(losses.detach(), sums, squares), [layer for layer in layers if calls[layer.module] == 1]


def _verified_layers(model: nn.Module, names: Collection[str], inputs: Tensor) -> list[_Layer]:
    """Return the layers and parameters whose formulas agree with one backward pass per sample on two samples.

    The test uses a random linear function of the outputs, and weights near the model's own: at these themselves
    gradients may be zero, as below a classifier that starts at zero, and then any formula would pass.
    """
    random = torch.Generator(inputs.device).manual_seed(0)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=random, dtype=like.dtype, device=like.device)

    candidates = _candidates(model, names)
    if not candidates:
        return []
    nearby = {name: p + 0.01 * normal(p) for name, p in model.named_parameters() if p.is_floating_point()}
    chosen = {name: nearby[name].clone().requires_grad_() for layer in candidates for name in layer.names.values()}
    with torch.enable_grad():
        single = [functional_call(model, {**nearby, **chosen}, (sample,)) for sample in torch.split(inputs, 1)]
    weights = normal(torch.cat(single))

    def values(outputs: Tensor, weights: Tensor) -> Tensor:
        return (outputs * weights).reshape(len(outputs), -1).sum(1)

    expected, expected_squares = _zeros(chosen), _zeros(chosen)
    for output, weight in zip(single, torch.split(weights, 1), strict=True):
        with torch.enable_grad():
            value = values(output, weight).sum()
        if not value.requires_grad:
            return []  # no candidate is used
        gradients = torch.autograd.grad(value, list(chosen.values()), allow_unused=True, materialize_grads=True)
        for name, gradient in zip(chosen, gradients, strict=True):
            expected[name] += gradient
            expected_squares[name] += gradient.to(expected[name].dtype).square()
    largest = max(norm(total) for total in expected.values())

    together = []

    def evaluate() -> Tensor:
        together.append(functional_call(model, nearby, (inputs,)))
        return values(together[0], weights)

    found, regular = _layer_sums(candidates, len(inputs), Workspace(), evaluate)
    computed = torch.finfo(weights.dtype).eps
    if not _close(together[0].detach(), torch.cat(single).detach(), 0.0, computed):
        return []  # samples mix
    # the size that rounding gives a gradient that is zero in exact arithmetic
    rounding = 100 * computed * largest

    def right(name: str) -> bool:
        precision = max(computed, torch.finfo(chosen[name].dtype).eps)
        return _close(found.sums[name], expected[name], rounding, precision) and _close(
            found.squares[name], expected_squares[name], rounding**2, precision
        )

    verified = [
        _Layer(layer.module, {attribute: name for attribute, name in layer.names.items() if right(name)})
        for layer in regular
    ]
    return [layer for layer in verified if layer.names]


def _close(found: Tensor, expected: Tensor, rounding: float, precision: float) -> bool:
    return norm(found - expected) <= math.sqrt(precision) * norm(expected) + rounding


def _zeros(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return zeros in which to add up the gradients of parameters."""
    return {
        name: p.new_zeros(p.shape, dtype=torch.promote_types(p.dtype, torch.float32)) for name, p in parameters.items()
    }


def _candidates(model: nn.Module, names: Collection[str]) -> list[_Layer]:
    """Return the layers of known kinds, with those named parameters that belong to no other layer."""
    owned = [dict(module.named_parameters(recurse=False, remove_duplicate=False)) for module in model.modules()]
    owners = Counter(p for parameters in owned for p in parameters.values())
    name_of = {p: name for name, p in model.named_parameters() if name in names and owners[p] == 1}
    layers = [
        _Layer(module, {attribute: name_of[p] for attribute, p in parameters.items() if p in name_of})
        for module, parameters in zip(model.modules(), owned, strict=True)
        if isinstance(module, LAYERS)
    ]
    return [layer for layer in layers if layer.names]
