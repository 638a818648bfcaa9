"""The libraries of the extra `data`, imported where they are needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def require(module: str) -> Any:
    """Import a module of the extra `data`.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(f"{module.partition('.')[0]} is not installed: pip install 'shiftproof[data]'") from error
