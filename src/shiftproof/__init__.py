"""shiftproof: train models that hold up on domains they have never seen, and compare training methods fairly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shiftproof.base.plugins import import_plugins
    from shiftproof.training import load

__version__ = "0.1.0"
__all__ = ["__version__", "import_plugins", "load"]


def __getattr__(name: str) -> Any:
    # `load` needs the extra [bench]; importing shiftproof.optim must not.
    if name == "load":
        from shiftproof.training import load

        return load
    if name == "import_plugins":
        from shiftproof.base.plugins import import_plugins

        return import_plugins
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
