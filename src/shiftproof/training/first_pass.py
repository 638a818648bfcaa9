"""What a run on all data takes over from its first pass, which held a part of the sources back for validation.

Source: Teterwak et al., "ERM++: An Improved Baseline for Domain Generalization", WACV 2025 (arXiv 2304.01973), where
the second pass is called training on the full data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from shiftproof.protocol import Record, best_by_validation
from shiftproof.training.kept_predictions import KeptPredictions, read_predictions
from shiftproof.training.spec import RunSpec

FIRST_PASS = "first_pass"  # noqa: S105  (no password)
"""Name of the folder, in that of a run on all data, that holds its first pass as a run of its own."""


class FirstPass(NamedTuple):
    """What a run on all data takes over from its first pass.

    Attributes:
        result: its result.
        chosen: the evaluation that source validation chose, whose step ends the second pass.
        kept: the predictions that it kept; None for none.
    """

    result: dict[str, Any]
    chosen: Record
    kept: KeptPredictions | None


def read_first_pass(spec: RunSpec, folder: Path, result: dict[str, Any]) -> FirstPass:
    """Return what a run takes over from its first pass.

    Args:
        spec: the run's spec.
        folder: the folder of the first pass.
        result: the result of the first pass, which has finished.

    Raises:
        DamagedFileError: its predictions cannot be read.
    """
    chosen = best_by_validation(result["metrics"], spec.targets, spec.selecting_metric)
    return FirstPass(result, chosen, read_predictions(folder))
