"""The tables of a study as LaTeX."""

from __future__ import annotations

import re

from shiftproof.base.text import one_line
from shiftproof.studies import Results
from shiftproof.tables.blocks import Block, Entry, blocks
from shiftproof.tables.marks import MARK_NOTE
from shiftproof.tables.markup import latex


def as_latex(results: Results, rule: str | None = None, baseline: str | None = None) -> str:
    r"""Return the tables of a study as LaTeX (packages booktabs and graphicx), with captions, labels, notes and terms.

    Bold is the best of a column that its interval tells apart from every other. The arguments are those of `as_text`.
    """
    found = [block for block in blocks(results, rule, baseline) if block.name != "terms"]
    labels: list[str] = []
    for block in found:
        label = re.sub(r"[^A-Za-z0-9]+", "-", block.name).strip("-").lower()
        while label in labels:
            label += "-"
        labels.append(label)
    parts = [
        _table(block, label) if block.rows else _comment(block) for block, label in zip(found, labels, strict=True)
    ]
    return "\n\n".join([r"% needs \usepackage{booktabs, graphicx}", *parts])


def _table(block: Block, label: str) -> str:
    notes = [MARK_NOTE, *block.notes] if block.marked else list(block.notes)
    if block.terms:
        notes += ["± is the standard error over trials." if "±" in _texts(block) else "", f"Terms: {block.terms}."]
    alignment = ["l", *map(_alignment, list(zip(*block.rows, strict=True))[1:])]
    lines = [
        r"\begin{table}[tb]",
        r"\centering",
        rf"\caption{{{latex(block.title)}.}}",
        rf"\label{{tab:{label}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%  no wider than the text",
        rf"\begin{{tabular}}{{{''.join(alignment)}}}",
        r"\toprule",
        " & ".join(map(latex, block.head)) + r" \\",
        r"\midrule",
        *(" & ".join(map(_entry, row)) + r" \\" for row in block.rows),
        r"\bottomrule",
        r"\end{tabular}}",
    ]
    if notes:
        said = " ".join(latex(note) for note in notes if note)
        lines.append(rf"\par\smallskip\parbox{{\linewidth}}{{\footnotesize {said}}}")
    return "\n".join([*lines, r"\end{table}"])


def _comment(block: Block) -> str:
    return "\n".join(f"% {one_line(line)}" for line in [block.title, *block.notes])


def _entry(entry: Entry) -> str:
    text = "--" if entry.text == "-" else latex(entry.text)
    return rf"\textbf{{{text}}}" if entry.best else text


def _alignment(column: tuple[Entry, ...]) -> str:
    """Return "l" for words and "r" for numbers."""
    return "l" if all(entry.text[:1].isalpha() for entry in column) else "r"


def _texts(block: Block) -> str:
    return " ".join(entry.text for row in block.rows for entry in row)
