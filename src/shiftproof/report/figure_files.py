"""The folder of figures beside the page, and images embedded in the page itself."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from shiftproof.base.files import write_bytes

FIGURES_FOLDER = "figures"


@dataclass(frozen=True)
class FigureFiles:
    """The files of one part of the page.

    Attributes:
        output: the folder of the page.
        prefix: beginning of their names, which distinguishes the data sets of a study.
    """

    output: Path
    prefix: str = ""

    def name(self, figure: str, suffix: str) -> str:
        """Return a file's name, relative to the page."""
        return f"{FIGURES_FOLDER}/{self.prefix}{figure}.{suffix}"

    def write(self, figure: str, contents: dict[str, bytes]) -> None:
        """Write the files of a figure, by suffix."""
        (self.output / FIGURES_FOLDER).mkdir(parents=True, exist_ok=True)
        for suffix, content in contents.items():
            write_bytes(self.output / self.name(figure, suffix), content)


def embedded(content: bytes, kind: str = "image/svg+xml") -> str:
    """Return an image, or a file of another MIME type, as a data URL."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def embedded_csv(content: bytes) -> str:
    """Return a table of numbers as a data URL."""
    return embedded(content, "text/csv")
