"""Options of optimizers: plain Python numbers, and defaults for options that an older pickle lacks."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch.optim import Optimizer


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Turn NumPy numbers in options and their tuples into Python's, so that checkpoints hold no NumPy objects."""
    return {name: _plain(value) for name, value in options.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


def make_plain(param_group: dict[str, Any]) -> None:
    """Make the options of a group plain, in place.

    Raises:
        TypeError: the group is not a dictionary.
    """
    if not isinstance(param_group, dict):
        raise TypeError(f"param_group must be a dict, not {type(param_group).__name__}")
    param_group.update(plain(param_group))


def constructor_defaults(optimizer: Optimizer) -> dict[str, Any]:
    """Return the default options of an optimizer's class, by name.

    They fill in options that were added after an optimizer was pickled. For a class derived outside this package, they
    are those of our class that it derives from, because its own constructor may take anything.
    """
    package = __name__.partition(".")[0]
    own = next(cls for cls in type(optimizer).__mro__ if cls.__module__.partition(".")[0] == package)
    parameters = inspect.signature(own).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}
