"""Hyperparameters: a default, a search distribution, and what values may be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shiftproof.base.field_error import FieldError

if TYPE_CHECKING:
    import numpy as np

Value = bool | int | float | str
Distribution = Callable[["np.random.RandomState"], Value]


@dataclass(frozen=True)
class Hparam:
    """One hyperparameter.

    Attributes:
        default: the value of setting 0 of every search.
        draw: the search distribution; None keeps the default in every setting.
        seed_name: the name that seeds its draws, if DomainBed calls it otherwise.
        published_draw: the distribution of DomainBed's published table, for drawing in its order, if it was another.
    """

    default: Value
    draw: Distribution | None = None
    seed_name: str | None = None
    published_draw: Distribution | None = None


def log10_uniform(low: float, high: float) -> Distribution:
    """10 to a power uniform in [low, high)."""
    return lambda random: float(10 ** random.uniform(low, high))


def uniform(low: float, high: float) -> Distribution:
    """Uniform in [low, high)."""
    return lambda random: float(random.uniform(low, high))


def log2_int(low: float, high: float) -> Distribution:
    """The integer part of 2 to a power uniform in [low, high)."""
    return lambda random: int(2 ** random.uniform(low, high))


def log10_int(low: float, high: float) -> Distribution:
    """The integer part of 10 to a power uniform in [low, high)."""
    return lambda random: int(10 ** random.uniform(low, high))


def uniform_int(low: float, high: float) -> Distribution:
    """The integer part of a number uniform in [low, high)."""
    return lambda random: int(random.uniform(low, high))


def choice(*values: Value) -> Distribution:
    """One of the values, each as likely."""
    # DomainBed draws with RandomState.choice; drawing the index instead keeps the values' own Python types.
    return lambda random: values[int(random.choice(len(values)))]


def unused(distribution: Distribution, value: Value) -> Distribution:
    """``value``, always; the distribution draws nonetheless, and so moves on the generator."""

    def draw_nonetheless(random: np.random.RandomState) -> Value:
        distribution(random)
        return value

    return draw_nonetheless


def decades(default: float, width: float = 2.0) -> Distribution:
    """``width`` decades, log-uniform, centred on the default."""
    centre = math.log10(default)
    return log10_uniform(centre - width / 2, centre + width / 2)


def is_finite(number: float) -> bool:
    """Return whether JSON can hold a number, so that a run can be recorded: no infinity, NaN or beyond a float."""
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def check_value(name: str, value: object, like: Value) -> None:
    """Raise unless a hyperparameter may have a value.

    Args:
        name: how the error calls it.
        value: a whole number will do for a number, nothing else for what it is not.
        like: its default, of the kind that is asked for.

    Raises:
        FieldError: it is of another kind, or a number that is not finite.
    """
    kinds = (int, float) if isinstance(like, float) else (type(like),)
    if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(like, bool):
        raise FieldError(name, f"{name} must be {_KINDS[type(like)]}, not {value!r}")
    if isinstance(value, (int, float)) and not is_finite(value):
        raise FieldError(name, f"{name} must be a finite number, not {value!r}")


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


def parse_value(text: str) -> Value:
    """Return the value that a text is of, a word if it is neither a number nor true or false."""
    for parse in (int, float, parse_truth):
        try:
            return parse(text)
        except ValueError:
            continue
    return text


def parse_truth(text: str) -> bool:
    """Return true or false.

    Raises:
        ValueError: the text is neither, in any case of letters.
    """
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"
