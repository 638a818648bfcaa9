"""Checks of the options of optimizers and annealers."""

from __future__ import annotations

from numbers import Real

from torch import Tensor


def check_number(name: str, value: object) -> None:
    """Raise ValueError, naming the option, unless its value is a number, NumPy's and tensors included."""
    if not isinstance(value, (Real, Tensor)):
        raise ValueError(f"Invalid {name} value: {value!r}; it must be a number")  # noqa: TRY004  (as out of range)
