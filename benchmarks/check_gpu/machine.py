"""Write what a machine is, as JSON: `python -m benchmarks.check_gpu.machine DEVICE FILE`."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

import torch

from shiftproof import __version__
from shiftproof.base.files import write_json


def describe(device: str) -> dict[str, Any]:
    """Return the device and the versions that results depend on; None for what is not there."""
    cuda = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "torch": torch.__version__,
        "Triton": _triton_version(),
        "CUDA": torch.version.cuda if cuda else None,
        "Python": platform.python_version(),
        "shiftproof": __version__,
    }


def _triton_version() -> str | None:
    try:
        import triton  # type: ignore[import-untyped]
    except ImportError:
        return None
    return str(triton.__version__)


if __name__ == "__main__":
    where, file = sys.argv[1:]
    if where == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no NVIDIA GPU here; make check-gpu DRY=1 tries the checks on the CPU")
    write_json(Path(file), describe(where))
