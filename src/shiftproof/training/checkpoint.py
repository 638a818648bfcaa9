"""Checkpoints of a run: everything needed to continue it, in one file that is never half-written."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Set
from pathlib import Path
from typing import Any

import torch

from shiftproof.algorithms import Algorithm
from shiftproof.base.files import DamagedFileError, write_bytes
from shiftproof.training.ranks import (
    ALONE,
    Ranks,
    full_optimizer_state,
    full_state,
    load_full_optimizer_state,
    load_full_state,
)

REMEDY = "delete it to train this run from the start"


def save_checkpoint(path: Path, algorithm: Algorithm, progress: dict[str, Any], ranks: Ranks = ALONE) -> None:
    """Write the algorithm, its optimizers and the run's progress, atomically.

    Tensors sharded over ranks are written whole, so that any number of ranks can continue.

    Args:
        path: the file.
        algorithm: the algorithm, saved with its optimizers.
        progress: the rest of the run's state, as tensors and plain Python values.
        ranks: the processes that train the run; all of them must call this, and the first writes.
    """
    state = {
        "algorithm": full_state(algorithm),
        "optimizers": {name: full_optimizer_state(optimizer) for name, optimizer in algorithm.optimizers.items()},
        "progress": progress,
    }
    if ranks.first:
        content = io.BytesIO()
        torch.save(state, content)
        write_bytes(path, content.getvalue())


def load_checkpoint(path: Path, algorithm: Algorithm) -> dict[str, Any]:
    """Restore the algorithm and its optimizers and return the run's progress.

    Args:
        path: the file.
        algorithm: the algorithm, restored with its optimizers.

    Raises:
        DamagedFileError: the file is incomplete or altered.
    """
    content = read_saved(path, REMEDY)
    try:
        load_full_state(algorithm, content["algorithm"])
        for name, optimizer in algorithm.optimizers.items():
            load_full_optimizer_state(optimizer, content["optimizers"][name])
        progress: dict[str, Any] = content["progress"]
    except (RuntimeError, KeyError, ValueError) as error:
        raise DamagedFileError(path, str(error).partition("\n")[0], REMEDY) from error
    return progress


def held_runs(path: Path, own: str) -> Set[str]:
    """Return the names of the runs that a checkpoint holds.

    Args:
        path: the file.
        own: name of the run in whose folder it is, which is the only one that earlier versions saved.

    Raises:
        DamagedFileError: the file is incomplete or altered.
    """
    progress = read_saved(path, REMEDY).get("progress", {})
    return progress["runs"]["runs"].keys() if "runs" in progress else {own}


def read_saved(path: Path, remedy: str) -> dict[str, Any]:
    """Return the tensors, on the CPU, and plain Python values that `torch.save` wrote.

    Args:
        path: the file.
        remedy: advice for the error message if it is damaged.

    Raises:
        DamagedFileError: the file is incomplete or altered.
    """
    try:
        with path.open("rb") as file:
            with zipfile.ZipFile(file) as archive:  # torch does not verify the checksums that it writes
                altered = archive.testzip()
            if altered is not None:
                raise DamagedFileError(path, f"checksum of {altered}", remedy)
            file.seek(0)
            content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, KeyError, EOFError) as error:
        raise DamagedFileError(path, str(error).partition("\n")[0], remedy) from error
    return content
