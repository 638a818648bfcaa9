"""Cuts a network behind its frozen trunk, so that the trunk's outputs can be computed once and kept."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shiftproof.models.blocks import parts
from shiftproof.models.network import Network


class Trunk(nn.Module):
    """The frozen parts at the beginning of a featurizer.

    Args:
        featurizer: the whole featurizer, in evaluation mode wherever it is frozen.
        names: names of its leading parts, in order; all of them for the whole featurizer.

    Attributes:
        names: as given.
    """

    def __init__(self, featurizer: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self._featurizer = featurizer
        self.names = names
        self._whole = names == tuple(name for name, _ in parts(featurizer))

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        """Return the output of the last of its parts for normalised pictures (n, channels, height, width)."""
        if self._whole:
            features: Tensor = self._featurizer(inputs)
            return features
        found: list[Tensor] = []

        def keep(module: nn.Module, _: object, output: Tensor) -> None:
            found.append(output)
            raise _ReachedError

        handle = self._featurizer.get_submodule(self.names[-1]).register_forward_hook(keep)
        try:
            self._featurizer(inputs)
        except _ReachedError:
            pass
        finally:
            handle.remove()
        return found[0]


class Cut(NamedTuple):
    """A network in two parts that share its weights.

    Attributes:
        network: the whole network.
        trunk: its frozen beginning.
        rest: the network that takes the trunk's outputs in the place of pictures.
        shape: the shape of one output.
    """

    network: Network
    trunk: Trunk
    rest: Network
    shape: tuple[int, ...]


def cut(network: Network) -> Cut:
    """Cut a network behind the parts that come before the first trained one.

    Parts of the trunk are stand-ins in ``rest``: the last one gives the trunk's outputs and those before it give
    zeros, so that what a featurizer does between its parts need not be known. A vision transformer adds its position
    embedding there.

    Args:
        network: a network of pictures, of which a part is frozen (`freeze_all_but`).

    Raises:
        ValueError: its first part or a parameter of no part is trained, or what follows the trunk reads more than the
            trunk's outputs, so that it cannot be cut there.
    """
    if network.image_shape is None:
        raise ValueError("only networks of pictures have a trunk")
    names = []
    of_parts = {p for _, part in parts(network.featurizer) for p in part.parameters()}
    for name, parameter in network.featurizer.named_parameters():
        if parameter.requires_grad and parameter not in of_parts:  # who reads it is not known
            raise ValueError(f"{name}, which belongs to none of its parts, is trained")
    for name, part in parts(network.featurizer):
        if any(p.requires_grad for p in part.parameters()):
            break
        names.append(name)
    if not any(True for name in names for _ in network.featurizer.get_submodule(name).parameters()):
        raise ValueError("nothing of its beginning is frozen")
    trunk = Trunk(network.featurizer, tuple(names))
    rest = copy.copy(network)
    rest.image_shape = None
    training = network.training
    network.eval()
    try:
        if len(names) == len(list(parts(network.featurizer))):
            featurizer: nn.Module = nn.Identity()
        else:
            featurizer = _behind(network.featurizer, names, _pictures(network, 1))
        rest._modules = {**network._modules, "featurizer": featurizer}
        held = set(rest.modules())
        rest.frozen = tuple(part for part in network.frozen if part in held)  # else its copies would copy the trunk too
        shape = _checked(network, trunk, rest)
    finally:
        network.train(training)
        rest.train(training)
    return Cut(network, trunk, rest, shape)


class _StandIn(nn.Module):
    """In the place of a part, with its plain attributes, as the grid of a patch embedding."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        plain = {name: value for name, value in vars(part).items() if not name.startswith("_") and name != "training"}
        self.__dict__.update(plain)


