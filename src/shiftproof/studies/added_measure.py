"""Measures that were registered after a run, from the predictions that it kept."""

from __future__ import annotations

from pathlib import Path

from shiftproof.protocol import Record, readable_records, score
from shiftproof.studies.results import Result
from shiftproof.training import read_predictions


def add_measure(result: Result, metric: str, folder: Path) -> bool:
    """Add a measure to the evaluations of a result that lack it, and return whether any got it.

    Where rules may select any evaluation it is added to all or to none, so that they do not select among the kept ones.

    Args:
        result: the result of a run.
        metric: name of the measure, of the run's task.
        folder: the run's folder.

    Raises:
        DamagedFileError: its predictions cannot be read.
        MeasureError: a plug-in's measure raised an error or returned something else than a number.
    """
    records = readable_records(result["metrics"])
    lacking = [record for record in records if not _has(record, metric)]
    kept = read_predictions(folder) if lacking else None
    if kept is None:
        return False
    able = [record for record in lacking if record["step"] in kept.outputs]
    if result["spec"].get("score_targets") and len(able) < len(lacking):
        return False
    for record in able:
        for domain, parts in record["domains"].items():
            for part, scores in parts.items():
                outputs, targets = kept.part(record["step"], domain, part)
                scores["measures"] |= score(kept.task, outputs, targets, [metric])
    return bool(able)


def _has(record: Record, metric: str) -> bool:
    return all(
        metric in scores.get("measures", {}) for parts in record["domains"].values() for scores in parts.values()
    )
