"""A Markdown extension for docstrings: `:math:` and `.. math::` become MathML, which browsers draw by themselves."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor

_DISPLAY = re.compile(r"^( *)\.\. math::[ \t]*(.*(?:\n(?:\1[ \t]+.*|[ \t]*(?=\n\1[ \t]+)))*)", re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]*)`")


class _Math(Preprocessor):  # type: ignore[misc]
    def run(self, lines: list[str]) -> list[str]:
        """Replace formulas by places of the stash of HTML, which Markdown leaves alone."""
        text = _DISPLAY.sub(self._display, "\n".join(lines))
        return _INLINE.sub(
            lambda found: self._stash(f'<span class="formula">{_mathml(found[1], "inline")}</span>'), text
        ).split("\n")

    def _display(self, found: re.Match[str]) -> str:
        formula = textwrap.dedent(found[2]).strip()
        return found[1] + self._stash(f'<div class="math">{_mathml(formula, "block")}</div>')

    def _stash(self, html: str) -> str:
        place: str = self.md.htmlStash.store(html)
        return place


def _mathml(formula: str, display: str) -> str:
    """Return a formula in MathML; several lines are aligned at each `&`."""
    if r"\\" in formula or "&" in formula:
        formula = rf"\begin{{align*}}{formula}\end{{align*}}"
    formula = formula.replace(r"\operatorname{", r"\text{")  # which the converter sets upright, as the former is meant
    mathml: str = convert(" ".join(formula.split()), display=display)
    return mathml


class MathExtension(Extension):  # type: ignore[misc]
    """Draws the formulas of docstrings."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802  (Markdown's name)
        """Run before the other preprocessors but the one that normalises whitespace."""
        md.preprocessors.register(_Math(md), "rst_math", 29)


def makeExtension(**options: Any) -> MathExtension:  # noqa: N802  (Markdown's name)
    """Return the extension, as Markdown asks for it."""
    return MathExtension(**options)