class _Zeros(_StandIn):
    """In the place of a part of the trunk but the last: gives zeros of one picture, which nothing reads."""

    def __init__(self, part: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__(part)
        self._shape = shape

    def forward(self, inputs: Tensor, *_: object, **__: object) -> Tensor:
        return inputs.new_zeros(self._shape)


class _Given(_StandIn):
    """In the place of the last part of the trunk: gives what the featurizer was called with."""

    def __init__(self, part: nn.Module, picture_shape: tuple[int, ...]) -> None:
        super().__init__(part)
        self._picture_shape = picture_shape
        self._outputs: Tensor | None = None

    def take(self, _: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        """Keep the outputs before the featurizer runs, which begins with a picture of zeros."""
        [self._outputs] = arguments
        return (self._outputs.new_zeros(self._picture_shape),)

    def forward(self, *_: object, **__: object) -> Tensor:
        outputs, self._outputs = self._outputs, None
        assert outputs is not None  # noqa: S101  (`take` has run)
        return outputs


def _behind(featurizer: nn.Module, names: list[str], picture: Tensor) -> nn.Module:
    """Return a copy of a featurizer that shares its weights and takes the outputs of its part ``names[-1]``."""
    given = _Given(featurizer.get_submodule(names[-1]), tuple(picture.shape))
    stand_ins: dict[str, nn.Module] = {names[-1]: given}
    for name, shape in _shapes(featurizer, names[:-1], picture).items():
        stand_ins[name] = _Zeros(featurizer.get_submodule(name), shape)
    copied = _with_stand_ins(featurizer, stand_ins)
    # a bound method, so that a deep copy of the network calls the stand-in of its own
    copied._forward_pre_hooks = OrderedDict()
    copied.register_forward_pre_hook(given.take)
    return copied


@torch.no_grad()
def _shapes(featurizer: nn.Module, names: list[str], picture: Tensor) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the outputs of some parts for a picture, of those that give a tensor."""
    shapes: dict[str, tuple[int, ...]] = {}

    def keep(name: str, _: nn.Module, __: object, output: object) -> None:
        if isinstance(output, Tensor):
            shapes[name] = tuple(output.shape)

    handles = [featurizer.get_submodule(name).register_forward_hook(partial(keep, name)) for name in names]
    try:
        featurizer(picture)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _with_stand_ins(module: nn.Module, stand_ins: Mapping[str, nn.Module], prefix: str = "") -> nn.Module:
    """Return a copy of a module that shares its weights, with other modules in the place of some parts."""
    copied = copy.copy(module)
    copied._modules = dict(module._modules)
    for name, child in module.named_children():
        if prefix + name in stand_ins:
            copied._modules[name] = stand_ins[prefix + name]
        elif isinstance(child, (nn.Sequential, nn.ModuleList)):
            copied._modules[name] = _with_stand_ins(child, stand_ins, f"{prefix}{name}.")
    return copied


def _pictures(network: Network, number: int) -> Tensor:
    """Return random pictures of a network's size, where its weights are."""
    assert network.image_shape is not None  # noqa: S101  (`cut` has checked it)
    drawn = torch.rand(number, *network.image_shape, generator=torch.Generator().manual_seed(0))
    return drawn.to(next(network.parameters()).device)


@torch.no_grad()
def _checked(network: Network, trunk: Trunk, rest: Network) -> tuple[int, ...]:
    """Return the shape of one output of the trunk, after comparing both parts with the network on random pictures."""
    pictures = _pictures(network, 2)
    rest.eval()
    try:
        expected = network.featurizer(pictures)
        inner = trunk(pictures)
        found = rest.featurizer(inner)
    except (RuntimeError, TypeError, AttributeError, ValueError, IndexError, AssertionError):
        found = None
    if not isinstance(found, Tensor) or found.shape != expected.shape or not torch.equal(found, expected):
        raise ValueError(f"what follows {trunk.names[-1]} reads more than its outputs, so that it cannot be cut there")
    return tuple(inner.shape[1:])


class _ReachedError(Exception):
    """The trunk's last part has run."""
