"""The method that a run is trained with, and its name in tables."""

from __future__ import annotations

from typing import NamedTuple


class Method(NamedTuple):
    """A method, as the rows of a table compare them."""

    algorithm: str
    optimizer: str
    annealer: str = "none"
    variant: str = ""

    def __str__(self) -> str:
        name = " + ".join(part for part in self[:3] if part != "none")
        return f"{name}, {self.variant}" if self.variant else name
