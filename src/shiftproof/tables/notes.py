"""Notes below tables, the same on a terminal and on a page."""

from __future__ import annotations

from shiftproof.tables.table import Table


def transductive_note(table: Table) -> str:
    """Say what predictions depend on besides their own image; empty if on nothing else."""
    return f"Transductive: {table.terms['transductive']}." if "transductive" in table.terms else ""


def shared_note(table: Table) -> str:
    """Say of which rows the seconds are shares of a training; empty if there are none."""
    shared = [row for row in table.rows if row.shared > 1]
    others = [row for row in table.rows if row.shared <= 1]
    if not shared:
        return ""
    words, named = ("of", shared) if len(shared) <= len(others) else ("of all but", others)
    which = f" {words} {', '.join(str(row.method) for row in named)}" if named else ""
    return (
        f"s/run{which}: a share. Runs that differ in their averaging only were trained together, up to "
        f"{max(row.shared for row in shared)} at a time, and the time of their steps and of scoring the trained "
        "weights is divided among them."
    )


def combined_note(table: Table) -> str:
    """Say what rows that combine finished runs cost; empty if there are none."""
    rows = [row for row in table.rows if row.members]
    if not rows:
        return ""
    ways = ", ".join(dict.fromkeys(row.method.averaging for row in rows))
    return (
        f"Each result of {ways} is made of up to {max(row.members for row in rows)} finished runs of the method above, "
        "and passes/step and s/run are of all these together. An ensemble predicts at the cost of all, an average of "
        "one."
    )


def constant_note(table: Table) -> str:
    """Warn of methods that are not better than predictions that read no input; empty if there are none."""
    named = ", ".join(map(str, table.not_above_constant))
    return f"Not better than {table.constant_name}, predicted without reading an input: {named}." if named else ""


def difference_note(table: Table) -> str:
    """Explain the p-values and counts beside the differences from the baseline."""
    signs = "won-lost-tied counts targets."
    if table.compared == 0:
        return signs.capitalize()
    if table.compared == 1:
        return f"p-values of Student's t over trials; with 1 comparison there is nothing to correct for; {signs}"
    return f"p-values of Student's t over trials, corrected for {table.compared} comparisons; {signs}"


def selection_note(table: Table) -> str:
    """Explain the gain from picking on the target."""
    return (
        f"picked on target: what choosing by the unseen domain (oracle) would have added to {table.rule}, "
        f"{table.unit.step}; published best-of-sweep figures include such a gain."
    )
