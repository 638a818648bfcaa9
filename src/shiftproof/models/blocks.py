"""The blocks of a featurizer: what fine-tuning freezes, or trains, from the first to the last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn


class Block(NamedTuple):
    """Consecutive parts of a featurizer.

    Attributes:
        name: name of its first part.
        parts: names of its parts, which are modules of the featurizer.
    """

    name: str
    parts: tuple[str, ...]


def parts(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield a module's children by name, the contents of a `Sequential` or `ModuleList` in its place."""
    for name, child in module.named_children():
        if isinstance(child, (nn.Sequential, nn.ModuleList)) and len(child):
            yield from parts(child, f"{prefix}{name}.")
        else:
            yield prefix + name, child


def blocks(featurizer: nn.Module) -> list[Block]:
    """Return a featurizer's blocks in the order of its parts; the first is the stem, if that has parameters.

    A block begins with each part that is made of modules and has weights of two or more dimensions: a residual block, a
    Fire module, a transformer's layer. If there is none, it begins with each layer that has such weights.
    """
    everything = list(parts(featurizer))
    weighted = [name for name, part in everything if any(p.ndim > 1 for p in part.parameters())]
    composed = [name for name, part in everything if name in weighted and any(True for _ in part.children())]
    begins = set(composed or weighted)
    found: list[list[str]] = []
    stem: list[str] = []
    for name, _ in everything:
        if name in begins:
            found.append([name])
        else:
            (found[-1] if found else stem).append(name)
    if found and stem:
        if any(True for name in stem for _ in featurizer.get_submodule(name).parameters()):
            found.insert(0, stem)
        else:
            found[0] = stem + found[0]
    return [Block(block[0], tuple(block)) for block in found]
