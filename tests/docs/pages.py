"""The pages of the docs: their code blocks, their commands and their prose."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from sybil import Document, Example, Region
from sybil.evaluators.doctest import DocTestEvaluator
from sybil.parsers.abstract import DocTestStringParser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FENCED = re.compile(
    r"(?:^<!-- not run: (?P<reason>.*?) -->\n\n?)?"
    r"^(?P<indent> *)```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
COMMAND = re.compile(r"^ *(?:\$ )?(shiftproof .*(?:(?<=\\)\n.*)*)", re.MULTILINE)
_VARIABLE = re.compile(r'^ *([A-Z]+)="([^"]*)"$', re.MULTILINE)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_TABLE = re.compile(r"^ *\|.*\n?", re.MULTILINE)
_INDENTED = re.compile(r"(?:(?<=\n\n)|\A)(?: {4}.*\n+)+")


def name(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def python_blocks(document: Document) -> Iterator[Region]:
    """Yield the blocks of Python that have no reason not to run. A block with a title is written to that file too."""
    for block in FENCED.finditer(document.text):
        if block["reason"]:
            continue
        start, end = block.span("text")
        if block["language"] == "pycon":
            for region in DocTestStringParser(DocTestEvaluator())(block["text"], document.path):
                region.start, region.end = region.start + start, region.end + start
                yield region
        elif block["language"] == "python":
            yield Region(start, end, (block["title"], block["text"]), _run)


def _run(example: Example) -> None:
    title, text = example.parsed
    if title:
        Path(title).write_text(text, encoding="utf-8")
    compiled = compile("\n" * (example.line - 1) + text, example.path, "exec", flags=0, dont_inherit=True)
    exec(compiled, example.namespace)  # noqa: S102


def commands(text: str) -> Iterator[list[str]]:
    """Yield the arguments of each command in the blocks of a page: of its lines that begin with "shiftproof".

    What a synopsis has in brackets is left out.
    """
    code = "".join(block["text"] for block in FENCED.finditer(text)) + "".join(_INDENTED.findall(FENCED.sub("", text)))
    for variable, value in _VARIABLE.findall(code):
        code = code.replace(f"${variable}", value)
    for found in COMMAND.finditer(code):
        line = re.sub(r"\[.*?\]", "", found[1].replace("\\\n", " "))
        words = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        words.whitespace_split = True
        _, *arguments = words
        ends = [number for number, word in enumerate(arguments) if set(word) <= set("|&;<>")]
        yield arguments[: ends[0]] if ends else arguments


def words_of_prose(text: str) -> int:
    """Return the number of words of a page, without code blocks, tables and comments."""
    for left_out in (_COMMENT, FENCED, _INDENTED, _TABLE):
        text = left_out.sub("", text)
    return len(text.split())


def exported(file: Path) -> list[str]:
    """Return the names in a file's `__all__`."""
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=names):
                return list(ast.literal_eval(names))
    return []
