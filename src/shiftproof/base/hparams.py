"""Hyperparameters: defaults, search distributions, and checks of values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shiftproof.base.field_error import FieldError

if TYPE_CHECKING:
    import numpy as np

Value = bool | int | float | str
Distribution = Callable[["np.random.RandomState"], Value]


@dataclass(frozen=True)
class Described:
    """A distribution that says what it draws.

    Attributes:
        text: its values, as in "0.001 to 0.1, log-uniform".
        function: draws one of them.
    """

    text: str
    function: Distribution

    def __call__(self, random: np.random.RandomState) -> Value:
        """Draw a value."""
        return self.function(random)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Hparam:
    """One hyperparameter.

    Attributes:
        default: its value in setting 0 of every search.
        draw: the search distribution; None keeps the default in every setting.
        seed_name: the name that seeds its draws, if DomainBed uses another name for it.
        published_draw: the distribution behind DomainBed's published table, if it differs; used to repeat its draws.
        in_dialects: its defaults in the dialects of the protocol that have another, by the dialect's name.
        later: whether runs record it only if it differs from the default, so that runs made before it existed keep
            their names.
        relative_to: a hyperparameter as "axis.name", from whose distribution it is drawn and by whose value the draw is
            divided. With a ``draw`` of its own, it is the ratio to that one's default that is drawn, which in the
            dialects of published code is divided by that one's value over its default: there the two are drawn
            independently of each other. None for a ``draw`` of its own alone.
        redrawn_as: the name by which DomainBed draws it once more, for algorithms with rates of their own; its dialects
            take that draw.

    Raises:
        ValueError: a default is no number, truth value or word, or a distribution is no function.

    Examples:
        >>> from shiftproof.hparams import Hparam, log10_uniform
        >>> weight = Hparam(0.1, log10_uniform(-2, 0))
        >>> weight.default, str(weight.draw)
        (0.1, '0.01 to 1, log-uniform')
    """

    default: Value
    draw: Distribution | None = None
    seed_name: str | None = None
    published_draw: Distribution | None = None
    in_dialects: Mapping[str, Value] = field(default_factory=dict)
    later: bool = False
    relative_to: str | None = None
    redrawn_as: str | None = None

    def __post_init__(self) -> None:
        for default in (self.default, *self.in_dialects.values()):
            if not isinstance(default, (bool, int, float, str)):
                raise ValueError(  # noqa: TRY004
                    f"the default of a hyperparameter must be a number, true, false or a word, not {default!r}"
                )
        for dialect, default in self.in_dialects.items():
            check_value(f"the default in {dialect}", default, self.default)
        for draw in (self.draw, self.published_draw):
            if draw is not None and not callable(draw):
                raise ValueError(f"what a search draws must be a function, as choice(0.1, 0.2) returns, not {draw!r}")

    def default_in(self, dialect: str) -> Value:
        """Return its default in a dialect of the protocol."""
        return self.in_dialects.get(dialect, self.default)

    @property
    def range(self) -> str:
        """What a search draws, in words; empty if it keeps the default."""
        if self.relative_to is not None and self.draw is None:
            return f"a rate of its own from the range of {self.relative_to}, divided by that"
        if self.draw is None:
            return ""
        return str(self.draw) if isinstance(self.draw, Described) else "a distribution of its own"


REFERENCE_DIALECTS = ("domainbed", "domainbed-head", "swad")
"""The dialects that follow published code."""


def option(ours: Value, theirs: Value, dialects: Sequence[str] = REFERENCE_DIALECTS) -> Hparam:
    """Return an option that no search draws, by which an algorithm does what published code does.

    Args:
        ours: its default.
        theirs: its default in the dialects that follow such code.
        dialects: names of these dialects.
    """
    return Hparam(ours, in_dialects=dict.fromkeys(dialects, theirs), later=True)


def log10_uniform(low: float, high: float) -> Distribution:
    """Draw 10**x, with x uniform in [low, high)."""
    text = f"{10**low:.3g} to {10**high:.3g}, log-uniform"
    return Described(text, lambda random: float(10 ** random.uniform(low, high)))


def uniform(low: float, high: float) -> Distribution:
    """Draw a number uniformly from [low, high)."""
    return Described(f"{low:g} to {high:g}, uniform", lambda random: float(random.uniform(low, high)))


def log2_int(low: float, high: float) -> Distribution:
    """Draw the integer part of 2**x, with x uniform in [low, high)."""
    text = f"{int(2**low)} to {_last(2**high)}, whole, log-uniform"
    return Described(text, lambda random: int(2 ** random.uniform(low, high)))


def log10_int(low: float, high: float) -> Distribution:
    """Draw the integer part of 10**x, with x uniform in [low, high)."""
    text = f"{int(10**low)} to {_last(10**high)}, whole, log-uniform"
    return Described(text, lambda random: int(10 ** random.uniform(low, high)))


def uniform_int(low: float, high: float) -> Distribution:
    """Draw the integer part of a number uniform in [low, high)."""
    return Described(f"{int(low)} to {_last(high)}, whole, uniform", lambda random: int(random.uniform(low, high)))


def _last(high: float) -> int:
    """Return the largest integer part of a number below ``high``."""
    return math.ceil(high) - 1 if high > 0 else int(high)


def choice(*values: Value) -> Distribution:
    """Draw one of the values, all with equal probability."""
    # DomainBed draws with RandomState.choice; drawing the index instead keeps the values' own Python types.
    text = f"one of {', '.join(map(str, values))}"
    return Described(text, lambda random: values[int(random.choice(len(values)))])


def unused(distribution: Distribution, value: Value) -> Distribution:
    """Always return ``value``, but draw from the distribution first, so that the generator advances as usual."""

    def draw_nonetheless(random: np.random.RandomState) -> Value:
        distribution(random)
        return value

    return Described(f"always {value}", draw_nonetheless)


def decades(default: float, width: float = 2.0) -> Distribution:
    """Draw log-uniformly from ``width`` decades centred on the default."""
    centre = math.log10(default)
    return log10_uniform(centre - width / 2, centre + width / 2)


def is_finite(number: float) -> bool:
    """Return whether JSON can hold a number (a run must be recordable): not infinite, NaN or too large for a float."""
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def check_hparams(what: str, hparams: object) -> None:
    """Check that hyperparameters are given by their names.

    Args:
        what: whose they are, for the error.
        hparams: what must be a mapping from names to `Hparam`.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(hparams, Mapping):
        raise ValueError(f'{what} must be a mapping, as in {{"tilt": Hparam(1.0)}}, not {hparams!r}')  # noqa: TRY004
    for name, hparam in hparams.items():
        if not isinstance(name, str) or not isinstance(hparam, Hparam):
            raise ValueError(  # noqa: TRY004
                f'{what} must hold an Hparam for every name, as in {{"tilt": Hparam(1.0)}}, not {name!r}: {hparam!r}'
            )


def check_value(name: str, value: object, like: Value) -> None:
    """Check that a value is valid for a hyperparameter.

    Args:
        name: name of the hyperparameter, for the error.
        value: the value; it must be of the default's type, except that an int is accepted for a float.
        like: the hyperparameter's default.

    Raises:
        FieldError: the value is of another type, or a number that is not finite.
    """
    kinds = (int, float) if isinstance(like, float) else (type(like),)
    if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(like, bool):
        raise FieldError(name, f"{name} must be {_KINDS[type(like)]}, not {value!r}")
    if isinstance(value, (int, float)) and not is_finite(value):
        raise FieldError(name, f"{name} must be a finite number, not {value!r}")


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


def parse_value(text: str) -> Value:
    """Return a text as a number or truth value if it reads as one, and unchanged otherwise."""
    for parse in (int, float, parse_truth):
        try:
            return parse(text)
        except ValueError:
            continue
    return text


def parse_truth(text: str) -> bool:
    """Parse "true" or "false", in upper or lower case.

    Raises:
        ValueError: the text is neither.
    """
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"
