"""Texts of others, such as names of folders, for a terminal."""

from __future__ import annotations


def one_line(text: str) -> str:
    """Return a text without line breaks, with unprintable characters escaped."""
    return "".join(c if c.isprintable() else _unprintable(c) for c in text)


def _unprintable(character: str) -> str:
    return " " if character.isspace() else character.encode("unicode_escape").decode()
