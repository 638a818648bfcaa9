"""The method that a run is trained with, and its name in tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from shiftproof.base.choices import Averaging, Combination


class Method(NamedTuple):
    """A method, as the rows of a table compare them."""

    algorithm: str
    optimizer: str
    annealer: str = "none"
    variant: str = ""
    averaging: Averaging | Combination = "none"

    def __str__(self) -> str:
        parts = (self.algorithm, self.optimizer, self.annealer, self.averaging)
        name = " + ".join(part for part in parts if part != "none")
        return f"{name}, {self.variant}" if self.variant else name


def find_method(name: str, methods: Sequence[Method]) -> Method | None:
    """Return the method that a text names, written as in tables; None if there is none.

    The averaging may be left out, as before it was part of the name: of several averagings the first is meant then,
    unless one of them is "none".
    """
    exact = [method for method in methods if str(method) == name]
    of_any_averaging = [method for method in methods if str(method._replace(averaging="none")) == name]
    return next(iter(exact + of_any_averaging), None)
