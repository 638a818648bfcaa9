"""Cuts a network behind its frozen trunk, so that the trunk's outputs can be computed once and kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
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

    Args:
        network: a network of pictures, of which a part is frozen (`freeze_all_but`).

    Raises:
        ValueError: its first part is trained, or its parts do not follow each other one by one, so that it cannot be
            cut there.
    """
    if network.image_shape is None:
        raise ValueError("only networks of pictures have a trunk")
    names = []
    for name, part in parts(network.featurizer):
        if any(p.requires_grad for p in part.parameters()):
            break
        names.append(name)
    if not any(True for name in names for _ in network.featurizer.get_submodule(name).parameters()):
        raise ValueError("nothing of its beginning is frozen")
    trunk = Trunk(network.featurizer, tuple(names))
    whole = len(names) == len(list(parts(network.featurizer)))
    rest = copy.copy(network)
    rest._modules = {
        **network._modules,
        "featurizer": nn.Identity() if whole else _without(network.featurizer, lambda name: name in names),
    }
    rest.image_shape = None
    return Cut(network, trunk, rest, _checked(network, trunk, rest))


def _without(module: nn.Module, dropped: Callable[[str], bool], prefix: str = "") -> nn.Module:
    """Return a copy of a module that shares its weights, in which some parts pass their input on."""
    copied = copy.copy(module)
    copied._modules = dict(module._modules)
    for name, child in module.named_children():
        if dropped(prefix + name):
            copied._modules[name] = nn.Identity()
        elif isinstance(child, (nn.Sequential, nn.ModuleList)):
            copied._modules[name] = _without(child, dropped, f"{prefix}{name}.")
    return copied


@torch.no_grad()
def _checked(network: Network, trunk: Trunk, rest: Network) -> tuple[int, ...]:
    """Return the shape of one output of the trunk, after comparing both parts with the network on a random picture."""
    assert network.image_shape is not None  # noqa: S101  (checked by the caller)
    device = next(network.parameters()).device
    picture = torch.rand(1, *network.image_shape, generator=torch.Generator().manual_seed(0)).to(device)
    training = network.training
    network.eval()
    try:
        expected = network.featurizer(picture)
        inner = trunk(picture)
        found = rest.featurizer(inner)
    except (RuntimeError, TypeError, AttributeError, ValueError, IndexError):
        found = None
    finally:
        network.train(training)
    if not isinstance(found, Tensor) or found.shape != expected.shape or not torch.equal(found, expected):
        raise ValueError(
            f"its parts do not follow each other one by one, so that it cannot be cut behind {trunk.names[-1]}"
        )
    return tuple(inner.shape[1:])


class _ReachedError(Exception):
    """The trunk's last part has run."""
