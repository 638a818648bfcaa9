"""What a run is trained with, and how people call it."""

from __future__ import annotations

from typing import NamedTuple


class Method(NamedTuple):
    """What a table compares: a row of it."""

    algorithm: str
    optimizer: str
    annealer: str = "none"
    variant: str = ""

    def __str__(self) -> str:
        name = " + ".join(part for part in self[:3] if part != "none")
        return f"{name}, {self.variant}" if self.variant else name
