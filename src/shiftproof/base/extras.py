"""Import libraries of optional extras only when they are needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def require(module: str, extra: str, title: str | None = None) -> Any:
    """Import a module of an extra.

    Args:
        module: name of the module.
        extra: name of the extra that installs it.
        title: name of the library for the error message; None for the module's own.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        name = title or module.partition(".")[0]
        raise ValueError(f"{name} is not installed: pip install 'shiftproof[{extra}]'") from error
