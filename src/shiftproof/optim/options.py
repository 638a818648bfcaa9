"""Options of optimizers: numbers as Python has them, and what an older optimizer did not have yet."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with NumPy's numbers as Python's, also in tuples, so that checkpoints hold no NumPy objects."""
    return {name: _plain(value) for name, value in options.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


def constructor_defaults(cls: type) -> dict[str, Any]:
    """Return the arguments of a class that have defaults, with these.

    An optimizer that was pickled before an option was added takes it from here.
    """
    parameters = inspect.signature(cls).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}
