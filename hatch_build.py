"""Builds the wheel: with the compiled CPU kernel where torch and a compiler are at hand, else without.

Build isolation leaves torch out, so that installing from source brings no second one; the kernel is then compiled at
its first use. Wheels for others are built with `python -m build --wheel --no-isolation`, or by cibuildwheel.
"""

import platform
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNEL = "shiftproof/optim/genie/kernel/genie_kernel.so"


class KernelBuildHook(BuildHookInterface[Any]):
    """Compiles the kernel into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the kernel to what is built, and the platform to its name."""
        if version == "editable" or find_spec("torch") is None:
            return
        sys.path.insert(0, str(Path(self.root) / "src"))
        from shiftproof.optim.genie.build import KernelError, compile_kernel

        target = self._folder / Path(KERNEL).name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            compile_kernel(target)
        except KernelError as error:
            self.app.display_warning(f"the wheel has no compiled kernel: {error}")
            return
        build_data["force_include"][str(target)] = KERNEL
        build_data["pure_python"] = False
        # a Python for both kinds of Mac compiles for the one that it runs on
        system = sysconfig.get_platform().replace("universal2", platform.machine())
        build_data["tag"] = "py3-none-" + system.replace("-", "_").replace(".", "_")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the kernel that the wheel now holds."""
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _folder(self) -> Path:
        return Path(self.directory) / "kernel"
