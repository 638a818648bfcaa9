"""Escaping of names and numbers for Markdown and for LaTeX."""

from __future__ import annotations

import re

from shiftproof.base.text import one_line

_MARKDOWN = re.compile(
    r"[\\`*|~$]"
    r"|(?<![^\W_])_|_(?![^\W_])"  # within a word, an underscore needs no escape
    r"|](?=[(\[:])"  # the end of a link's text
)
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_ENTITY = re.compile(r"&(?=#?\w+;)")


def markdown(text: str) -> str:
    """Escape a text for Markdown, including its tables."""
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


_MINUS = re.compile(r"(?<![\w.])-(?=\d)")


def latex(text: str) -> str:
    r"""Escape a text for LaTeX, with a minus before negative numbers.

    Examples:
        >>> print(latex("ib_erm: -3.2 %"))
        ib\_erm: $-$3.2 \%
    """
    escaped = "".join(_LATEX.get(character, character) for character in one_line(text))
    return _MINUS.sub("$-$", escaped)
