"""How the values of a measure are written: accuracies in per cent, others in their own unit."""

from __future__ import annotations

from typing import NamedTuple

from shiftproof.protocol.measures import MEASURES


class Unit(NamedTuple):
    """How the values of a measure are written.

    Attributes:
        metric: name of the measure.
        scale: what a value is multiplied by.
        decimals: digits behind the point.
        sign: 1 if a greater value is better, -1 if a smaller one is.

    Examples:
        >>> from shiftproof.protocol import Unit
        >>> Unit().text(0.8125), Unit().signed(-0.02), Unit().with_unit(0.5)
        ('81.2', '-2.0', '50.0 %')
        >>> Unit.of("rmse", greatest=20.0).with_unit(20.3)
        'rmse 20.30'
    """

    metric: str = "accuracy"
    scale: float = 100.0
    decimals: int = 1
    sign: int = 1

    @classmethod
    def of(cls, metric: str, greatest: float = 0.0) -> Unit:
        """Return the unit of a measure.

        Args:
            metric: its name.
            greatest: the greatest of the values that are written together.
        """
        measure = MEASURES[metric]
        sign = 1 if measure.greater_is_better else -1
        if measure.percent:
            return cls(metric, 100.0, 1, sign)
        return cls(metric, 1.0, 3 if abs(greatest) < 10 else 2 if abs(greatest) < 100 else 1, sign)

    @property
    def percent(self) -> bool:
        """Whether values are written in per cent."""
        return self.scale == 100

    @property
    def step(self) -> str:
        """What differences are in."""
        return "points" if self.percent else self.metric

    def text(self, value: float) -> str:
        """Write a value, without its unit."""
        return f"{self.scale * value:.{self.decimals}f}"

    def signed(self, value: float) -> str:
        """Write a difference."""
        return f"{self.scale * value:+.{self.decimals}f}"

    def with_unit(self, value: float | None) -> str:
        """Write a value with its unit, as in "81.3 %" or "rmse 20.3"; "undefined" for None."""
        if value is None:
            return f"{self.metric} undefined"
        return f"{self.text(value)} %" if self.metric == "accuracy" else f"{self.metric} {self.text(value)}"
