"""The result of a run: what it recorded when it ended, in `result.json`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shiftproof import __version__
from shiftproof.base.files import DamagedFileError, read_json
from shiftproof.training.constant import constant_scores
from shiftproof.training.loop import Loop
from shiftproof.training.ranks import full_state
from shiftproof.training.recorded import check_result
from shiftproof.training.spec import RunSpec

RESULT_FILE = "result.json"
"""The result of a run that ended."""
VERSIONED = ("torch", "torchvision", "timm", "numpy", "pillow")
"""Packages whose versions are recorded with a result."""
RESULT_REMEDY = "delete it to train this run again"
"""What to do about a result that cannot be read."""


def make_result(loop: Loop) -> dict[str, Any]:
    """Return the result of a run whose loop has ended, with the work of its first pass; all ranks must call this."""
    steps, progress = loop.steps, loop.progress
    none: dict[str, Any] = {"steps": 0, "seconds": {}, "passes": 0}
    before = none if loop.first_pass is None else loop.first_pass.result
    return {
        "spec": asdict(loop.spec),
        "status": "finished" if loop.diverged is None else "failed",
        "error": loop.diverged,
        "steps": before["steps"] + progress.step,
        "seconds": {work: before["seconds"].get(work, 0.0) + seconds for work, seconds in progress.seconds.items()},
        **({"shared": loop.shared} if loop.shared > 1 else {}),
        **({"probe": loop.probe._asdict()} if loop.probe else {}),
        "passes": before["passes"] + steps.passes + steps.annealer.extra_passes,
        "annealer": steps.annealer.report(),
        "devices": loop.ranks.size,
        "weights_sha256": state_digest(full_state(loop.algorithm)),
        "versions": versions(loop.spec),
        "metrics": progress.metrics,
        "constant": constant_scores(loop.spec, loop.dataset),
    }


def versions(spec: RunSpec) -> dict[str, str]:
    """Return the versions that are recorded with a result: of packages, and of the plug-ins of its parts."""
    return {
        "shiftproof": __version__,
        **{name: installed_version(name) for name in VERSIONED},
        **{name: digest[:8] for name, digest in spec.plugins.items()},
    }


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of all tensors of a state, in order, as hexadecimal digits."""
    digest = hashlib.sha256()
    for tensor in state.values():
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return the result of the run in a folder, or None if it has not ended.

    Raises:
        DamagedFileError: the result cannot be read.
    """
    path = folder / RESULT_FILE
    if not path.exists():
        return None
    result: dict[str, Any] = read_json(path, RESULT_REMEDY)
    try:
        check_result(result)
    except ValueError as error:
        raise DamagedFileError(path, str(error), RESULT_REMEDY) from error
    return result
