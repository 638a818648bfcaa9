"""Checks of a recorded result, whose file another version or a person may have written."""

from __future__ import annotations

from typing import Any

from shiftproof.base.hparams import is_finite

_ENTRIES = {"spec", "status", "error", "seconds", "passes", "metrics"}


def check_result(result: Any) -> None:
    """Check that parsed JSON is a result. Entries that nothing reads may be anything.

    Raises:
        ValueError: an entry is missing or invalid; the message names the first.
    """
    if not isinstance(result, dict) or not result.keys() >= _ENTRIES:
        raise ValueError("entries are missing")
    finished, metrics = result["status"] == "finished", result["metrics"]
    if finished and metrics == []:
        raise ValueError("it has no metrics")
    valid = {
        "status": finished or result["status"] == "failed",
        "error": isinstance(result["error"], str) or (finished and result["error"] is None),
        "seconds": _is_of_numbers(result["seconds"]),
        "passes": _is_number(result["passes"]),
        "steps": _is_number(steps := result.get("steps", 1)) and (steps > 0 or not finished),
        "shared": isinstance(shared := result.get("shared", 1), int) and shared > 0,
        "retry": isinstance(result.get("retry", False), bool),
        "annealer": _is_of_numbers(result.get("annealer") or {}, none=True),
        "versions": isinstance(result.get("versions") or {}, dict),
        "metrics": isinstance(metrics, list) and _are_records(metrics),
    }
    for name, holds in valid.items():
        if not holds:
            raise ValueError(f"no valid {name}")


def _are_records(metrics: list[Any]) -> bool:
    """Return whether these are evaluations on the same domains."""
    return all(map(_is_record, metrics)) and len({tuple(record["domains"]) for record in metrics}) <= 1


def _is_record(record: Any) -> bool:
    if not isinstance(record, dict) or not all(_is_number(record.get(name)) for name in ("step", "loss")):
        return False
    domains = record.get("domains")
    return isinstance(domains, dict) and all(
        isinstance(parts, dict) and "out" in parts and all(map(_is_score, parts.values())) for parts in domains.values()
    )


def _is_score(score: Any) -> bool:
    if not isinstance(score, dict):
        return False
    if "per_class" not in score:  # of another task than classification
        return _is_of_numbers(score.get("measures"), none=True)
    classes = score["per_class"]
    if not isinstance(classes, list) or not _is_of_numbers(score.get("measures", {}), none=True):
        return False
    return _is_number(score.get("accuracy")) and all(one is None or _is_number(one) for one in classes)


def _is_of_numbers(entries: Any, *, none: bool = False) -> bool:
    return isinstance(entries, dict) and all((none and one is None) or _is_number(one) for one in entries.values())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and is_finite(value)
