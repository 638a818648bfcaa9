"""Options of optimizers: numbers as Python has them, and what an older optimizer did not have yet."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch.optim import Optimizer


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with NumPy's numbers as Python's, also in tuples, so that checkpoints hold no NumPy objects."""
    return {name: _plain(value) for name, value in options.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


def make_plain(param_group: dict[str, Any]) -> None:
    """Make the options of a group plain, in place.

    Raises:
        TypeError: it is no dictionary.
    """
    if not isinstance(param_group, dict):
        raise TypeError(f"param_group must be a dict, not {type(param_group).__name__}")
    param_group.update(plain(param_group))


def constructor_defaults(optimizer: Optimizer) -> dict[str, Any]:
    """Return the options of an optimizer's class that have defaults, with these.

    An optimizer that was pickled before an option was added takes it from here. Of a class that is derived elsewhere,
    the options are those of ours: what its own constructor takes may be anything.
    """
    package = __name__.partition(".")[0]
    own = next(cls for cls in type(optimizer).__mro__ if cls.__module__.partition(".")[0] == package)
    parameters = inspect.signature(own).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}
