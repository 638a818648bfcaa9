"""Measured figures and the goals beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Goal:
    """What a figure should reach.

    Attributes:
        limit: in the figure's unit.
        at_least: whether the figure should reach it; else it should not exceed it.
        required: whether the check has failed if it does not: what is right must be, what is fast should be.
    """

    limit: float
    at_least: bool = False
    required: bool = False

    def met(self, value: float) -> bool:
        """Return whether a value keeps the goal; one that is no number does not."""
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"at {'least' if self.at_least else 'most'} {self.limit:g}"


class Figure:
    """A number with a name.

    Attributes:
        name: what was measured.
        value: as it is shown, to four digits: what is judged is what is read.
        unit: of the value and of the goal; may be empty.
        goal: None where there is none.
    """

    def __init__(self, name: str, value: float, unit: str = "", goal: Goal | None = None) -> None:
        self.name, self.unit, self.goal = name, unit, goal
        self.value = float(f"{value:.4g}")

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where there is none."""
        return None if self.goal is None else self.goal.met(self.value)

    def as_json(self) -> dict[str, Any]:
        """Return what JSON can hold; the value is None if it is not finite."""
        value = self.value if math.isfinite(self.value) else None
        goal = None if self.goal is None else str(self.goal)
        return {"name": self.name, "value": value, "unit": self.unit, "goal": goal, "met": self.met}
