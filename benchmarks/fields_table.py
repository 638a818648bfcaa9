"""Writes the tables of docs/reference/study_fields.md between its markers: `python -m benchmarks.fields_table`."""

from __future__ import annotations

from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from shiftproof.studies import Study
from shiftproof.studies.field_info import (
    FIGURES,
    GROUPS,
    default_of,
    default_text,
    info_of,
    option_names,
)

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "study_fields.md"
BEGIN = "<!-- fields: written by `python -m benchmarks.fields_table` -->"
END = "<!-- end of fields -->"
HEADER = (
    "| Field | Option | Default | What it is | In tables | Commands |",
    "|---|---|---|---|---|---|",
)


def tables() -> str:
    """Return a heading and a table of each group of fields."""
    parts = []
    for group in GROUPS:
        rows = [_row(declared) for declared in fields(Study) if info_of(declared).group == group]
        parts.append("\n".join([f"## {group.capitalize()}", "", *HEADER, *rows]))
    return "\n\n".join(parts)


def _row(declared: Field[Any]) -> str:
    info = info_of(declared)
    options = dict.fromkeys([*option_names(declared), *([info.one.option] if info.one else [])])
    cells = (
        f"`{declared.name}`",
        " ".join(f"`{option}`" for option in options),
        default_text(default_of(declared), info.none),
        info.help,
        info.term.label if info.term else "",
        ", ".join(_commands([*info.commands, *(info.one.commands if info.one else ())])),
    )
    return "| " + " | ".join(cells) + " |"


def _commands(names: list[str]) -> list[str]:
    """Return the names of commands, "figure" for all figures."""
    if set(FIGURES) <= set(names):
        return [*(one for one in names if one not in FIGURES), "figure"]
    return names


def with_tables(page: str) -> str:
    """Return a page with the tables of today between its markers."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
