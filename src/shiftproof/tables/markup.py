"""Names and numbers as text of one line, and as they must stand in Markdown and LaTeX to be read as what they are."""

from __future__ import annotations

import re


def one_line(text: str) -> str:
    """Return a text without line breaks and with escapes in place of what cannot be printed."""
    return "".join(c if c.isprintable() else _unprintable(c) for c in text)


def _unprintable(character: str) -> str:
    return " " if character.isspace() else character.encode("unicode_escape").decode()


_MARKDOWN = re.compile(
    r"[\\`*|~$]"
    r"|(?<![^\W_])_|_(?![^\W_])"  # not within a word, where it is itself
    r"|](?=[(\[:])"  # of a link
)
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_ENTITY = re.compile(r"&(?=#?\w+;)")


def markdown(text: str) -> str:
    """Return a text for Markdown, of tables too, that shows it as it is."""
    escaped = _MARKDOWN.sub(r"\\\g<0>", one_line(text))
    return _TAG.sub("&lt;", _ENTITY.sub("&amp;", escaped))


_LATEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"\textbar{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def latex(text: str) -> str:
    """Return a text for LaTeX that shows it as it is."""
    return "".join(_LATEX.get(character, character) for character in one_line(text))
