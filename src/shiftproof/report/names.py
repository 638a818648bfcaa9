"""Safe names for parts of file names and of a page's ids."""

from __future__ import annotations

import re
from collections.abc import Sequence

LENGTH = 60


def safe_names(names: Sequence[str]) -> list[str]:
    """Return names of ASCII letters, digits, ".", "-" and "_" that are distinct even if case is ignored."""
    found: list[str] = []
    for name in names:
        safe = re.sub(r"[^A-Za-z0-9.-]+", "_", name[:LENGTH]).strip("._") or "data"
        while safe.lower() in map(str.lower, found):
            safe += "_"
        found.append(safe)
    return found
