"""A hook of mkdocs: an entry of the navigation that ends in "/" stands for the pages of a folder of docs/."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig

Entry = str | dict[str, Any]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of folders into the navigation."""
    config.nav = with_folders(config.nav or [], Path(config.docs_dir))
    return config


def with_folders(nav: list[Entry], docs: Path) -> list[Entry]:
    """Return a navigation with each folder replaced by its pages: `index.md` first, the others by their titles.

    Pages that the navigation names itself keep their place. A folder without pages disappears, and so does a section
    that is left without entries.
    """
    named = set(_named(nav))

    def pages(folder: str) -> list[Entry]:
        found = [path for path in (docs / folder).glob("*.md") if path.relative_to(docs).as_posix() not in named]
        found.sort(key=lambda path: (path.name != "index.md", title(path).casefold()))
        return [path.relative_to(docs).as_posix() for path in found]

    def replaced(entries: list[Entry]) -> list[Entry]:
        result: list[Entry] = []
        for entry in entries:
            match entry:
                case str() if entry.endswith("/"):
                    result += pages(entry)
                case str():
                    result.append(entry)
                case dict():
                    [(name, inner)] = entry.items()
                    if isinstance(inner, str) and not inner.endswith("/"):
                        result.append(entry)
                    elif section := replaced(inner if isinstance(inner, list) else [inner]):
                        result.append({name: section})
        return result

    return replaced(nav)


def title(page: Path) -> str:
    """Return the first heading of a page; without one its file's name."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return next((line[2:] for line in lines if line.startswith("# ")), page.stem)


def _named(entries: list[Entry]) -> list[str]:
    """Return the pages that a navigation names."""
    names = []
    for entry in entries:
        for value in [entry] if isinstance(entry, str) else entry.values():
            names += _named(value) if isinstance(value, list) else [str(PurePosixPath(value))]
    return [name for name in names if name.endswith(".md")]
