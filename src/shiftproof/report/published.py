"""The terms of measured accuracies that are compared with published ones."""

from __future__ import annotations

from collections.abc import Sequence

from shiftproof.studies import Results
from shiftproof.tables import Comparison

TERMS = (
    *("protocol", "steps", "model", "weights", "normalisation", "image size", "settings per method", "tuning"),
    *("sources", "averaging", "trials"),
)


def measured_terms(results: Results, compared: Sequence[Comparison]) -> dict[str, str]:
    """Return the terms of the measured accuracies, by data set, for data sets with published results."""
    datasets = {one.dataset for one in compared}
    result = {}
    for grid in results.plan:
        if grid.dataset in datasets:
            terms = {"selection": results.plan.selection[0]}
            terms |= {name: grid.terms[name] for name in TERMS if name in grid.terms}
            if len(grid.columns) < len(grid.domains):
                terms["targets"] = f"{', '.join(grid.targets)} only"
            result[grid.dataset] = "; ".join(f"{name} {value}" for name, value in terms.items())
    return result
