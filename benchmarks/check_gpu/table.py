"""The result as a table in Markdown, made from what the JSON holds and nothing else."""

from __future__ import annotations

from typing import Any

from benchmarks.check_gpu.checks import DONE

_MET = {True: "met", False: "**missed**", None: ""}


def markdown(result: dict[str, Any]) -> str:
    """Return the table of a result: every figure beside its goal, then what was not done and why."""
    machine = (f"{name} {value}" for name, value in result["machine"].items() if value is not None)
    lines = [
        f"{', '.join([result['date'], *machine])}; {result['seconds']:.0f} s of {result['budget']:.0f}.",
        *(["Tiny sizes, to try the checks themselves: no speed is judged."] if result["dry"] else []),
        "",
        "| check | figure | measured | goal | |",
        "|---|---|---|---|---|",
    ]
    for check in result["checks"]:
        for figure in check["figures"]:
            value = figure["value"]
            measured = "not finite" if value is None else f"{value:g} {figure['unit']}".rstrip()
            goal = f"{figure['goal']} {figure['unit']}".rstrip() if figure["goal"] else ""
            cells = (check["name"], figure["name"], measured, goal, _MET[figure["met"]])
            lines.append("| " + " | ".join(cells) + " |")
    others = [check for check in result["checks"] if check["status"] != DONE]
    lines += ["", "Not done:" if others else "Everything was done."]
    lines += [f"* {c['name']}: {c['status']}" + (f": {c['reason']}" if c["reason"] else "") for c in others]
    return "\n".join(lines) + "\n"
