"""Which part of a network is trained: all of it, its head, its last blocks, or what a pattern names."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

from shiftproof.base.field_error import FieldError
from shiftproof.base.registry import did_you_mean
from shiftproof.models.blocks import Block, blocks, parts
from shiftproof.models.network import Network

ALL = "all"
HEAD = "head"
_BLOCKS = "blocks:"


def check_trained(trained: str) -> None:
    """Check how the part to train is written.

    Raises:
        FieldError: the number of blocks is not a whole number above 0.
    """
    if trained.startswith(_BLOCKS):
        number = trained.removeprefix(_BLOCKS)
        if not number.isdecimal() or int(number) < 1:
            raise FieldError("trained", f"blocks must be a whole number above 0, as in blocks:1, not {number!r}")
    elif not trained:
        raise FieldError("trained", "what to train must be all, head, blocks:N or a pattern of names, not nothing")


def freeze_all_but(network: Network, trained: str) -> None:
    """Freeze a network but for its classifier and a part of its featurizer.

    What is frozen keeps its weights and its batch norms' statistics, and stays in evaluation mode, without dropout.

    Args:
        network: the network.
        trained: "all" freezes nothing. "head" freezes the featurizer. "blocks:N" trains its last N `blocks`. Anything
            else is a pattern, as of file names, of the names of its modules and parameters: "layer4", "*.bn*".

    Raises:
        FieldError: there are not that many blocks, the pattern matches nothing, or nothing would be frozen.
    """
    check_trained(trained)
    if trained == ALL:
        return
    featurizer = network.featurizer
    names = _trained_names(featurizer, trained)
    if len(names) == len(list(featurizer.parameters())):
        raise FieldError("trained", f"{trained} is the whole network: train all")
    for name, parameter in featurizer.named_parameters():
        parameter.requires_grad_(name in names)
    network.frozen = _frozen(featurizer)
    network.train(network.training)


def _trained_names(featurizer: nn.Module, trained: str) -> set[str]:
    names = {name for name, _ in featurizer.named_parameters()}
    if trained == HEAD:
        return set()
    known = blocks(featurizer)
    if not trained.startswith(_BLOCKS):
        matched = {name for name in names if _matches(name, trained)}
        if not matched:
            near = did_you_mean(trained, [block.name for block in known])
            raise FieldError("trained", f"no module or parameter is called {trained}.{near} {_listed(known)}")
        return matched
    number = int(trained.removeprefix(_BLOCKS))
    if number > len(known):
        raise FieldError("trained", f"there are not {number} blocks. {_listed(known)}")
    wanted = [f"{part}." for block in known[-number:] for part in block.parts]
    return {name for name in names if name.startswith(tuple(wanted))}


def _matches(name: str, pattern: str) -> bool:
    """Return whether a pattern matches a parameter's name or that of a module that it is in."""
    steps = name.split(".")
    return any(fnmatchcase(".".join(steps[:i]), pattern) for i in range(1, len(steps) + 1))


def _frozen(featurizer: nn.Module) -> tuple[nn.Module, ...]:
    """Return the modules in which nothing trains: those before the first that does, and all that have parameters."""
    if not _trains(featurizer):
        return (featurizer,)
    found: list[nn.Module] = []
    begun = False
    for _, part in parts(featurizer):
        if _trains(part):
            begun = True
            found += [module for module in part.modules() if _has_parameters(module) and not _trains(module)]
        elif not begun or _has_parameters(part):
            found.append(part)
    return tuple(found)


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _listed(known: list[Block]) -> str:
    return f"Its blocks are {', '.join(block.name for block in known) or 'none'}"
