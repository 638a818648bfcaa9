"""Values of a table among texts that are known: a model's categories, or its classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


class KnownTexts:
    """Finds values among known texts: as texts, and if that finds none as numbers, because 1.0 is 1.

    Args:
        texts: the known texts.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._by_text = {text: place for place, text in enumerate(texts)}
        known = [(number_of(text), place) for text, place in self._by_text.items()]
        self._by_number = {number: place for number, place in known if number is not None}

    def place(self, value: Any) -> int | None:
        """Return where a value is among the texts; None if it is not."""
        place = self._by_text.get(str(value))
        if place is None and (number := number_of(value)) is not None:
            place = self._by_number.get(number)
        return place


def number_of(value: Any) -> float | None:
    """Return a value as a number, NaN if it is missing; None if it is no number."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return math.nan
    if isinstance(value, str) and "_" in value:  # Python alone takes 1_0 for a number; training's reader does not
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None
