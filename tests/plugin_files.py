"""The examples of docs/how_to/extending.md as files, and a way to forget what a plug-in registered."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shiftproof.base import plugins
from shiftproof.base.registry import Registry

_GUIDE = Path(__file__).parents[1] / "docs" / "how_to" / "extending.md"


def write_examples(folder: Path) -> dict[str, Path]:
    """Write the guide's example plug-ins into a folder; return the files by the name that each registers."""
    blocks = re.findall(r'```python title="(\w+)\.py"\n(.*?)```', _GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    for name, text in blocks:
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.py" for name, _ in blocks}


@contextmanager
def forgotten() -> Iterator[None]:
    """Forget at the end which plug-ins were imported inside, and what they registered."""
    entries = {registry: dict.fromkeys(registry) for registry in Registry.every}
    imported, owners, modules = dict(plugins._imported), dict(plugins._owners), set(sys.modules)
    try:
        yield
    finally:
        for registry in list(Registry.every):
            for name in [name for name in registry if name not in entries.get(registry, registry)]:
                registry.withdraw(name)
        for held, before in ((plugins._imported, imported), (plugins._owners, owners)):
            held.clear()
            held.update(before)
        for name in set(sys.modules) - modules:
            if name.startswith(("shiftproof_plugin_", "guest")):
                del sys.modules[name]
