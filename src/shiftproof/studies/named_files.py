"""The studies that travel with the package, by name."""

from __future__ import annotations

from pathlib import Path

from shiftproof.base.registry import UnknownNameError

_FOLDER = Path(__file__).with_name("named")


def named_studies() -> dict[str, Path]:
    """Return the files of the named studies, by name.

    Examples:
        >>> from shiftproof.studies import named_studies
        >>> "optimizers" in named_studies()
        True
    """
    return {file.stem: file for file in sorted(_FOLDER.glob("*.yaml"))}


def study_path(text: str) -> Path:
    """Return the file of a study that is given by its name or its path.

    Raises:
        UnknownNameError: it looks like a name, and there is neither such a study nor such a file.
    """
    path, named = Path(text), named_studies()
    if text in named and not path.is_file():
        return named[text]
    if "/" not in text and not path.suffix and not path.exists():
        raise UnknownNameError("study", text, list(named))
    if not path.exists() and path == Path("studies", f"{path.stem}.yaml") and path.stem in named:
        return named[path.stem]  # as in a clone of version 0.1
    return path


def study_summary(file: Path) -> str:
    """Return the first sentence of the comment that a study file begins with."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or not line.strip("# "):
            break
        lines.append(line.strip("# "))
    return f"{' '.join(lines).partition('. ')[0].removesuffix('.')}."
